"""The documented service, from its documented import path; by the page's own commands:

python -m pytest backend/services/test_port_manager.py -v
"""

import asyncio
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from backend.services import (
    PortAllocation,
    PortConfig,
    PortManager,
    PortManagerConfig,
    PortStatus,
    get_port_manager,
)
from backend.services.port_manager import DEFAULT_PORT_CONFIGS


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket on a port of the kernel's choice."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def busy_port(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.fixture
async def manager() -> AsyncIterator[PortManager]:
    manager = PortManager(PortManagerConfig(max_retries=0))
    yield manager
    await manager.cleanup()


@pytest.fixture
def configure(manager: PortManager) -> Callable[..., PortConfig]:
    """Adds the configuration of a service."""

    def add(port: int, service: str = "api", **fields: object) -> PortConfig:
        config = PortConfig(service, port, **fields)  # type: ignore[arg-type]
        manager.port_configs[service] = config
        return config

    return add


class TestModels:
    def test_port_config(self) -> None:
        config = PortConfig("api", 9999, (9990, 10000), "An API", True)
        assert (config.service, config.default_port, config.range) == ("api", 9999, (9990, 10000))
        assert (config.description, config.required) == ("An API", True)
        assert PortConfig("api", 1) == PortConfig("api", 1, None, None, False)

    def test_port_allocation(self) -> None:
        allocation = PortAllocation("api", 1, 2, "allocated")
        assert allocation.message is None
        assert repr(allocation) == (
            "PortAllocation(service='api', requested_port=1, allocated_port=2, "
            "status='allocated', message=None)"
        )

    def test_port_status(self) -> None:
        status = PortStatus(port=1, service="api", in_use=True)
        assert (status.pid, status.allocated_at) == (None, None)

    def test_port_manager_config(self) -> None:
        assert PortManagerConfig() == PortManagerConfig(None, True, 10, 0.1)

    def test_default_configurations(self) -> None:
        rows = [(c.service, c.default_port, c.range, c.required) for c in DEFAULT_PORT_CONFIGS]
        assert rows == [
            ("vite-dev-server", 5176, (5173, 5180), True),
            ("python-ai-service", 5050, (5050, 5060), False),
            ("electron-dev-api", 8080, (8080, 8090), False),
            ("playwright-debug", 9323, (9320, 9330), False),
        ]


