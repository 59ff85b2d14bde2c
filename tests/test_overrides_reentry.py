"""Overrides that call the manager they belong to, and those that monitors call."""

# The classes under test are not known before the tests run.
# mypy: allow-subclassing-any

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def first(port_block: Callable[[int], int]) -> int:
    """The first of four free ports."""
    return port_block(4)


async def test_override_uses_the_manager(
    make_manager: Any, implementation: Any, first: int
) -> None:
    seen = []

    class Nosy(implementation.PortManager):
        async def is_port_available(self, port: int) -> Any:
            seen.append((self.get_port("api"), self.get_allocated_ports(), port))
            seen.append(await super().is_port_available(port))
            self.release_port("unknown")
            return await super().is_port_available(port)

    manager = make_manager(implementation.PortConfig("api", first), cls=Nosy)
    assert (await manager.allocate_port("api")).allocated_port == first
    assert seen == [(None, {}, first), True]


async def test_override_allocates_for_another_service(
    make_manager: Any, implementation: Any, first: int
) -> None:
    """The port of the outer attempt is claimed already, so the inner one gets another."""

    configs = [
        implementation.PortConfig(name, first, (first, first + 3)) for name in ("outer", "inner")
    ]
    manager = make_manager(*configs)
    entered: list[int] = []

    async def once(port: int) -> bool:
        if not entered:
            entered.append(port)
            await manager.allocate_port("inner")
        return True

    manager.is_port_available = once
    assert (await manager.allocate_port("outer")).allocated_port == first
    assert manager.get_allocated_ports() == {"inner": first + 1, "outer": first}
    assert entered == [first]


async def test_override_releases_what_is_allocated(
    make_manager: Any, implementation: Any, first: int
) -> None:
    configs = [implementation.PortConfig(name, first, (first, first + 3)) for name in "ab"]
    manager = make_manager(*configs)
    await manager.allocate_port("a")

    async def releasing(port: int) -> bool:
        manager.release_all_ports()
        return True

    manager.is_port_available = releasing
    # The default port is reserved when it is tried, and free a moment later.
    assert (await manager.allocate_port("b")).allocated_port == first + 1
    assert manager.get_allocated_ports() == {"b": first + 1}
    assert await manager.find_available_port(first, first) == first


async def test_override_changes_the_configurations(
    make_manager: Any, implementation: Any, first: int
) -> None:
    class Growing(implementation.PortManager):
        async def allocate_port(self, service_name: str) -> Any:
            late = implementation.PortConfig("late", first + 1, required=True)
            self.port_configs: Any = {"late": late, **self.port_configs}
            self.port_configs["later"] = late
            return await super().allocate_port(service_name)

    manager = make_manager(
        implementation.PortConfig("api", first, required=True),
        implementation.PortConfig("web", first + 2, required=True),
        cls=Growing,
    )
    got = await manager.allocate_all_ports()
    assert {name: a.allocated_port for name, a in got.items()} == {"api": first, "web": first + 2}
    assert "later" in manager.port_configs


async def test_override_replaces_itself(make_manager: Any, implementation: Any, first: int) -> None:
    manager, seen = make_manager(), []

    async def second(port: int) -> bool:
        seen.append(("second", port))
        return port == first + 2

    async def initial(port: int) -> bool:
        seen.append(("initial", port))
        manager.is_port_available = second
        return False

    manager.is_port_available = initial
    assert await manager.find_available_port(first, first + 3) == first + 2
    assert seen == [("initial", first), ("second", first + 1), ("second", first + 2)]


async def test_override_goes_between_two_rounds(
    make_manager: Any, implementation: Any, first: int
) -> None:
    config = implementation.PortConfig("api", first)
    manager, looked = make_manager(config, max_retries=1000), asyncio.Event()

    async def busy(port: int) -> bool:
        looked.set()
        return False

    manager.is_port_available = busy
    task = asyncio.create_task(manager.allocate_port("api"))
    await looked.wait()
    await asyncio.sleep(0.01)
    del manager.is_port_available
    assert (await asyncio.wait_for(task, 10)).allocated_port == first


