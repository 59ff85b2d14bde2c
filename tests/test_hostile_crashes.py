"""What must not bring the interpreter down; each in a process of its own."""

import asyncio
import collections
import functools
import warnings
from types import SimpleNamespace
from typing import Any

import isolated
import pytest
from comparing import finish

import portmanager
from portmanager import PortAllocation, PortManager


def outcome(call: Any, *arguments: Any) -> str:
    """The name of the exception that comes of it, or that of the result's type."""
    try:
        result = call(*arguments)
        if hasattr(result, "send"):
            result = finish(result)
    except Exception as error:
        return type(error).__name__
    return type(result).__name__


def run(function: Any, *arguments: Any) -> Any:
    return isolated.run(function, *arguments, env={"PYTHONMALLOC": "debug"})


# ---- mappings ------------------------------------------------------------------------------

ODD_ITEMS: dict[str, Any] = {
    "numbers": [1, 2],
    "empty": [()],
    "one": [("api",)],
    "lists": [["api", None]],
    "text": "text",
    "none": [None],
}
READERS = (
    "get_allocated_ports",
    "get_environment_variables",
    "get_port_status",
    "release_all_ports",
    "allocate_all_ports",
)


def read_odd_items(name: str) -> dict[str, str]:
    class Odd(collections.UserDict):  # type: ignore[type-arg]
        def items(self) -> Any:
            return ODD_ITEMS[kind]

    outcomes = {}
    for kind in ODD_ITEMS:
        manager = PortManager()
        manager.allocated_ports = manager.port_configs = Odd()  # type: ignore[assignment]
        outcomes[kind] = outcome(getattr(manager, name))
    return outcomes


@pytest.mark.parametrize("name", READERS)
def test_mapping_with_odd_items(name: str) -> None:
    outcomes = run(read_odd_items, name)
    assert set(outcomes.values()) <= {"TypeError", "ValueError", "AttributeError"}, outcomes


# ---- the defaults --------------------------------------------------------------------------


def clear_the_defaults_meanwhile() -> list[str]:
    class Clearing(str):
        def __hash__(self) -> int:
            portmanager.DEFAULT_PORT_CONFIGS.clear()
            return 1

    portmanager.DEFAULT_PORT_CONFIGS[0].service = Clearing("name")
    return [outcome(PortManager), outcome(PortManager)]


def test_defaults_that_are_cleared_meanwhile() -> None:
    first, second = run(clear_the_defaults_meanwhile)
    assert first in {"PortManager", "RuntimeError", "IndexError"}
    assert second == "PortManager"


def drop_a_default_meanwhile() -> str:
    class Dropping(portmanager.PortConfig):
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            portmanager.DEFAULT_PORT_CONFIGS.clear()
            return {"service": "dropped"}

    portmanager.DEFAULT_PORT_CONFIGS[:] = [Dropping("dropped", 5000)]
    return outcome(PortManager)


def test_default_that_is_dropped_meanwhile() -> None:
    assert run(drop_a_default_meanwhile)


def use_odd_defaults(kind: str) -> str:
    odd: Any = functools.partial(print)
    if kind == "number":
        odd = 5
    elif kind == "namespace":
        odd = SimpleNamespace(service="odd")
    elif kind == "partial":
        odd.service = "odd"
    elif kind == "function":
        odd = lambda: None  # noqa: E731
        odd.service = "odd"
    portmanager.DEFAULT_PORT_CONFIGS.append(odd)
    try:
        manager = PortManager()
    except (TypeError, AttributeError) as error:
        return type(error).__name__
    repr(manager.port_configs)
    return outcome(manager.port_configs["odd"])


@pytest.mark.parametrize("kind", ["number", "namespace", "partial", "function"])
def test_defaults_that_are_no_configurations(kind: str) -> None:
    assert run(use_odd_defaults, kind)


# ---- recursion -----------------------------------------------------------------------------


def recur(method: str, override: str) -> str:
    manager: Any = PortManager()
    setattr(manager, override, getattr(manager, method))
    calls = {
        "find_available_port": lambda: manager.find_available_port(5000),
        "wait_for_port": lambda: manager.wait_for_port(5000, timeout=0),
        "allocate_port": lambda: manager.allocate_port("vite-dev-server"),
    }
    return outcome(calls[method]) + outcome(calls["allocate_port"])


@pytest.mark.parametrize("method", ["find_available_port", "wait_for_port"])
def test_methods_in_the_place_of_one_another(method: str) -> None:
    assert run(recur, method, "is_port_available") == "RecursionError" * 2


def recur_through_python() -> str:
    manager: Any = PortManager()

    async def again(port: int) -> Any:
        return await manager.find_available_port(port)

    manager.is_port_available = again
    return outcome(manager.find_available_port, 5000)


def test_override_without_an_end() -> None:
    assert run(recur_through_python) == "RecursionError"


def nest(kind: str) -> str:
    warnings.simplefilter("ignore")
    thing: Any = None
    for _ in range(30_000):
        if kind == "coroutines":
            thing = PortManager.is_port_available(MANAGER, thing)
        elif kind == "managers":
            inner, thing = thing, PortManager.__new__(PortManager)
            thing.inner = inner
        else:
            thing = PortAllocation("api", thing, 0, "error")
    answer = outcome(repr, thing)
    del thing
    return answer


MANAGER = PortManager()


@pytest.mark.parametrize("kind", ["coroutines", "managers", "records"])
def test_deep_nesting(kind: str) -> None:
    assert run(nest, kind) in {"str", "RecursionError"}


# ---- what others return ----------------------------------------------------------------------


def name_with_an_odd_upper() -> list[str]:
    class Text(str):
        def upper(self) -> Any:
            return result

    result: Any

    class Key(str):
        __hash__ = str.__hash__

        def __str__(self) -> str:
            return Text("key")

    manager = PortManager()
    manager.allocated_ports = {Key("api"): PortAllocation("api", 1, 2, "allocated")}
    outcomes = []
    for odd in ("x", 5, None, b"X"):
        result = odd
        outcomes.append(outcome(manager.get_environment_variables))
    return outcomes


def test_name_with_an_odd_upper() -> None:
    first, *others = run(name_with_an_odd_upper)
    assert first == "dict"
    assert set(others) <= {"TypeError", "dict"}


async def odd_lookup(length: int | None) -> str:
    loop = asyncio.get_running_loop()

    def in_executor(*_: Any) -> Any:
        future = loop.create_future()
        future.set_result(None if length is None else b"\x02" * length)
        return future

    loop.run_in_executor = in_executor  # type: ignore[method-assign, assignment]
    names = []
    for method in ("is_port_available", "find_available_port", "wait_for_port"):
        arguments = {"timeout": 0} if method == "wait_for_port" else {}
        try:
            call = getattr(PortManager(), method)
            names.append(type(await call(5000, host="some.name", **arguments)).__name__)
        except Exception as error:
            names.append(type(error).__name__)
    return " ".join(names)


@pytest.mark.parametrize("length", [None, 1, 28 * 33, 10**6])
def test_loop_whose_lookups_are_odd(length: int | None) -> None:
    for name in run(odd_lookup, length).split():
        assert name in {"bool", "NoneType", "TypeError", "ValueError", "OSError"}
