"""uvicorn on a socket of bind_port: nobody can take the port in between.

pip install uvicorn && python examples/bind_uvicorn.py
"""

import asyncio
import sys
import urllib.request
from typing import Any

import uvicorn

from portmanager import PortConfig, PortManager


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"hello"})


def get(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as response:
        return bytes(response.read())


async def main() -> int:
    manager = PortManager()
    manager.port_configs["web"] = PortConfig("web", 0)  # any port
    with await manager.bind_port("web") as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        port = listener.getsockname()[1]
        # It listens already: a request that comes too early waits.
        answer = await asyncio.to_thread(get, port)
        print(f"uvicorn on port {port} answers {answer!r}")
        server.should_exit = True
        await serving
    await manager.cleanup()
    return 0 if answer == b"hello" else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
