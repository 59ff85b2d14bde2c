"""A child process inherits a socket of bind_port, and accepts on it.

python examples/bind_subprocess.py
"""

import asyncio
import socket
import subprocess
import sys

from portmanager import PortConfig, PortManager

# Any program that takes the number of a descriptor does as well.
CHILD = """
import socket, sys

listener = socket.socket(fileno=int(sys.argv[1]))
connection, _ = listener.accept()
with connection:
    connection.sendall(b"hello")
"""


def main() -> int:
    manager = PortManager()
    manager.port_configs["child"] = PortConfig("child", 0)  # any port
    with asyncio.run(manager.bind_port("child")) as listener:
        fd, port = listener.fileno(), listener.getsockname()[1]
        # Sockets of Python are closed in a new program; pass_fds makes an exception.
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(fd)], pass_fds=[fd])
    # Our end is closed, the child's listens on. The port stays ours until it is released.
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            answer = client.makefile("rb").read()
        print(f"process {child.pid} on port {port} answers {answer!r}")
        return child.wait(30) or answer != b"hello"
    finally:
        child.kill()
        child.wait()
        manager.release_port("child")


if __name__ == "__main__":
    sys.exit(main())
