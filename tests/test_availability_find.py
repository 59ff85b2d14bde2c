"""find_available_port: the first port of a range that can be bound and that nobody holds."""

import gc
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from comparing import error_of, finish

COUNT = 6
Occupy = Callable[..., None]


@pytest.fixture
def manager(native: SimpleNamespace) -> Any:
    """A manager of the extension."""
    return native.PortManager()


@pytest.fixture
def first(port_block: Callable[[int], int]) -> int:
    """The first of some free ports."""
    return port_block(COUNT)


@pytest.fixture
def occupy(first: int) -> Iterator[Occupy]:
    """Let something listen on ports, counted from the first."""
    with ExitStack() as stack:

        def listen(*offsets: int, host: str = "127.0.0.1") -> None:
            for offset in offsets:
                stack.enter_context(socket.create_server((host, first + offset)))

        yield listen


def test_both_ends_are_included(manager: Any, first: int, occupy: Occupy) -> None:
    last = first + COUNT - 1
    assert finish(manager.find_available_port(first, last)) == first
    assert finish(manager.find_available_port(last, last)) == last
    for offset in range(COUNT - 1):
        occupy(offset)
        assert finish(manager.find_available_port(first, last)) == first + offset + 1
    occupy(COUNT - 1)
    assert finish(manager.find_available_port(first, last)) is None
    assert finish(manager.find_available_port(last, last)) is None


def test_the_lowest_of_several(manager: Any, first: int, occupy: Occupy) -> None:
    occupy(0, 2)
    assert finish(manager.find_available_port(first, end_port=first + COUNT - 1)) == first + 1
    assert finish(manager.find_available_port(start_port=first + 2)) >= first + 3


def test_nothing_in_a_range_that_is_reversed(manager: Any, first: int) -> None:
    assert finish(manager.find_available_port(first + 1, first)) is None
    assert finish(manager.find_available_port(65535, 1)) is None


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ((5000,), range(5000, 5101)),
        ((5000, None), range(5000, 5101)),
        ((65434,), range(65434, 65535)),
        ((65435,), range(65435, 65536)),
        ((65500,), range(65500, 65536)),
        ((65535,), range(65535, 65536)),
        ((1, 1), range(1, 2)),
        ((65535, 65535), range(65535, 65536)),
        ((True, 2), range(1, 3)),
    ],
)
def test_where_the_range_ends(manager: Any, arguments: tuple[Any, ...], asked: range) -> None:
    seen = []

    async def busy(port: int) -> bool:
        seen.append(port)
        return False

    manager.is_port_available = busy
    assert finish(manager.find_available_port(*arguments)) is None
    assert seen == list(asked)


@pytest.mark.parametrize("name", ["start_port", "end_port"])
@pytest.mark.parametrize("port", [0, -1, 65536, 2**40, 2**100])
def test_ports_outside_the_range(manager: Any, name: str, port: int) -> None:
    arguments = {"start_port": 5000, "end_port": 5001, name: port}
    text = error_of(finish, manager.find_available_port(**arguments))
    assert text == f"ValueError: {name} must be an integer in 1..65535, not {port}"


@pytest.mark.parametrize(
    ("name", "port"),
    [
        ("start_port", None),
        *((end, bad) for end in ("start_port", "end_port") for bad in ("1", 1.0, b"1", [1])),
    ],
)
def test_ports_that_are_no_integers(manager: Any, name: str, port: Any) -> None:
    arguments = {"start_port": 5000, "end_port": 5001, name: port}
    text = error_of(finish, manager.find_available_port(**arguments))
    assert text == f"TypeError: {name} must be an integer in 1..65535, not {port!r}"


@pytest.mark.parametrize("host", [None, b"localhost", 4, "a\0b", "\ud800"])
def test_what_is_no_host(manager: Any, first: int, host: Any) -> None:
    coroutine = manager.find_available_port(first, first, host)
    with pytest.raises((TypeError, ValueError), match=r"host|surrogates"):
        finish(coroutine)


def test_other_addresses(manager: Any, first: int, occupy: Occupy) -> None:
    occupy(0, host="127.0.20.4")
    occupy(1)
    find = manager.find_available_port
    assert finish(find(first, first + 2)) == first
    assert finish(find(first, first + 2, "127.0.20.4")) == first + 1
    assert finish(find(first, first + 2, host="")) == first + 2
    assert finish(find(first, first, host="0.0.0.0")) is None
    # Nobody's: no port of it can be bound.
    assert finish(find(first, first + 2, host="192.0.2.1")) is None
    assert finish(find(first, first + 2, host="a" * 10_000)) is None


# ---- reservations --------------------------------------------------------------------------


@pytest.fixture
def reserve(native: SimpleNamespace, first: int) -> Callable[..., Any]:
    """Let a manager hold ports, counted from the first."""

    def hold(manager: Any, *offsets: int) -> Any:
        for offset in offsets:
            name = f"service {offset}"
            manager.port_configs[name] = native.PortConfig(name, first + offset)
            assert finish(manager.allocate_port(name)).status == "allocated"
        return manager

    return hold


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.20.4", "::1", ""])
def test_reserved_ports_are_passed_over(
    native: SimpleNamespace, manager: Any, first: int, reserve: Callable[..., Any], host: str
) -> None:
    other = reserve(native.PortManager(), 0)
    reserve(manager, 1)
    last = first + 1
    for asking in (manager, other):
        assert finish(asking.find_available_port(first, last, host)) is None
        assert finish(asking.find_available_port(first, last + 1, host)) == first + 2
    other.release_all_ports()
    assert finish(manager.find_available_port(first, last, host)) == first
    manager.release_port("service 1")
    assert finish(other.find_available_port(last, last, host)) == last


def test_what_a_caller_took_out_is_found(
    manager: Any, first: int, reserve: Callable[..., Any]
) -> None:
    reserve(manager, 0, 1)
    manager.allocated_ports.pop("service 0")
    assert finish(manager.find_available_port(first, first + 1)) == first
    manager.allocated_ports = {}
    assert finish(manager.find_available_port(first + 1, first + 1)) == first + 1


def test_what_was_found_is_not_held(
    native: SimpleNamespace, manager: Any, first: int, reserve: Callable[..., Any]
) -> None:
    assert finish(manager.find_available_port(first)) == first
    assert finish(manager.find_available_port(first)) == first
    reserve(native.PortManager(), 0)
    with socket.socket() as strict:
        strict.bind(("127.0.0.1", first))


@pytest.mark.parametrize("asked", [False, True], ids=["probe", "override"])
def test_garbage_holds_nothing(
    native: SimpleNamespace, manager: Any, first: int, reserve: Callable[..., Any], asked: bool
) -> None:
    gc.disable()
    try:
        lost = reserve(native.PortManager(), 0)
        lost.itself = lost
        del lost
        if asked:

            async def free(port: int) -> bool:
                return True

            manager.is_port_available = free
        assert finish(manager.find_available_port(first, first)) == first
    finally:
        gc.enable()


def test_leaves_no_descriptors(manager: Any, first: int, occupy: Occupy) -> None:
    occupy(0, 1)
    finish(manager.find_available_port(first))
    before = set(os.listdir("/proc/self/fd"))
    for host in ("127.0.0.1", "::1", "", "192.0.2.1"):
        finish(manager.find_available_port(first, first + 1, host))
        finish(manager.find_available_port(first, first + 3, host))
    assert set(os.listdir("/proc/self/fd")) == before


async def test_a_long_search(manager: Any) -> None:
    """Nobody's address: every port of the machine is tried."""
    assert await manager.find_available_port(1, 65535, "192.0.2.1") is None
