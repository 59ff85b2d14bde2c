"""allocate_port: what a configuration may say, and what comes of one that is not well."""

import enum
import re
import socket
from collections import UserList, namedtuple
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
from comparing import finish


@pytest.fixture(scope="module")
def implementation(native: SimpleNamespace) -> SimpleNamespace:
    """The extension alone."""
    return native


@pytest.fixture
def first(port_block: Callable[[int], int]) -> int:
    """The first of three free ports."""
    return port_block(3)


@pytest.fixture
def manager(make_manager: Any) -> Any:
    """A manager without configurations."""
    return make_manager()


Pair = namedtuple("Pair", "low high")


class Numbers(enum.IntEnum):
    """Numbers with names."""

    ZERO = 0
    FIVE = 5


# ---- what is fine ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [tuple, list, lambda pair: Pair(*pair), UserList],
    ids=["tuple", "list", "named", "user"],
)
def test_forms_of_a_range(manager: Any, native: Any, first: int, make: Callable[..., Any]) -> None:
    pair = make((first + 1, first + 2))
    for name in "abc":
        manager.port_configs[name] = native.PortConfig(name, first, pair)
    ports = [finish(manager.allocate_port(name)).allocated_port for name in "abc"]
    assert ports == [first, first + 1, first + 2]


def test_numbers_of_other_types(manager: Any, native: Any, first: int) -> None:
    class Index:
        def __index__(self) -> int:
            return first

    port, end = Index(), enum.IntEnum("End", {"LAST": first + 1}).LAST  # type: ignore[attr-defined]
    for name in "ab":
        manager.port_configs[name] = native.PortConfig(name, port, (port, end))
    allocation = finish(manager.allocate_port("a"))
    # As configured, without coercion.
    assert allocation.requested_port is port
    assert (allocation.allocated_port, type(allocation.allocated_port)) == (first, int)
    assert allocation.message == f"Allocated default port {first}"
    assert finish(manager.allocate_port("b")).allocated_port == first + 1


def test_whatever_has_the_attributes(manager: Any, first: int) -> None:
    class Slotted:
        __slots__ = ("default_port", "range")

    slotted: Any = Slotted()
    slotted.default_port, slotted.range = first + 1, None
    configs = {
        "namespace": SimpleNamespace(default_port=first, range=None),
        "slotted": slotted,
        "mock": Mock(default_port=first, range=(first, first + 2)),
    }
    manager.port_configs = configs
    ports = {name: finish(manager.allocate_port(name)).allocated_port for name in configs}
    assert ports == {"namespace": first, "slotted": first + 1, "mock": first + 2}


def test_name_is_the_key(manager: Any, native: Any, first: int) -> None:
    manager.port_configs["key"] = native.PortConfig("another name", first)
    allocation = finish(manager.allocate_port("key"))
    assert (allocation.service, allocation.status) == ("key", "allocated")
    assert finish(manager.allocate_port("another name")).status == "error"


def test_configuration_is_read_at_each_attempt(manager: Any, native: Any, first: int) -> None:
    config = manager.port_configs["api"] = native.PortConfig("api", -1)
    assert finish(manager.allocate_port("api")).status == "error"
    config.default_port = first
    assert finish(manager.allocate_port("api")).status == "allocated"


def named(value: Any) -> str:
    """A name for a test, the same in each process: without addresses."""
    return re.sub(" at 0x[0-9a-f]+| id='[0-9]+'", "", repr(value))


# ---- what is not ------------------------------------------------------------------------------