class TestPortManager:
    def test_construction(self) -> None:
        manager = PortManager()
        assert manager.config == PortManagerConfig()
        assert list(manager.port_configs.values()) == DEFAULT_PORT_CONFIGS
        assert manager.allocated_ports == manager.port_monitors == {}

    def test_managers_do_not_share_configurations(self) -> None:
        PortManager().port_configs["vite-dev-server"].default_port = 1
        assert PortManager().port_configs["vite-dev-server"].default_port == 5176

    async def test_available(self, manager: PortManager, free_port: int) -> None:
        assert await manager.is_port_available(free_port) is True

    async def test_not_available(self, manager: PortManager, busy_port: int) -> None:
        assert await manager.is_port_available(busy_port) is False

    async def test_available_on_another_host(self, manager: PortManager, busy_port: int) -> None:
        assert await manager.is_port_available(busy_port, host="127.0.20.4") is True

    async def test_find(self, manager: PortManager, free_port: int) -> None:
        assert await manager.find_available_port(free_port, free_port) == free_port

    async def test_find_nothing(self, manager: PortManager, busy_port: int) -> None:
        assert await manager.find_available_port(busy_port, busy_port) is None

    async def test_allocate_default(
        self, manager: PortManager, configure: Callable[..., PortConfig], free_port: int
    ) -> None:
        configure(free_port)
        allocation = await manager.allocate_port("api")
        assert allocation == PortAllocation(
            "api", free_port, free_port, "allocated", f"Allocated default port {free_port}"
        )
        assert manager.allocated_ports == {"api": allocation}

    async def test_allocate_twice(
        self, manager: PortManager, configure: Callable[..., PortConfig], free_port: int
    ) -> None:
        configure(free_port)
        assert await manager.allocate_port("api") is await manager.allocate_port("api")

    async def test_allocate_alternative(
        self, manager: PortManager, configure: Callable[..., PortConfig], busy_port: int
    ) -> None:
        first = min(busy_port, 65435)
        configure(busy_port, range=(first, first + 100))
        allocation = await manager.allocate_port("api")
        port = allocation.allocated_port
        assert allocation.status == "allocated"
        assert first <= port <= first + 100
        assert allocation.message == (
            f"Default port {busy_port} was in use. Allocated alternative port {port}"
        )

    async def test_no_alternative_when_disabled(
        self, manager: PortManager, configure: Callable[..., PortConfig], busy_port: int
    ) -> None:
        manager.config.enable_auto_allocation = False
        first = min(busy_port, 65435)
        configure(busy_port, range=(first, first + 100))
        allocation = await manager.allocate_port("api")
        assert (allocation.status, allocation.allocated_port) == ("in_use", 0)
        assert allocation.message == f"Port {busy_port} is in use and no alternatives available"

    async def test_unknown_service(self, manager: PortManager) -> None:
        allocation = await manager.allocate_port("unknown-service")
        assert allocation == PortAllocation(
            "unknown-service",
            0,
            0,
            "error",
            "No port configuration found for service: unknown-service",
        )

    async def test_two_services_never_share_a_port(
        self, manager: PortManager, configure: Callable[..., PortConfig], free_port: int
    ) -> None:
        configure(free_port, "one")
        configure(free_port, "two")
        assert (await manager.allocate_port("one")).status == "allocated"
        assert (await manager.allocate_port("two")).status == "in_use"

    async def test_allocate_all(
        self, manager: PortManager, configure: Callable[..., PortConfig], free_port: int
    ) -> None:
        manager.port_configs.clear()
        configure(0, "one", required=True)
        configure(0, "two")
        configure(0, "three", required=True)
        allocations = await manager.allocate_all_ports()
        assert list(allocations) == ["one", "three"]
        assert manager.allocated_ports == allocations

    async def test_get_port(
        self, manager: PortManager, configure: Callable[..., PortConfig], free_port: int
    ) -> None:
        configure(free_port)
        assert manager.get_port("api") is None
        await manager.allocate_port("api")
        assert manager.get_port("api") == free_port
        assert manager.get_allocated_ports() == {"api": free_port}

    async def test_release(
        self, manager: PortManager, configure: Callable[..., PortConfig], free_port: int
    ) -> None:
        configure(free_port)
        await manager.allocate_port("api")
        manager.release_port("api")
        assert manager.get_port("api") is None
        assert (await PortManager().find_available_port(free_port, free_port)) == free_port

    async def test_release_all(
        self, manager: PortManager, configure: Callable[..., PortConfig]
    ) -> None:
        for service in ("one", "two"):
            configure(0, service)
            await manager.allocate_port(service)
        manager.release_all_ports()
        assert manager.get_allocated_ports() == {}

    def test_release_unknown(self, manager: PortManager) -> None:
        manager.release_port("unknown-service")
        assert manager.allocated_ports == {}

    async def test_environment_variables(
        self, manager: PortManager, configure: Callable[..., PortConfig], free_port: int
    ) -> None:
        configure(free_port, "my-service.v2")
        await manager.allocate_port("my-service.v2")
        assert manager.get_environment_variables() == {"MY_SERVICE_V2_PORT": str(free_port)}

    async def test_status(
        self, manager: PortManager, configure: Callable[..., PortConfig], free_port: int
    ) -> None:
        configure(free_port)
        await manager.allocate_port("api")
        (status,) = await manager.get_port_status()
        assert (status.port, status.service, status.in_use) == (free_port, "api", False)
        assert status.allocated_at is not None
        with socket.create_server(("127.0.0.1", free_port)):
            (status,) = await manager.get_port_status()
        assert status.in_use is True

    async def test_wait_for_port(self, manager: PortManager, free_port: int) -> None:
        waiting = asyncio.create_task(manager.wait_for_port(free_port, timeout=30.0))
        await asyncio.sleep(0)
        with socket.create_server(("127.0.0.1", free_port)):
            assert await waiting is True

    async def test_wait_times_out(self, manager: PortManager, free_port: int) -> None:
        assert await manager.wait_for_port(free_port, timeout=0.01) is False

    async def test_save_and_load(
        self, manager: PortManager, configure: Callable[..., PortConfig], tmp_path: Path
    ) -> None:
        config = configure(0, description="An API", required=True)
        await manager.allocate_port("api")
        path = tmp_path / "folder" / "config.json"
        await manager.save_configuration(str(path))
        assert set(json.loads(path.read_text())) == {"timestamp", "portConfigs", "allocations"}
        loaded = PortManager(PortManagerConfig(port_config_path=str(path)))
        assert loaded.port_configs == manager.port_configs
        assert loaded.port_configs["api"] == config

    async def test_save_without_a_path(self, manager: PortManager) -> None:
        with pytest.raises(ValueError, match="No configuration file path"):
            await manager.save_configuration()

    async def test_monitoring(
        self,
        manager: PortManager,
        configure: Callable[..., PortConfig],
        listener: socket.socket,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        fell_free = asyncio.Event()
        port = listener.getsockname()[1]
        manager.allocated_ports["api"] = PortAllocation("api", port, port, "allocated")
        with mock.patch.object(
            manager, "_on_port_became_available", side_effect=lambda *_: fell_free.set()
        ) as became:
            manager.start_port_monitoring(service_name="api", interval=0.01)
            monitor = manager.port_monitors[port]
            await asyncio.sleep(0.1)
            with caplog.at_level(logging.WARNING, "portmanager"):
                listener.close()
                await asyncio.wait_for(fell_free.wait(), 30)
        became.assert_called_once_with("api", port)
        assert f"{port}" in caplog.text
        manager.stop_port_monitoring("api")
        assert manager.port_monitors == {}
        assert monitor.done()

    async def test_cleanup(
        self, manager: PortManager, configure: Callable[..., PortConfig]
    ) -> None:
        configure(0)
        await manager.allocate_port("api")
        manager.start_port_monitoring("api")
        await manager.cleanup()
        assert manager.allocated_ports == manager.port_monitors == {}

    def test_threads(
        self, manager: PortManager, configure: Callable[..., PortConfig], free_port: int
    ) -> None:
        services = [f"service-{number}" for number in range(8)]
        first = min(free_port, 65435)
        for service in services:
            configure(free_port, service, range=(first, first + 100))

        def allocate_in_thread(service: str) -> None:
            asyncio.run(manager.allocate_port(service))

        threads = [threading.Thread(target=allocate_in_thread, args=(s,)) for s in services]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        ports = manager.get_allocated_ports()
        assert sorted(ports) == services
        assert len(set(ports.values())) == len(services)


class TestSingleton:
    def test_one_manager(self) -> None:
        assert get_port_manager() is get_port_manager()

    def test_later_configuration_is_ignored(self, caplog: pytest.LogCaptureFixture) -> None:
        manager = get_port_manager()
        before = manager.config
        with caplog.at_level(logging.WARNING, "portmanager"):
            assert get_port_manager(PortManagerConfig(max_retries=99)) is manager
        assert manager.config is before
        assert "ignored" in caplog.text
