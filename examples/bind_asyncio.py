"""An asyncio server on a socket of bind_port: nobody can take the port in between.

python examples/bind_asyncio.py
"""

import asyncio
import sys

from portmanager import PortConfig, PortManager


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()


async def main() -> int:
    manager = PortManager()
    manager.port_configs["echo"] = PortConfig("echo", 0)  # any port
    listener = await manager.bind_port("echo")
    server = await asyncio.start_server(echo, sock=listener)  # closes it in the end
    try:
        port = manager.get_port("echo")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello\n")
        answer = await reader.readline()
        writer.close()
        print(f"the server on port {port} answers {answer!r}")
    finally:
        server.close()
        await manager.cleanup()
    return 0 if answer == b"hello\n" else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