async def test_find_override_builds_on_the_manager(
    make_manager: Any, implementation: Any, first: int
) -> None:
    class Even(implementation.PortManager):
        async def is_port_available(self, port: int) -> bool:
            return port != first and await super().is_port_available(port)

        async def find_available_port(self, start_port: int, end_port: int | None = None) -> Any:
            seen.append((start_port, end_port))
            for port in range(start_port, (end_port or start_port) + 1):
                if port % 2 == 0 and await super().find_available_port(port, port):
                    return port
            return None

    seen: list[Any] = []
    config = implementation.PortConfig("api", first, (first + 1, first + 3))
    manager = make_manager(config, cls=Even)
    allocation = await manager.allocate_port("api")
    assert allocation.allocated_port == first + 1 + (first + 1) % 2
    assert seen == [(first + 1, first + 3)]


def told_by_monitors(implementation: Any, up: set[int]) -> Any:
    """A manager class that notes what monitors say, and on which thread."""

    class Told(implementation.PortManager):
        told: list[Any]
        looks = 0

        async def is_port_available(self, port: int) -> bool:
            self.looks += 1
            return port not in up

        def _on_port_became_available(self, service_name: str, port: int) -> None:
            self.told.append((service_name, port, threading.current_thread()))

    Told.told = []
    return Told


async def eventually(condition: Callable[[], Any]) -> None:
    """Wait for a condition that another thread or a timer brings about."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")


async def more_looks(manager: Any) -> None:
    """Wait until a monitor has looked, and what it said then has come through."""
    looks = manager.looks
    await eventually(lambda: manager.looks > looks + 2)


async def test_monitors_ask_the_override(
    make_manager: Any, implementation: Any, free_port: int
) -> None:
    up: set[int] = set()
    config = implementation.PortConfig("api", free_port)
    manager = make_manager(config, cls=told_by_monitors(implementation, up))
    await manager.allocate_port("api")
    manager.start_port_monitoring("api", interval=0.005)
    for changes in range(1, 3):
        up.add(free_port)
        await more_looks(manager)
        assert len(manager.told) == changes - 1
        up.clear()
        await more_looks(manager)
        await more_looks(manager)
        # Once per change, and on the thread of the loop.
        assert manager.told[changes - 1 :] == [("api", free_port, threading.current_thread())]
    manager.stop_port_monitoring("api")


async def test_asynchronous_override_is_run(
    make_manager: Any, implementation: Any, free_port: int
) -> None:
    up, told = {free_port}, []

    class Told(told_by_monitors(implementation, up)):  # type: ignore[misc]
        async def _on_port_became_available(self, service_name: str, port: int) -> None:
            await asyncio.sleep(0)
            told.append((service_name, port, asyncio.get_running_loop()))

    manager = make_manager(implementation.PortConfig("api", free_port), cls=Told)
    up.clear()
    await manager.allocate_port("api")
    up.add(free_port)
    manager.start_port_monitoring("api", interval=0.005)
    await eventually(lambda: manager.looks > 3)
    up.clear()
    await eventually(lambda: told)
    assert told == [("api", free_port, asyncio.get_running_loop())]
    manager.stop_port_monitoring("api")


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
def test_monitors_without_a_loop(
    make_manager: Any, implementation: Any, free_port: int, kind: str
) -> None:
    up: set[int] = set()
    done = threading.Event()
    base = told_by_monitors(implementation, up)

    class Plain(base):  # type: ignore[misc,valid-type]
        def _on_port_became_available(self, service_name: str, port: int) -> None:
            super()._on_port_became_available(service_name, port)
            done.set()

    class Asynchronous(base):  # type: ignore[misc,valid-type]
        async def _on_port_became_available(self, service_name: str, port: int) -> None:
            await asyncio.sleep(0)
            super()._on_port_became_available(service_name, port)
            done.set()

    cls = Plain if kind == "plain" else Asynchronous
    manager = make_manager(implementation.PortConfig("api", free_port), cls=cls)
    asyncio.run(manager.allocate_port("api"))
    up.add(free_port)
    manager.start_port_monitoring("api", interval=0.005)
    asyncio.run(eventually(lambda: manager.looks > 3))
    up.clear()
    assert done.wait(10)
    assert [entry[:2] for entry in manager.told] == [("api", free_port)]
    monitor = manager.port_monitors[free_port]
    assert not monitor.done()
    manager.release_port("api")
    asyncio.run(eventually(monitor.done))
    assert manager.port_monitors == {}
