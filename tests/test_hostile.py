"""Values of all kinds in all places, found by hypothesis: no crash, no leak, no odd exception.

HYPOTHESIS_PROFILE=long looks for minutes rather than seconds.
"""

import contextlib
import copy
import functools
import gc
import logging
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hostile
import pytest
from hostile import ATTRIBUTES, DICTS, EXPECTED, NAMES, OVERRIDES, PORTS, RECORDS, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Python's own opinion of what some of the objects do.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
settings.register_profile("long", max_examples=100_000)
QUICK = {"test_any_sequence": 250, "test_any_argument": 400, "test_any_field": 250}


def effort(test: Callable[..., None]) -> Callable[..., None]:
    """As many examples as the profile says."""
    long = os.environ.get("HYPOTHESIS_PROFILE") == "long"
    examples = settings.get_profile("long").max_examples if long else QUICK[test.__name__]
    slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, suppress_health_check=slow)(test)


@pytest.fixture(autouse=True, scope="module")
def little_garbage() -> Iterator[None]:
    """Each example freezes what stays, so that its many collections need not look at it."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def first(port_block: Callable[[int], int]) -> int:
    """The first of the ports that are fought for."""
    return port_block(PORTS)


def in_ascii(record: logging.LogRecord) -> bool:
    record.msg, record.args = ascii(record.getMessage()), None
    if record.exc_info:
        record.exc_text = ascii(logging.Formatter().formatException(record.exc_info))
    return True


@pytest.fixture(autouse=True, scope="module")
def plain_log() -> Iterator[None]:
    """Pytest keeps the log, but xdist cannot carry all of the names in it."""
    loggers = [logging.getLogger(name) for name in ("portmanager", "asyncio")]
    for logger in loggers:
        logger.addFilter(in_ascii)
    yield
    for logger in loggers:
        logger.removeFilter(in_ascii)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths lead nowhere of importance."""
    monkeypatch.chdir(tmp_path)


ACTIONS = st.sampled_from(
    [
        *(f"raise {name}" for name in ("Boom", "Stop", "StopIteration", "TypeError")),
        *(f"return {name}" for name in ("None", "True", "text", "port", "huge", "default")),
        *(f"call {name}" for name in ("release_all_ports", "release_port", "cleanup")),
        *(f"call {name}" for name in ("allocate_port", "get_port_status", "allocate_all_ports")),
        *(f"delete {name}" for name in ATTRIBUTES),
        *("init", "clear", "forget", "collect"),
    ]
)
# Recipes, made into objects for each example's world.
Recipe = Callable[[World], Any]


def constant(value: Any) -> Recipe:
    return lambda world: copy.copy(value)


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70_000),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30, -(10**400), 10**5000]),
    st.floats(),
    st.text(st.characters(), max_size=8),
    st.sampled_from(["\ud800", "a\0b", "127.0.0.1", "::1", "", *NAMES, "allocated", "in_use"]),
    st.binary(max_size=4),
    st.lists(st.integers(0, 70_000), max_size=3),
    st.tuples(st.integers(0, 70_000), st.integers(0, 70_000)),
    st.sampled_from([object(), SimpleNamespace(), ..., int, len, 1j]),
).map(constant)
special = [*hostile.DEFAULTS, "__getattr__"]
objects = st.dictionaries(st.sampled_from(special), ACTIONS, min_size=1, max_size=4).map(
    lambda actions: lambda world: hostile.Hostile(world, actions)
)
texts = st.tuples(
    st.sampled_from([*NAMES, "", "127.0.0.1", "allocated"]),
    st.dictionaries(st.sampled_from(hostile.TEXT_METHODS), ACTIONS, min_size=1, max_size=3),
).map(lambda pair: lambda world: hostile.hostile_text(world, *pair))
ports = st.integers(0, PORTS - 1).map(lambda offset: lambda world: world.first + offset)
names = st.sampled_from(NAMES).map(constant)
value = st.one_of(plain, objects, texts, ports)


def make_all(world: World, recipes: Any) -> list[Any]:
    return [recipe(world) for recipe in recipes]


def record_of(number: int, recipes: Any) -> Recipe:
    cls: Any = RECORDS[number]
    needed = len(cls.__match_args__)
    return lambda world: cls(*make_all(world, recipes)[:needed])


record = st.builds(record_of, st.integers(0, 3), st.lists(value, min_size=5, max_size=5))
allocation = st.builds(
    lambda port, status: lambda world: RECORDS[0]("x", 1, port(world), status(world)),
    value,
    st.one_of(st.just(constant("allocated")), value),
)


def mapping_of(items: Any, action: str) -> Recipe:
    def make(world: World) -> Any:
        result: Any = hostile.HostileDict() if action else {}
        for key, entry in items:
            with contextlib.suppress(*EXPECTED):
                dict.__setitem__(result, key(world), entry(world))
        if action:
            result.world, result.action = world, action
        return result

    return make


entries = st.tuples(st.one_of(names, value), st.one_of(record, allocation, value))
mapping = st.builds(mapping_of, st.lists(entries, max_size=4), st.one_of(st.just(""), ACTIONS))

