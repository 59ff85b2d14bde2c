"""Sequences of operations, found by hypothesis, do the same to a manager and to its twin."""

# The classes under test are not known before the tests run.
# mypy: allow-subclassing-any

import copy
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import twin
from comparing import RELAXED, finish
from hypothesis import given, settings
from hypothesis import strategies as st

PORTS = 8
# Numbers that callers write into allocations; no configuration leads to them.
WRITTEN = (0, 7, 9)
NAMES = ("api", "vite-dev-server", "9 lives", "", "straße", "ÄÖ.x", "日本", "a_b", "a-b", "line\n")

BAD: list[tuple[str, Any]] = [
    ("default_port", -1),
    ("default_port", 65536),
    ("default_port", "80"),
    ("default_port", None),
    ("default_port", 80.0),
    ("range", (9000,)),
    ("range", (9000, 9001, 9002)),
    ("range", "ab"),
    ("range", 9000),
    ("range", (9002, 9001)),
    ("range", (9000, 65536)),
    ("range", ("9000", "9001")),
]


@pytest.fixture(scope="module")
def first(port_block: Callable[[int], int]) -> int:
    """The first of the ports that are handed out here."""
    return port_block(PORTS)


class World:
    """A manager for which a set of numbers says which ports are busy."""

    def __init__(self, implementation: Any, first: int) -> None:
        self.implementation, self.first = implementation, first
        self.busy: set[int] = set()
        self.asked: list[int] = []
        world = self

        class Manager(implementation.PortManager):
            async def is_port_available(self, port: int) -> bool:
                world.asked.append(port)
                return port not in world.busy

        self.manager = Manager(implementation.PortManagerConfig(max_retries=0))
        self.manager.port_configs.clear()
        # Another manager, which sees what is reserved.
        self.outsider = Manager()

    def do(self, operation: str, *arguments: Any) -> Any:
        return getattr(self, operation)(*arguments)

    def configure(
        self, name: str, port: int, ends: tuple[int, int] | None, required: bool, as_list: bool
    ) -> None:
        pair = tuple(self.first + end for end in sorted(ends)) if ends else None
        if pair and as_list:
            pair = list(pair)  # type: ignore[assignment]
        self.manager.port_configs[name] = self.implementation.PortConfig(
            name, self.first + port, pair, None, required
        )

    def misconfigure(self, name: str, field: str, value: Any) -> Any:
        config = self.implementation.PortConfig(name, self.first)
        self.manager.port_configs[name] = config
        setattr(config, field, value)
        return self.allocate(name)

    def forget(self, name: str) -> None:
        self.manager.port_configs.pop(name, None)

    def replace_configs(self) -> None:
        self.manager.port_configs = dict(reversed(self.manager.port_configs.items()))

    def toggle(self, port: int) -> None:
        self.busy ^= {self.first + port}

    def allocate(self, name: str) -> Any:
        got = finish(self.manager.allocate_port(name))
        assert got is self.manager.allocated_ports[name]
        return settled(got)

    def allocate_all(self) -> Any:
        got = finish(self.manager.allocate_all_ports())
        return [(name, settled(allocation)) for name, allocation in got.items()]

    def release(self, name: str) -> Any:
        return self.manager.release_port(name)

    def release_all(self) -> Any:
        return self.manager.release_all_ports()

    def find(self, start: int, end: int) -> Any:
        found = finish(self.manager.find_available_port(self.first + start, self.first + end))
        return found and found - self.first

    def status(self) -> Any:
        got = finish(self.manager.get_port_status())
        return [(entry.port, entry.service, entry.in_use) for entry in got]

    def write(self, name: str, port: int, status: str) -> None:
        self.manager.allocated_ports[name] = self.implementation.PortAllocation(
            name, 1, port, status, "written"
        )

    def edit(self, name: str, changes: dict[str, Any]) -> None:
        if entry := self.manager.allocated_ports.get(name):
            for field, value in changes.items():
                setattr(entry, field, value)

    def delete(self, name: str) -> None:
        self.manager.allocated_ports.pop(name, None)

    def clear(self) -> None:
        self.manager.allocated_ports.clear()

    def replace_entries(self, replacement: Callable[[Any], Any]) -> None:
        self.manager.allocated_ports = replacement(self.manager.allocated_ports)

    def seen(self) -> Any:
        """Everything that callers can see of the manager."""
        manager = self.manager
        names = [*NAMES, *manager.allocated_ports]
        asked, self.asked = self.asked, []
        return {
            "allocated": list(manager.get_allocated_ports().items()),
            "ports": [manager.get_port(name) for name in names],
            "variables": list(manager.get_environment_variables().items()),
            "entries": [
                (name, dataclasses.astuple(entry))
                for name, entry in manager.allocated_ports.items()
            ],
            "free": [port for port in range(PORTS) if self.find(port, port) is not None],
            "asked": asked,
        }


def settled(allocation: Any) -> tuple[Any, ...]:
    """An outcome as a tuple; of a bad configuration, what is left open is the same for both."""
    if allocation.status == "error" and not allocation.message.startswith("No port configuration"):
        allocation.requested_port, allocation.message = 0, "names service, field and value"
    return dataclasses.astuple(allocation)


