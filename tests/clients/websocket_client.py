"""The `websockets` client against a server behind the edge. Argument: its URL without a path."""

import asyncio
import os
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

BASE = sys.argv[1]
LARGEST = 32 << 20


def open(path, **more):
    if BASE.startswith("wss:"):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        more["ssl"] = context
    return connect(BASE + path, max_size=LARGEST, proxy=None, **more)


async def main():
    async with open("/echo", subprotocols=["other", "chat"]) as connection:
        assert connection.subprotocol == "chat", connection.subprotocol
        # Both ends offer it, so it was agreed on through the edge.
        agreed = connection.response.headers.get("Sec-WebSocket-Extensions", "")
        assert "permessage-deflate" in agreed, agreed
        await connection.send("text, \u00e4\u00f6\u00fc")
        assert await connection.recv() == "text, \u00e4\u00f6\u00fc"
        await connection.send(b"")
        assert await connection.recv() == b""
        await connection.send(["in ", "three ", "fragments"])
        assert await connection.recv() == "in three fragments"
        large = os.urandom(10_000_000)
        await connection.send(large)
        assert await connection.recv() == large
        # A pong comes from the server itself.
        await asyncio.wait_for(await connection.ping(b"are you there"), 10)

    async with open("/echo", compression=None) as connection:
        assert "Sec-WebSocket-Extensions" not in connection.response.headers
        for number in range(1000):
            await connection.send(str(number))
        for number in range(1000):
            assert await connection.recv() == str(number)

    async with open("/close") as connection:
        try:
            await connection.recv()
        except ConnectionClosed as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4001, "enough"), closed
        else:
            raise AssertionError("it did not close")

    connection = await open("/ping")
    assert await connection.recv() == "pong came"
    await connection.close(4002, "goodbye")
    assert connection.close_code == 4002, connection.close_code


asyncio.run(asyncio.wait_for(main(), 60))
print("ok")
