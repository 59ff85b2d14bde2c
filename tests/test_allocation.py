"""allocate_port, rule by rule: the answers, their texts, what is stored, and retries."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from comparing import finish

COUNT = 5


@pytest.fixture(scope="module")
def implementation(native: SimpleNamespace) -> SimpleNamespace:
    """The extension alone."""
    return native


@pytest.fixture
def first(port_block: Callable[[int], int]) -> int:
    """The first of some free ports."""
    return port_block(COUNT)


@pytest.fixture
def occupy(first: int) -> Iterator[Callable[..., None]]:
    """Let something listen on ports, counted from the first."""
    with ExitStack() as stack:

        def listen(*offsets: int) -> None:
            for offset in offsets:
                stack.enter_context(socket.create_server(("127.0.0.1", first + offset)))

        yield listen


@pytest.fixture
def api(native: SimpleNamespace, first: int) -> Any:
    """A configuration whose default port is the second of its range."""
    return native.PortConfig("api", first + 1, (first, first + COUNT - 1))


def failed(native: SimpleNamespace, port: int) -> Any:
    """What a service gets for which there is nothing."""
    text = f"Port {port} is in use and no alternatives available"
    return native.PortAllocation("api", port, 0, "in_use", text)


# ---- the rules ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["web", "", "Web ", "w\0eb", "\ud800", "ü" * 5000])
def test_no_configuration(
    native: SimpleNamespace, make_manager: Any, api: Any, name: str, caplog: Any
) -> None:
    caplog.set_level(logging.CRITICAL, "portmanager")  # xdist cannot carry all of these names
    manager = make_manager(api)
    text = f"No port configuration found for service: {name}"
    expected = native.PortAllocation(name, 0, 0, "error", text)
    allocation = finish(manager.allocate_port(name))
    assert allocation == expected
    assert manager.allocated_ports[name] is allocation
    assert manager.get_port(name) is None
    # It is no longer so when there is one.
    manager.port_configs[name] = api
    assert finish(manager.allocate_port(name)).status == "allocated"


def test_default_port(native: SimpleNamespace, make_manager: Any, api: Any, first: int) -> None:
    manager = make_manager(api)
    text = f"Allocated default port {first + 1}"
    allocation = finish(manager.allocate_port("api"))
    assert allocation == native.PortAllocation("api", first + 1, first + 1, "allocated", text)
    assert manager.allocated_ports == {"api": allocation}
    assert manager.allocated_ports["api"] is allocation
    assert manager.get_port("api") == first + 1


async def test_allocated_already(make_manager: Any, api: Any, first: int) -> None:
    manager = make_manager(api)
    allocation = await manager.allocate_port("api")
    assert await manager.allocate_port("api") is allocation
    with socket.create_server(("127.0.0.1", allocation.allocated_port)):  # the service
        assert await manager.allocate_port("api") is allocation
    api.default_port = first + 3
    del manager.port_configs["api"]
    assert await manager.allocate_port("api") is allocation
    manager.release_port("api")
    assert (await manager.allocate_port("api")).status == "error"
    manager.port_configs["api"] = api
    assert (await manager.allocate_port("api")).allocated_port == first + 3


def test_lowest_alternative(
    native: SimpleNamespace, make_manager: Any, api: Any, first: int, occupy: Any
) -> None:
    manager = make_manager(api)
    occupy(1)
    for offset in (0, 2, 3, 4):
        text = f"Default port {first + 1} was in use. Allocated alternative port {first + offset}"
        expected = native.PortAllocation("api", first + 1, first + offset, "allocated", text)
        assert finish(manager.allocate_port("api")) == expected
        assert manager.allocated_ports == {"api": expected}
        manager.release_port("api")
        occupy(offset)
    assert finish(manager.allocate_port("api")) == failed(native, first + 1)
    assert manager.allocated_ports == {"api": failed(native, first + 1)}


def test_default_port_outside_its_range(make_manager: Any, api: Any, first: int) -> None:
    api.default_port, api.range = first + 4, (first, first + 1)
    manager = make_manager(api)
    manager.port_configs["web"] = manager.port_configs["db"] = api
    ports = [finish(manager.allocate_port(name)).allocated_port for name in ("api", "web", "db")]
    assert ports == [first + 4, first, first + 1]


@pytest.mark.parametrize("how", ["no range", "no auto allocation", "range of the default alone"])
def test_no_alternatives(
    native: SimpleNamespace, make_manager: Any, api: Any, occupy: Any, how: str
) -> None:
    first = api.range[0]
    manager = make_manager(api, enable_auto_allocation=how != "no auto allocation")
    if how == "no range":
        api.range = None
    elif how != "no auto allocation":
        api.range = (first + 1, first + 1)
    occupy(1)
    allocation = finish(manager.allocate_port("api"))
    assert allocation == failed(native, first + 1)
    assert manager.allocated_ports["api"] is allocation


@pytest.mark.parametrize(
    ("value", "expected"), [(1, "allocated"), ("no", "allocated"), (None, "in_use"), ((), "in_use")]
)
def test_auto_allocation_by_its_truth(
    make_manager: Any, api: Any, occupy: Any, value: Any, expected: str
) -> None:
    occupy(1)
    manager = make_manager(api, enable_auto_allocation=value)
    assert finish(manager.allocate_port("api")).status == expected


@pytest.mark.parametrize("port", [1, 80, 5050, 65535])
def test_the_default_is_tried_before_the_range(make_manager: Any, native: Any, port: int) -> None:
    asked = []

    async def busy(number: int) -> bool:
        asked.append(number)
        return False

    manager = make_manager(native.PortConfig("api", port, (max(port - 2, 1), port)))
    manager.is_port_available = busy
    assert finish(manager.allocate_port("api")).status == "in_use"
    assert asked[0] == port
    assert set(asked[1:]) >= set(range(max(port - 2, 1), port))


def test_failures_are_asked_again(
    native: SimpleNamespace, make_manager: Any, api: Any, first: int
) -> None:
    manager, api.range = make_manager(api), None
    with socket.create_server(("127.0.0.1", first + 1)):
        first_answer = finish(manager.allocate_port("api"))
        again = finish(manager.allocate_port("api"))
    assert first_answer == again == failed(native, first + 1)
    assert manager.allocated_ports["api"] is again
    assert finish(manager.allocate_port("api")).allocated_port == first + 1


def test_what_the_log_says(
    make_manager: Any, api: Any, first: int, occupy: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "portmanager")
    manager = make_manager(api)
    finish(manager.allocate_port("api"))
    manager.release_port("api")
    occupy(1)
    finish(manager.allocate_port("api"))
    manager.release_all_ports()
    finish(manager.allocate_port("web"))
    occupy(0, 2, 3, 4)
    finish(manager.allocate_port("api"))
    texts = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert all(text.startswith("[PortManager] ") for _, text in texts)
    assert [level for level, _ in texts] == ["INFO"] * 4 + ["ERROR"] * 2
    for part, (_, text) in zip(
        (
            f"Allocated default port {first + 1}",
            "Released",
            f"alternative port {first}",
            "Released",
            "No port configuration",
            "no alternatives available",
        ),
        texts,
        strict=True,
    ):
        assert part in text


# ---- retries ------------------------------------------------------------------------------


@pytest.fixture
def rounds(make_manager: Any, api: Any) -> Callable[..., tuple[Any, list[int]]]:
    """Make a manager that notes each round, and where every port is busy until some round."""
    api.range = None

    def make(success: int = 0, **options: Any) -> tuple[Any, list[int]]:
        asked: list[int] = []

        async def busy(port: int) -> bool:
            asked.append(port)
            return len(asked) == success

        manager = make_manager(api, **{"retry_delay": 0, **options})
        manager.is_port_available = busy
        return manager, asked

    return make


@pytest.mark.parametrize(
    ("retries", "count"),
    [(0, 1), (1, 2), (7, 8), (-1, 1), (-(2**63), 1), (-(10**30), 1), (True, 2), (False, 1)],
)
async def test_number_of_rounds(rounds: Any, retries: int, count: int) -> None:
    manager, asked = rounds(max_retries=retries)
    assert (await manager.allocate_port("api")).status == "in_use"
    assert len(asked) == count


async def test_rounds_by_default(native: SimpleNamespace, rounds: Any) -> None:
    manager, asked = rounds()
    manager.config = native.PortManagerConfig(retry_delay=0)
    assert (await manager.allocate_port("api")).status == "in_use"
    assert len(asked) == 11


async def test_rounds_end_with_success(rounds: Any, first: int) -> None:
    manager, asked = rounds(success=4, max_retries=2**62)
    assert (await manager.allocate_port("api")).allocated_port == first + 1
    assert len(asked) == 4


async def test_more_retries_than_anybody_has_time_for(rounds: Any, first: int) -> None:
    manager, asked = rounds(success=3, max_retries=10**30)
    assert (await manager.allocate_port("api")).allocated_port == first + 1
    assert len(asked) == 3


async def test_changes_of_the_options_count_from_the_next_call(rounds: Any) -> None:
    manager, asked = rounds(max_retries=1)
    await manager.allocate_port("api")
    manager.config.max_retries = 4
    await manager.allocate_port("api")
    assert len(asked) == 2 + 5


@pytest.mark.parametrize("delay", [0, -1, -float("inf"), 0.0, False, -(10**400)])
async def test_no_delay(rounds: Any, delay: Any) -> None:
    manager, asked = rounds(max_retries=3, retry_delay=delay)
    assert (await manager.allocate_port("api")).status == "in_use"
    assert len(asked) == 4


@pytest.mark.parametrize("delay", [0, 0.001, 0.25, 3, float("inf"), 10**400])
async def test_delays_between_rounds(
    rounds: Any, monkeypatch: pytest.MonkeyPatch, delay: float
) -> None:
    pauses: list[Any] = []
    asked: list[int] = []
    sleep = asyncio.sleep

    async def note(seconds: float, result: Any = None) -> None:
        pauses.append((seconds, len(asked)))
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)
    manager, asked = rounds(max_retries=3, retry_delay=delay)
    assert (await manager.allocate_port("api")).status == "in_use"
    expected = float("inf") if delay == 10**400 else delay
    assert pauses == [(expected, 1), (expected, 2), (expected, 3)]


async def test_port_that_falls_free_meanwhile(make_manager: Any, api: Any, first: int) -> None:
    """Other tasks run while a busy port is waited for; here they give it up."""
    api.range = None
    manager = make_manager(api, max_retries=2**40)
    with socket.create_server(("127.0.0.1", first + 1)):
        task = asyncio.create_task(manager.allocate_port("api"))
        await asyncio.sleep(0.02)
        assert not task.done()
        assert manager.allocated_ports == {}
    allocation = await asyncio.wait_for(task, 30)
    assert allocation.message == f"Allocated default port {first + 1}"


async def test_range_that_falls_free_meanwhile(
    make_manager: Any, api: Any, first: int, occupy: Any
) -> None:
    api.range = (first, first + 1)
    occupy(1)
    manager = make_manager(api, max_retries=2**40)
    with socket.create_server(("127.0.0.1", first)):
        task = asyncio.create_task(manager.allocate_port("api"))
        await asyncio.sleep(0.02)
        assert not task.done()
    assert (await asyncio.wait_for(task, 30)).allocated_port == first


async def test_reservation_that_is_given_back_meanwhile(make_manager: Any, api: Any) -> None:
    api.range = None
    owner, manager = make_manager(api), make_manager(api, max_retries=2**40)
    allocation = await owner.allocate_port("api")
    task = asyncio.create_task(manager.allocate_port("api"))
    await asyncio.sleep(0.02)
    assert not task.done()
    owner.release_port("api")
    assert await asyncio.wait_for(task, 30) == allocation


async def test_cancelled_between_rounds(make_manager: Any, api: Any, occupy: Any) -> None:
    api.range = None
    occupy(1)
    manager = make_manager(api, max_retries=2**40, retry_delay=3600)
    task = asyncio.create_task(manager.allocate_port("api"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert manager.allocated_ports == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_retries", value) for value in (None, "1", 1.0, float("nan"), float("inf"), [1])),
        *(("retry_delay", value) for value in (None, "0.1", float("nan"), [0.1], 1j)),
    ],
)
def test_options_that_are_no_numbers(
    make_manager: Any, api: Any, first: int, name: str, value: Any
) -> None:
    manager = make_manager(api, **{name: value})
    allocation = finish(manager.allocate_port("api"))
    assert (allocation.status, allocation.requested_port, allocation.allocated_port) == (
        "error",
        first + 1,
        0,
    )
    assert name in allocation.message
    assert repr(value) in allocation.message
    assert manager.allocated_ports["api"] is allocation
    setattr(manager.config, name, 0)
    assert finish(manager.allocate_port("api")).status == "allocated"
