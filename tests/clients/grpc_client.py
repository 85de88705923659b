"""A gRPC client of grpcio (C-core) against a server behind the edge.

Arguments: the edge's address without TLS, the one with TLS, the certificate's file, and for how
many seconds a call is silent.
"""

import queue
import sys
import time

import grpc

PLAIN, TLS, CERTIFICATE, SILENCE = sys.argv[1:]
LARGEST = 16 << 20
OPTIONS = [
    ("grpc.max_receive_message_length", LARGEST),
    ("grpc.max_send_message_length", LARGEST),
    ("grpc.enable_http_proxy", 0),
    ("grpc.ssl_target_name_override", "localhost"),
]


def path(name):
    return f"/test.Calls/{name}"


def feed(messages):
    """An iterator that ends with None."""
    return iter(messages.get, None)


def check(channel):
    def unary(name, request, **more):
        return channel.unary_unary(path(name))(request, timeout=20, **more)

    # One message each way, small, empty and large.
    response, call = channel.unary_unary(path("Echo")).with_call(
        b"hello", timeout=20, metadata=(("say", "words"),)
    )
    assert response == b"hello"
    assert dict(call.trailing_metadata())["seen"] == "words"
    assert unary("Echo", b"") == b""
    large = bytes(range(256)) * 4096
    assert unary("Echo", large) == large
    assert unary("Echo", large, compression=grpc.Compression.Gzip) == large

    # A stream up, and a stream down.
    pieces = (b"x" * 10_000 for _ in range(100))
    assert channel.stream_unary(path("Count"))(pieces, timeout=20) == b"1000000"
    numbers = list(channel.unary_stream(path("Several"))(b"1000", timeout=20))
    assert numbers == [str(number).encode() for number in range(1000)]

    # Both ways at once: each answer comes before the next message is sent, and the head before
    # any of them.
    messages = queue.Queue()
    call = channel.stream_stream(path("Talk"))(feed(messages), timeout=30)
    assert dict(call.initial_metadata())["early"] == "yes"
    for number in range(50):
        messages.put(f"message {number}".encode())
        assert next(call) == f"MESSAGE {number}".encode()
    # Longer than any deadline of a body.
    time.sleep(float(SILENCE))
    messages.put(b"still there")
    assert next(call) == b"STILL THERE"
    messages.put(None)
    assert list(call) == [] and call.code() == grpc.StatusCode.OK

    # Errors: behind no message, and of a method that there is not (trailers alone).
    def refused(name):
        try:
            unary(name, b"")
        except grpc.RpcError as error:
            return error
        raise AssertionError(f"{name} did not fail")

    error = refused("Fail")
    assert error.code() == grpc.StatusCode.NOT_FOUND, error
    assert error.details() == "there is no such thing"
    assert dict(error.trailing_metadata())["why-bin"] == b"\x00\xff"
    assert refused("Absent").code() == grpc.StatusCode.UNIMPLEMENTED

    # A deadline, and a client that thinks better of it: the server is told of both.
    try:
        channel.unary_unary(path("Hang"))(b"", timeout=0.3)
        raise AssertionError("it did not end")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    assert unary("WasCancelled", b"") == b"yes"
    call = channel.unary_unary(path("Hang")).future(b"", timeout=20)
    time.sleep(0.1)
    call.cancel()
    assert unary("WasCancelled", b"") == b"yes"


with grpc.insecure_channel(PLAIN, options=OPTIONS) as channel:
    check(channel)
with open(CERTIFICATE, "rb") as file:
    credentials = grpc.ssl_channel_credentials(root_certificates=file.read())
with grpc.secure_channel(TLS, credentials, options=OPTIONS) as channel:
    check(channel)
print("ok")
