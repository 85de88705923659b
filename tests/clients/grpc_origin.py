"""A gRPC server of grpcio (C-core) for the tests. Prints its port, then serves until its input ends.

Messages are plain bytes: what is tested is HTTP/2, not their coding. The service test.Calls has a state of health;
each line of the input, such as NOT_SERVING, is its next one.
"""

import sys
import threading
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

LARGEST = 16 << 20
cancelled = threading.Semaphore(0)


def echo(request, context):
    context.set_trailing_metadata((("seen", dict(context.invocation_metadata()).get("say", "")),))
    return request


def count(requests, _):
    return str(sum(len(request) for request in requests)).encode()


def several(request, _):
    for number in range(int(request)):
        yield str(number).encode()


def talk(requests, context):
    # Before the first message, and long before the client's last.
    context.send_initial_metadata((("early", "yes"),))
    for request in requests:
        yield request.upper()


def fail(_, context):
    context.set_trailing_metadata((("why-bin", b"\x00\xff"),))
    context.abort(grpc.StatusCode.NOT_FOUND, "there is no such thing")


def hang(_, context):
    context.add_callback(cancelled.release)
    cancelled_here = threading.Event()
    context.add_callback(cancelled_here.set)
    cancelled_here.wait(30)
    return b""


def was_cancelled(_, __):
    return b"yes" if cancelled.acquire(timeout=10) else b"no"


methods = {
    "Echo": grpc.unary_unary_rpc_method_handler(echo),
    "Count": grpc.stream_unary_rpc_method_handler(count),
    "Several": grpc.unary_stream_rpc_method_handler(several),
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
    "Fail": grpc.unary_unary_rpc_method_handler(fail),
    "Hang": grpc.unary_unary_rpc_method_handler(hang),
    "WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
}
options = [("grpc.max_receive_message_length", LARGEST), ("grpc.max_send_message_length", LARGEST)]
server = grpc.server(futures.ThreadPoolExecutor(8), options=options)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Calls", methods),))
servicer = health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
servicer.set("test.Calls", health_pb2.HealthCheckResponse.SERVING)
print("port", server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
for state in sys.stdin:
    servicer.set("test.Calls", health_pb2.HealthCheckResponse.ServingStatus.Value(state.strip()))
server.stop(None)
