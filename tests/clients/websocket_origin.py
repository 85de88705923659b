"""A WebSocket server for the tests. Prints its port, then serves until its input ends.

/echo sends each message back; /close closes with a code of its own; /ping pings, and says so
once the pong is there. Whoever offers the subprotocol "chat" gets it.
"""

import asyncio
import sys

from websockets.asyncio.server import serve

LARGEST = 32 << 20


async def answer(connection):
    match connection.request.path:
        case "/close":
            await connection.close(4001, "enough")
        case "/ping":
            await (await connection.ping(b"are you there"))
            await connection.send("pong came")
            await connection.wait_closed()
            # Seen from here: the code that the client closed with.
            print("closed", connection.close_code, connection.close_reason, flush=True)
        case _:
            async for message in connection:
                await connection.send(message)


def subprotocol(_, offered):
    return "chat" if "chat" in offered else None


async def main():
    options = {"max_size": LARGEST, "select_subprotocol": subprotocol}
    async with serve(answer, "127.0.0.1", 0, **options) as server:
        print("port", server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