BAD_RANGES: dict[str, Any] = {
    "reversed": (5001, 5000),
    "one": (5000,),
    "three": (5000, 5001, 5002),
    "none": (),
    "list of three": [5000, 5001, 5002],
    "text": "ab",
    "digits": "5000-5010",
    "bytes": b"ab",
    "bytearray": bytearray(b"ab"),
    "number": 5000,
    "float": 5000.5,
    "bool": False,
    "strings": ("5000", "5001"),
    "floats": (5000.0, 5001.0),
    "nothing at the end": (5000, None),
    "negative": (-1, 5000),
    "zero": (0, 5000),
    "too large": (5000, 65536),
    "huge": (5000, 10**30),
    "set": {5000, 5001},
    "dict": {0: 5000, 1: 5001},
    "iterator": iter((5000, 5001)),
    "range": range(5000, 5010),
    "nested": ((5000, 5001), (5002, 5003)),
    "object": object(),
}
BAD_PORTS = [
    -1,
    65536,
    2**31,
    2**64,
    -(10**30),
    None,
    "5000",
    5000.0,
    [5000],
    b"5000",
    1j,
    object(),
]


@pytest.mark.parametrize("name", BAD_RANGES)
def test_bad_range(manager: Any, native: Any, first: int, name: str) -> None:
    value = BAD_RANGES[name]
    config = manager.port_configs["my api"] = native.PortConfig("my api", first, value)
    allocation = finish(manager.allocate_port("my api"))
    text = allocation.message
    assert allocation == native.PortAllocation("my api", first, 0, "error", text)
    assert "'my api'" in text
    assert "range" in text
    assert repr(value) in text
    assert manager.allocated_ports == {"my api": allocation}
    assert manager.get_allocated_ports() == {}
    config.range = None
    assert finish(manager.allocate_port("my api")).status == "allocated"


@pytest.mark.parametrize("value", BAD_PORTS, ids=named)
def test_bad_port(manager: Any, native: Any, first: int, value: Any) -> None:
    config = manager.port_configs["my api"] = native.PortConfig("my api", value, (first, first))
    allocation = finish(manager.allocate_port("my api"))
    text, requested = allocation.message, value if isinstance(value, int) else 0
    assert allocation == native.PortAllocation("my api", requested, 0, "error", text)
    assert "'my api'" in text
    assert "default_port" in text
    assert repr(value) in text
    assert manager.allocated_ports == {"my api": allocation}
    config.default_port = first
    assert finish(manager.allocate_port("my api")).status == "allocated"


def raising(error: type[BaseException]) -> Any:
    """An object each of whose attributes raises."""

    class Raising:
        def __getattribute__(self, name: str) -> Any:
            if name.startswith("__"):
                return super().__getattribute__(name)
            raise error(f"from {name}")

    return Raising()


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (5, "default_port"),
        (None, "default_port"),
        ("text", "default_port"),
        ({}, "default_port"),
        ([], "default_port"),
        (object(), "default_port"),
        (SimpleNamespace(), "default_port"),
        (SimpleNamespace(default_port=5000), "range"),
        (SimpleNamespace(default_port="x", range=None), "default_port"),
        (Mock(), "default_port"),
        (Mock(default_port=5000), "range"),
        (MagicMock(default_port=5000), "range"),
        (raising(AttributeError), "default_port"),
        (raising(ValueError), "default_port"),
        (raising(OSError), "default_port"),
    ],
    ids=named,
)
def test_what_is_no_configuration(manager: Any, config: Any, field: str) -> None:
    manager.port_configs["my api"] = config
    allocation = finish(manager.allocate_port("my api"))
    assert (allocation.status, allocation.allocated_port) == ("error", 0)
    assert "'my api'" in allocation.message
    assert field in allocation.message
    assert manager.allocated_ports == {"my api": allocation}


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError, StopIteration, RecursionError])
@pytest.mark.parametrize("field", ["default_port", "range"])
def test_numbers_that_raise(manager: Any, first: int, error: type[Exception], field: str) -> None:
    class Index:
        def __index__(self) -> int:
            raise error("from the index")

        def __repr__(self) -> str:
            return "<a bad number>"

    values: dict[str, Any] = {"default_port": first, "range": None}
    values[field] = Index() if field == "default_port" else (first, Index())
    manager.port_configs["my api"] = SimpleNamespace(**values)
    allocation = finish(manager.allocate_port("my api"))
    assert allocation.status == "error"
    for part in ("'my api'", field, "<a bad number>"):
        assert part in allocation.message


