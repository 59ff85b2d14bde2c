"""Allocates ports for real services, starts a server on one, waits for it, shows, releases.

python examples/demo.py
"""

import asyncio
import logging
import os
import subprocess
import sys

from portmanager import PortManager


def start_server(environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    """A service as any other: a process that is told its port by its environment."""
    port = environment["PYTHON_AI_SERVICE_PORT"]
    return subprocess.Popen(
        [sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1"],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


async def main() -> int:
    manager = PortManager()
    allocations = await manager.allocate_all_ports()
    allocations["python-ai-service"] = await manager.allocate_port("python-ai-service")
    for service, allocation in allocations.items():
        print(f"{service}: {allocation.status} {allocation.allocated_port}: {allocation.message}")
    environment = manager.get_environment_variables()
    for name, value in environment.items():
        print(f"{name}={value}")

    port = manager.get_port("python-ai-service")
    if port is None:
        return 1
    server = start_server(environment)
    try:
        up = await manager.wait_for_port(port, timeout=30.0)
        print(f"server on port {port}: {'up' if up else 'did not come up'}")
        for status in await manager.get_port_status():
            holder = f"process {status.pid} listens" if status.in_use else "nothing listens yet"
            print(f"{status.service}: port {status.port}, {holder}, since {status.allocated_at:%X}")
    finally:
        server.terminate()
        server.wait()
    await manager.cleanup()
    print("released; allocated now:", manager.get_allocated_ports())
    return 0 if up else 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    sys.exit(asyncio.run(main()))
