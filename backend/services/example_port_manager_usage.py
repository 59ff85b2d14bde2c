"""The ten examples of the documentation, each a function, run one after the other.

python backend/services/example_port_manager_usage.py
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from backend.services import PortConfig, PortManager, PortManagerConfig, get_port_manager


async def basic_allocation() -> None:
    """1. Basic port allocation, by the singleton."""
    manager = get_port_manager()
    allocation = await manager.allocate_port("python-ai-service")
    if allocation.status == "allocated":
        print(f"Service running on port {allocation.allocated_port}")
    print(f"The same by get_port(): {manager.get_port('python-ai-service')}")
    await manager.cleanup()


async def allocate_all_required() -> None:
    """2. Allocating all required ports."""
    manager = PortManager()
    for service, allocation in (await manager.allocate_all_ports()).items():
        print(f"{service}: {allocation.allocated_port}")
    await manager.cleanup()


async def check_availability() -> None:
    """3. Checking port availability."""
    manager = PortManager()
    for port in (5050, 8080):
        available = await manager.is_port_available(port)
        print(f"Port {port} is {'free' if available else 'in use'}")
    print(f"Found free port: {await manager.find_available_port(5050, 5060)}")


async def fallback_allocation() -> None:
    """4. Fallback allocation: the default port is busy."""
    manager = PortManager()
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    busy = server.sockets[0].getsockname()[1]
    manager.port_configs["custom-service"] = PortConfig(
        service="custom-service",
        default_port=busy,
        range=(min(busy, 65435), min(busy, 65435) + 100),
        description="Custom service",
    )
    print((await manager.allocate_port("custom-service")).message)
    server.close()
    await server.wait_closed()
    await manager.cleanup()


async def port_status() -> None:
    """5. Port status monitoring."""
    manager = PortManager()
    await manager.allocate_port("electron-dev-api")
    manager.start_port_monitoring(service_name="electron-dev-api", interval=5.0)
    for status in await manager.get_port_status():
        print(f"{status.service}: {status.port} (in_use={status.in_use})")
    manager.stop_port_monitoring("electron-dev-api")
    await manager.cleanup()


async def environment_variables() -> None:
    """6. Environment variable generation, and a child that reads them."""
    manager = PortManager()
    await manager.allocate_port("python-ai-service")
    variables = manager.get_environment_variables()
    print(variables)
    code = "import os; print('the child has', os.environ['PYTHON_AI_SERVICE_PORT'])"
    sys.stdout.flush()
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **variables}, check=True)
    await manager.cleanup()


async def wait_for_startup() -> None:
    """7. Waiting for service startup."""
    manager = PortManager()
    port = (await manager.allocate_port("python-ai-service")).allocated_port
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        if await manager.wait_for_port(port, timeout=30.0):
            print("Service started successfully")
        else:
            print("Service failed to start")
        server.terminate()
    await manager.cleanup()


async def release_ports() -> None:
    """8. Releasing ports."""
    manager = PortManager()
    await manager.allocate_port("python-ai-service")
    await manager.allocate_port("playwright-debug")
    manager.release_port("python-ai-service")
    print(f"After release_port(): {list(manager.get_allocated_ports())}")
    manager.release_all_ports()
    print(f"After release_all_ports(): {list(manager.get_allocated_ports())}")


async def persist_configuration() -> None:
    """9. Configuration persistence."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "config.json")
        manager = PortManager()
        await manager.allocate_port("python-ai-service")
        await manager.save_configuration(path)
        manager.release_all_ports()
        loaded = PortManager(PortManagerConfig(port_config_path=path))
        print(f"Loaded: {list(loaded.port_configs)}")


async def error_handling() -> None:
    """10. Error handling."""
    manager = PortManager()
    allocation = await manager.allocate_port("unknown-service")
    if allocation.status == "error":
        print(f"Error: {allocation.message}")
    if manager.get_port("non-existent-service") is None:
        print("Service not allocated")
    try:
        await manager.save_configuration()
    except ValueError as error:
        print(f"Config error: {error}")


EXAMPLES = (
    basic_allocation,
    allocate_all_required,
    check_availability,
    fallback_allocation,
    port_status,
    environment_variables,
    wait_for_startup,
    release_ports,
    persist_configuration,
    error_handling,
)


async def main() -> None:
    for example in EXAMPLES:
        print(f"\n--- {example.__doc__}")
        await example()


if __name__ == "__main__":
    asyncio.run(main())