def test_ranges_that_raise(manager: Any, first: int) -> None:
    class Range:
        def __len__(self) -> int:
            raise ZeroDivisionError

        def __getitem__(self, index: int) -> int:
            raise ZeroDivisionError

    class Uneven(Range):
        def __len__(self) -> int:
            return 2

    for value in (Range(), Uneven()):
        manager.port_configs["my api"] = SimpleNamespace(default_port=first, range=value)
        allocation = finish(manager.allocate_port("my api"))
        assert allocation.status == "error"
        assert "range" in allocation.message
        assert repr(value) in allocation.message


def test_values_without_a_repr(manager: Any, first: int) -> None:
    class Silent:
        def __repr__(self) -> str:
            raise ZeroDivisionError

    for config in (
        SimpleNamespace(default_port=Silent(), range=None),
        SimpleNamespace(default_port=first, range=Silent()),
        SimpleNamespace(default_port=first, range=(first, Silent())),
        SimpleNamespace(default_port=10**5000, range=None),
    ):
        manager.port_configs["my api"] = config
        allocation = finish(manager.allocate_port("my api"))
        assert allocation.status == "error"
        assert "'my api'" in allocation.message


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_is_no_exception_passes(manager: Any, error: type[BaseException]) -> None:
    manager.port_configs["api"] = raising(error)
    with pytest.raises(error, match="from default_port"):
        finish(manager.allocate_port("api"))
    assert manager.allocated_ports == {}


@pytest.mark.parametrize("config", [5, None, SimpleNamespace(), raising(ValueError)], ids=named)
def test_managers_configuration_that_is_none(
    manager: Any, native: Any, first: int, config: Any
) -> None:
    manager.port_configs["api"] = native.PortConfig("api", first)
    manager.config = config
    allocation = finish(manager.allocate_port("api"))
    assert (allocation.status, allocation.requested_port) == ("error", first)
    assert "enable_auto_allocation" in allocation.message
    del manager.config
    allocation = finish(manager.allocate_port("api"))
    assert allocation.status == "error"
    assert "config" in allocation.message


@pytest.mark.parametrize("name", [5, None, b"api", (1, 2)])
def test_names_that_are_no_text(manager: Any, native: Any, first: int, name: Any) -> None:
    manager.port_configs[name] = native.PortConfig("api", first)
    allocation = finish(manager.allocate_port(name))
    assert (allocation.service, allocation.status) == (name, "error")
    assert repr(name) in allocation.message
    assert manager.allocated_ports == {name: allocation}
    manager.release_port(name)
    assert manager.allocated_ports == {}


@pytest.mark.parametrize("name", [[], {}, bytearray(b"api")])
def test_names_that_cannot_be_keys(manager: Any, name: Any) -> None:
    with pytest.raises(TypeError, match="unhashable"):
        finish(manager.allocate_port(name))


def test_names_that_are_strings_by_inheritance(manager: Any, native: Any, first: int) -> None:
    class Services(str, enum.Enum):
        API = "api"

    manager.port_configs["api"] = native.PortConfig("api", first)
    allocation = finish(manager.allocate_port(Services.API))
    assert allocation.status == "allocated"
    assert finish(manager.allocate_port("api")) is allocation
    assert manager.get_port(Services.API) == first
    manager.release_port("api")
    assert manager.get_port(Services.API) is None


def test_attribute_that_is_gone(manager: Any) -> None:
    del manager.port_configs
    with pytest.raises(AttributeError, match="port_configs"):
        finish(manager.allocate_port("api"))
    manager.port_configs = None
    with pytest.raises(TypeError):
        finish(manager.allocate_port("api"))


def test_ports_of_bad_configurations_are_not_bound(
    manager: Any, native: Any, first: int, free_port: int
) -> None:
    with ExitStack() as stack:
        stack.enter_context(socket.create_server(("127.0.0.1", first)))
        manager.port_configs["api"] = native.PortConfig("api", first, (free_port, free_port - 1))
        assert finish(manager.allocate_port("api")).status == "error"
    assert finish(native.PortManager().find_available_port(first, first)) == first