offset = st.integers(0, PORTS - 1)
# Most operations should meet again at the same few services.
name = st.sampled_from(NAMES[:2]) | st.sampled_from(NAMES)
bad = st.sampled_from(BAD)
changes = st.sampled_from(
    [
        {"status": "error"},
        {"status": "in_use", "message": "written"},
        {"message": "written"},
        {"requested_port": 1},
        {"allocated_port": 7, "status": "allocated"},
        {"allocated_port": 9},
    ]
)
configuring = st.tuples(
    st.just("configure"),
    name,
    offset,
    st.none() | st.tuples(offset, offset),
    st.booleans(),
    st.booleans(),
)
operation = st.one_of(
    configuring,
    configuring,
    st.tuples(st.just("misconfigure"), name, bad).map(lambda op: (op[0], op[1], *op[2])),
    st.tuples(st.just("forget"), name),
    st.just(("replace_configs",)),
    st.tuples(st.just("toggle"), offset),
    st.tuples(st.just("allocate"), name),
    st.tuples(st.just("allocate"), name),
    st.just(("allocate_all",)),
    st.tuples(st.just("release"), name),
    st.just(("release_all",)),
    st.tuples(st.just("find"), offset, offset),
    st.just(("status",)),
    st.tuples(
        st.just("write"),
        name,
        st.sampled_from(WRITTEN),
        st.sampled_from(["allocated", "in_use", "error", "anything"]),
    ),
    st.tuples(st.just("edit"), name, changes),
    st.tuples(st.just("delete"), name),
    st.just(("clear",)),
    st.tuples(
        st.just("replace_entries"),
        st.sampled_from([dict, copy.deepcopy, lambda old: dict(reversed(old.items()))]),
    ),
)


@contextmanager
def worlds(implementation: Any, first: int) -> Iterator[tuple[World, World]]:
    """The world of the implementation and that of the twin, cleaned up afterwards."""
    ours, theirs = World(implementation, first), World(twin, first)
    try:
        yield ours, theirs
    finally:
        ours.manager.release_all_ports()


@settings(RELAXED, max_examples=250)
@given(st.lists(configuring, max_size=4), st.lists(operation, max_size=20))
def test_same_as_the_twin_after_every_step(
    implementation: Any, first: int, start: list[Any], operations: list[Any]
) -> None:
    with worlds(implementation, first) as (ours, theirs):
        for step in (*start, *operations):
            assert ours.do(*step) == theirs.do(*step), step
            assert ours.seen() == theirs.seen(), step


@pytest.mark.parametrize(("field", "value"), BAD)
def test_bad_configurations(implementation: Any, first: int, field: str, value: Any) -> None:
    with worlds(implementation, first) as (world, _):
        config = implementation.PortConfig("api", first)
        setattr(config, field, value)
        world.manager.port_configs["api"] = config
        got = finish(world.manager.allocate_port("api"))
        assert (got.service, got.allocated_port, got.status) == ("api", 0, "error")
        assert all(part in got.message for part in ("api", field, repr(value))), got.message
        # Once it is put right, the service gets its port.
        world.configure("api", 0, None, False, False)
        assert world.allocate("api")[2] == first


@settings(RELAXED, max_examples=100)
@given(st.lists(configuring, max_size=4), st.lists(operation, max_size=20))
def test_reserved_is_what_is_allocated(
    native: Any, first: int, start: list[Any], operations: list[Any]
) -> None:
    """Other managers find exactly those ports that no entry of this one has."""
    world = World(native, first)
    try:
        for step in (*start, *operations):
            world.do(*step)
            held = {*world.manager.get_allocated_ports().values()}
            for port in range(first, first + PORTS):
                expected = port if port not in held | world.busy else None
                assert finish(world.outsider.find_available_port(port, port)) == expected, step
    finally:
        world.manager.release_all_ports()


@settings(RELAXED, max_examples=300)
@given(st.dictionaries(st.text(max_size=6), st.integers(1, 65535), max_size=4))
def test_environment_variables(implementation: Any, ports: dict[str, int]) -> None:
    ours, theirs = implementation.PortManager(), twin.PortManager()
    for service, port in ports.items():
        for module, manager in ((implementation, ours), (twin, theirs)):
            manager.allocated_ports[service] = module.PortAllocation(
                service, port, port, "allocated"
            )
    got = ours.get_environment_variables()
    assert list(got.items()) == list(theirs.get_environment_variables().items())
    for key in got:
        assert key.isascii()
        assert key.removesuffix("_PORT").replace("_", "A").isalnum() or key == "_PORT"
        assert key == key.upper()


def test_environment_variable_names(implementation: Any) -> None:
    manager = implementation.PortManager()
    names = {
        "python-ai-service": "PYTHON_AI_SERVICE_PORT",
        "vite.dev server": "VITE_DEV_SERVER_PORT",
        "straße": "STRASSE_PORT",
        "ñandú2": "_AND_2_PORT",
        "a=b\0c\nd": "A_B_C_D_PORT",
        "": "_PORT",
    }
    for service in names:
        manager.allocated_ports[service] = implementation.PortAllocation(service, 1, 2, "allocated")
    assert manager.get_environment_variables() == dict.fromkeys(names.values(), "2")
