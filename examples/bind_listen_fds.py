"""Starts a program that expects its socket from systemd: descriptor 3, LISTEN_FDS, LISTEN_PID.

python examples/bind_listen_fds.py
"""

import asyncio
import os
import socket
import subprocess
import sys

from portmanager import PortConfig, PortManager

# LISTEN_PID must be the program's own pid, so a shell says it, and becomes the program.
START = 'LISTEN_PID=$$ exec "$@" 3<&"$LISTENER"'
# Any program with socket activation does as well: gunicorn, cockpit, ...
PROGRAM = """
import os, socket

assert (os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"]) == (str(os.getpid()), "1")
connection, _ = socket.socket(fileno=3).accept()
connection.sendall(b"hello")
"""


def main() -> int:
    manager = PortManager()
    manager.port_configs["activated"] = PortConfig("activated", 0)  # any port
    with asyncio.run(manager.bind_port("activated")) as listener:
        fd, port = listener.fileno(), listener.getsockname()[1]
        command = ["bash", "-c", START, "bash", sys.executable, "-c", PROGRAM]
        env = {**os.environ, "LISTEN_FDS": "1", "LISTENER": str(fd)}
        child = subprocess.Popen(command, env=env, pass_fds=[fd])
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            answer = client.makefile("rb").read()
        print(f"process {child.pid} on port {port} answers {answer!r}")
        return child.wait(30) or answer != b"hello"
    finally:
        child.kill()
        child.wait()
        manager.release_port("activated")


if __name__ == "__main__":
    sys.exit(main())
