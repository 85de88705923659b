"""Asks for an upgrade to h2c (RFC 7540 §3.2) and, when the edge agrees, for a path inside.

Arguments: address, port, "plain" or "tls", and fields of the request beside the usual ones.
Prints the first response.
"""

import socket
import ssl
import sys

host, port, transport, *fields = sys.argv[1:]
connection = socket.create_connection((host, int(port)), timeout=20)
if transport == "tls":
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    connection = context.wrap_socket(connection, server_hostname="localhost")
head = ["GET / HTTP/1.1", "Host: edge.test", *fields, "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"]
connection.sendall("\r\n".join([*head, "", ""]).encode())
received = b""
while b"\r\n\r\n" not in received:
    piece = connection.recv(65536)
    if not piece:
        break
    received += piece
print(received.decode("latin-1"))