SYNC = (
    "get_port",
    "get_allocated_ports",
    "release_port",
    "release_all_ports",
    "get_environment_variables",
    "stop_port_monitoring",
)
ASYNC = (
    "is_port_available",
    "find_available_port",
    "allocate_port",
    "allocate_all_ports",
    "get_port_status",
    "wait_for_port",
    "cleanup",
)


def override_of(action: str, answer: Recipe, kind: str) -> Recipe:
    def make(world: World) -> Any:
        async def override(*arguments: Any) -> Any:
            return world.act(action, answer(world))

        def plainly(*arguments: Any) -> Any:
            return world.act(action, answer(world))

        return {"async": override, "plain": plainly, "value": answer(world)}[kind]

    return make


override = st.builds(override_of, ACTIONS, value, st.sampled_from(["async", "plain", "value"]))
services = st.one_of(names, names, value)
step = st.one_of(
    st.tuples(st.just("allocate"), names),
    st.tuples(
        st.just("call"), st.sampled_from(SYNC + ASYNC), services, st.lists(value, max_size=3)
    ),
    st.tuples(st.just("set"), st.sampled_from(DICTS), st.one_of(mapping, value)),
    st.tuples(st.just("set"), st.just("config"), st.one_of(record, value)),
    st.tuples(st.just("set"), st.sampled_from(OVERRIDES), override),
    st.tuples(st.just("delete"), st.sampled_from(ATTRIBUTES + OVERRIDES)),
    st.tuples(
        st.just("put"), st.sampled_from(DICTS), services, st.one_of(record, allocation, value)
    ),
    # What is no Exception comes out of a log handler sooner or later, so not in here.
    st.tuples(st.just("log"), ACTIONS.filter(lambda action: action != "raise Stop")),
    st.tuples(st.just("init"), st.one_of(record, value)),
    st.tuples(st.just("reset")),
)


def perform(world: World, kind: str, *details: Any) -> None:
    """One step; whatever it raises is for the caller to judge."""
    manager = world.manager
    if kind == "allocate":
        world.call("allocate_port", details[0](world))
    elif kind == "call":
        name, service, more = details
        world.call(name, service(world), *make_all(world, more))
    elif kind == "set":
        setattr(manager, details[0], details[1](world))
    elif kind == "delete":
        manager.__dict__.pop(details[0], None)
    elif kind == "put":
        attribute, key, entry = details
        with contextlib.suppress(Exception):  # what other types say to that is theirs
            getattr(manager, attribute)[key(world)] = entry(world)
    elif kind == "init":
        manager.__init__(details[0](world))
    elif kind == "reset":
        world.reset()


@contextlib.contextmanager
def worlds(first: int, count: int = 1) -> Iterator[list[World]]:
    """Worlds to do harm in; afterwards none of their managers holds a port."""
    gc.collect()
    gc.freeze()  # hypothesis remembers more with each example
    made = [World(first) for _ in range(count)]
    with pytest.MonkeyPatch.context() as patch, hostile.unraisable(patch):
        try:
            yield made
            for world in made:
                world.release()
            hostile.check_nothing_is_held(first)
        finally:
            for world in made:
                world.give_up()


@given(steps=st.lists(step, min_size=1, max_size=12))
@effort
def test_any_sequence(steps: list[Any], first: int) -> None:
    with worlds(first) as (world,), contextlib.ExitStack() as stack:
        for kind, *details in steps:
            if kind == "log":
                listen = functools.partial(world.act, details[0], None)
                stack.enter_context(hostile.log_handler(listen))
            else:
                with contextlib.suppress(*EXPECTED):
                    perform(world, kind, *details)


@given(
    name=st.sampled_from(SYNC + ASYNC),
    arguments=st.lists(value, min_size=1, max_size=4),
    allocated=st.booleans(),
)
@effort
def test_any_argument(name: str, arguments: list[Any], allocated: bool, first: int) -> None:
    with worlds(first) as (world,):
        if allocated:
            world.call("allocate_port", "api")
        with contextlib.suppress(*EXPECTED):
            world.call(name, *make_all(world, arguments))


@given(number=st.integers(0, 3), fields=st.lists(st.one_of(value, record), min_size=5, max_size=5))
@effort
def test_any_field(number: int, fields: list[Any], first: int) -> None:
    with worlds(first, 2) as (one, other):
        made, again = (record_of(number, fields)(world) for world in (one, other))
        names_of = made.__match_args__
        before = [made.__dict__[name] for name in names_of]
        for use in (repr, str, hash, bool, copy.copy, copy.deepcopy, pickle.dumps, vars, dir):
            with contextlib.suppress(*EXPECTED, pickle.PicklingError):
                use(made)
        for left, right in ((made, again), (again, made), (made, made), (made, 5)):
            with contextlib.suppress(*EXPECTED):
                assert isinstance(left == right, bool)
        assert all(getattr(made, name) is was for name, was in zip(names_of, before, strict=True))
