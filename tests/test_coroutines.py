"""The coroutine objects by hand: the protocol, without an event loop."""

# The classes under test are not known before the tests run.
# mypy: allow-subclassing-any

import asyncio
import collections.abc
import gc
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import twin
from comparing import ASYNC_METHODS, error_of, finish, make_waiting, switch


@pytest.fixture
def make(implementation: Any) -> Iterator[Callable[[], Any]]:
    """Make coroutines that suspend once; those that a test leaves are closed."""
    made = []

    def make() -> Any:
        made.append(make_waiting(implementation.PortManager))
        return made[-1]

    yield make
    for coroutine in made:
        coroutine.close()


@pytest.fixture
def manager(make_manager: Callable[..., Any]) -> Any:
    return make_manager()


@pytest.mark.parametrize("name", ASYNC_METHODS)
def test_types_and_names(manager: Any, name: str) -> None:
    coroutine = getattr(manager, name)(*ASYNC_METHODS[name])
    assert asyncio.iscoroutine(coroutine)
    assert inspect.iscoroutine(coroutine)
    assert inspect.isawaitable(coroutine)
    assert isinstance(coroutine, collections.abc.Coroutine)
    assert isinstance(coroutine, collections.abc.Awaitable)
    assert not isinstance(coroutine, collections.abc.Iterator)
    assert not inspect.isgenerator(coroutine)
    assert not callable(coroutine)
    assert type(coroutine).__name__ == "coroutine"
    assert coroutine.__name__ == name
    assert coroutine.__qualname__ == f"PortManager.{name}"
    assert re.fullmatch(
        rf"<coroutine object PortManager\.{name} at 0x[0-9a-fA-F]+>", repr(coroutine)
    )
    assert coroutine.cr_code.co_name == name
    assert coroutine.cr_code.co_flags & inspect.CO_COROUTINE
    coroutine.close()


def test_names_can_be_changed(make: Callable[[], Any]) -> None:
    coroutine, expected = make(), make_waiting(twin.PortManager)
    expected.close()
    for name in ("__name__", "__qualname__"):
        setattr(coroutine, name, "renamed")
        assert getattr(coroutine, name) == "renamed"
        assert error_of(setattr, coroutine, name, 1) == error_of(setattr, expected, name, 1)
    assert repr(coroutine).startswith("<coroutine object renamed at 0x")


def test_no_other_way_to_make_one(make: Callable[[], Any]) -> None:
    coroutine = make()
    assert error_of(type(coroutine)) == "TypeError: cannot create 'coroutine' instances"
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Sub", (type(coroutine),), {})
    with pytest.raises(AttributeError):
        coroutine.new_attribute = 1
    coroutine.close()


def test_life_of_a_coroutine(make: Callable[[], Any]) -> None:
    coroutine = make()
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
    assert coroutine.cr_await is None
    assert coroutine.cr_frame is not None
    assert coroutine.cr_running is False
    assert coroutine.send(None) == "available 50000?"
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_SUSPENDED
    assert coroutine.cr_frame is not None
    assert coroutine.cr_running is False
    with pytest.raises(StopIteration) as stop:
        coroutine.send(False)
    assert stop.value.value is True
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert coroutine.cr_await is None
    assert coroutine.cr_frame is None
    assert coroutine.cr_running is False


def test_what_it_awaits_can_be_followed(make: Callable[[], Any]) -> None:
    coroutine = make()
    coroutine.send(None)
    chain = []
    link = coroutine
    while (link := getattr(link, "cr_await", None)) is not None:
        chain.append(getattr(link, "__qualname__", ""))
    # The extension has no helpers in between.
    assert "suspending" in chain
    assert chain[-1] == "switch"
    coroutine.close()


def test_state_while_it_runs(implementation: Any) -> None:
    manager: Any = implementation.PortManager()
    seen: list[Any] = []

    async def looking(port: int) -> bool:
        seen.append(inspect.getcoroutinestate(coroutine))
        seen.append(coroutine.cr_running)
        seen.append(error_of(coroutine.send, None))
        seen.append(error_of(coroutine.throw, ValueError("odd")))
        seen.append(error_of(coroutine.close))
        return False

    manager.is_port_available = looking
    coroutine = manager.wait_for_port(50000)
    assert finish(coroutine) is True
    executing = "ValueError: coroutine already executing"
    assert seen == [inspect.CORO_RUNNING, True, executing, executing, executing]


def test_sent_values_and_results(make: Callable[[], Any]) -> None:
    for sent, result in ((0, True), (False, True)):
        coroutine = make()
        coroutine.send(None)
        with pytest.raises(StopIteration) as stop:
            coroutine.send(sent)
        assert stop.value.value is result


def script(*steps: tuple[Any, ...]) -> Callable[[Any], list[str]]:
    """Say what each step does to a coroutine: what it returns or how it fails."""

    def play(coroutine: Any) -> list[str]:
        lines = []
        for method, *arguments in steps:
            try:
                lines.append(repr(getattr(coroutine, method)(*arguments)))
            except BaseException as error:
                lines.append(f"{type(error).__name__}: {error}")
            lines.append(inspect.getcoroutinestate(coroutine))
        return lines

    return play


START = ("send", None)
SCRIPTS: dict[str, list[tuple[Any, ...]]] = {
    "value before the start": [("send", 1), START, ("send", False)],
    "finished, then sent": [START, ("send", False), ("send", None), ("send", 1)],
    "finished, then thrown": [START, ("send", False), ("throw", ValueError("late")), ("close",)],
    "finished, then closed": [START, ("send", False), ("close",), ("close",), ("send", None)],
    "throw before the start": [("throw", ValueError("early")), START, ("close",)],
    "throw a class before the start": [("throw", KeyError), START],
    "close before the start": [("close",), ("close",), START, ("throw", ValueError("late"))],
    "throw while suspended": [START, ("throw", ValueError("now")), ("send", None)],
    "throw a class": [START, ("throw", LookupError), ("throw", LookupError)],
    "throw a StopIteration": [START, ("throw", StopIteration(3)), ("send", None)],
    "throw a StopAsyncIteration": [START, ("throw", StopAsyncIteration()), ("send", None)],
    "throw a GeneratorExit": [START, ("throw", GeneratorExit()), ("send", None)],
    "throw a KeyboardInterrupt": [START, ("throw", KeyboardInterrupt("now"))],
    "throw what is no exception": [("throw", "text"), ("throw", object), START, ("send", False)],
    "throw without arguments": [("throw",), ("throw", 1, 2, 3, 4), ("close",)],
    "send without arguments": [("send",), ("send", 1, 2), ("close",)],
    "close with an argument": [("close", 1), ("close",)],
    "close while suspended": [START, ("close",), ("send", None)],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_protocol_like_the_twins(make: Callable[[], Any], name: str) -> None:
    play = script(*SCRIPTS[name])
    assert play(make()) == play(make_waiting(twin.PortManager))


def test_protocol_texts(make: Callable[[], Any]) -> None:
    """What the twin says is what Python says, on any version."""
    assert script(("send", 1), START, ("send", False), START)(make()) == [
        "TypeError: can't send non-None value to a just-started coroutine",
        "CORO_CREATED",
        "'available 50000?'",
        "CORO_SUSPENDED",
        "StopIteration: True",
        "CORO_CLOSED",
        "RuntimeError: cannot reuse already awaited coroutine",
        "CORO_CLOSED",
    ]


@pytest.mark.filterwarnings("ignore:the \\(type, exc, tb\\) signature:DeprecationWarning")
def test_throw_with_three_arguments(make: Callable[[], Any]) -> None:
    for arguments in (
        (ValueError, "text"),
        (ValueError, ValueError("made")),
        (ValueError, None, None),
        (ValueError("made"), None),
        (ValueError("made"), "text"),
        (ValueError, "text", "no traceback"),
    ):
        # Before the start; what is wrong later is for whatever is awaited to complain about.
        play = script(("throw", *arguments), START)
        assert play(make()) == play(make_waiting(twin.PortManager)), arguments


@pytest.mark.skipif(sys.version_info < (3, 12), reason="deprecated since Python 3.12")
def test_throw_with_three_arguments_is_deprecated(make: Callable[[], Any]) -> None:
    coroutine = make()
    with pytest.warns(DeprecationWarning, match="signature of throw"):
        assert error_of(coroutine.throw, ValueError, "text") == "ValueError: text"


def test_thrown_exceptions_are_the_same_objects(make: Callable[[], Any]) -> None:
    for started in (False, True):
        coroutine, error = make(), ValueError("thrown")
        if started:
            coroutine.send(None)
        with pytest.raises(ValueError, match="thrown") as info:
            coroutine.throw(error)
        assert info.value is error


def test_override_catches_what_is_thrown(implementation: Any) -> None:
    manager, caught = implementation.PortManager(), []

    async def stubborn(port: int) -> Any:
        for _ in range(2):
            try:
                await switch("first")
            except LookupError as error:
                caught.append(error)
        return await switch("second")

    manager.is_port_available = stubborn
    coroutine = manager.wait_for_port(50000)
    assert coroutine.send(None) == "first"
    assert coroutine.throw(LookupError(1)) == "first"
    assert coroutine.throw(LookupError(2)) == "second"
    assert finish_with(coroutine, False) is True
    assert [error.args for error in caught] == [(1,), (2,)]


def finish_with(coroutine: Any, value: Any) -> Any:
    """Send the last value and get the result."""
    with pytest.raises(StopIteration) as stop:
        coroutine.send(value)
    return stop.value.value


def test_close_reaches_the_override(implementation: Any, port_block: Callable[[int], int]) -> None:
    manager, closed = implementation.PortManager(), []
    first = port_block(2)

    async def closing(port: int) -> Any:
        try:
            return await switch("waiting")
        finally:
            closed.append(port)

    manager.is_port_available = closing
    coroutine = manager.find_available_port(first, first + 1)
    coroutine.send(None)
    assert coroutine.send(False) == "waiting"
    assert closed == [first]
    assert coroutine.close() is None
    assert closed == [first, first + 1]
    # One that is dropped in the middle is closed as well.
    coroutine = manager.find_available_port(first)
    coroutine.send(None)
    del coroutine
    gc.collect()
    assert closed == [first, first + 1, first]


def test_override_that_does_not_close(implementation: Any) -> None:
    async def clinging(port: int) -> Any:
        try:
            await switch("waiting")
        except GeneratorExit:
            return await switch("still here")

    texts = []
    for manager_class in (implementation.PortManager, twin.PortManager):
        manager: Any = manager_class()
        manager.is_port_available = clinging
        coroutine = manager.wait_for_port(50000)
        coroutine.send(None)
        texts.append(error_of(coroutine.close))
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert texts == ["RuntimeError: coroutine ignored GeneratorExit"] * 2


def test_not_an_iterator(make: Callable[[], Any]) -> None:
    ours, theirs = make(), make_waiting(twin.PortManager)
    theirs.send(None)
    for use in (iter, next, list, len, lambda c: [*c], lambda c: c[0]):
        text = error_of(use, ours)
        assert text == error_of(use, theirs)
        assert text.startswith("TypeError: ")

    def delegate() -> Any:
        yield from ours

    with pytest.raises(TypeError):
        next(delegate())
    for name in ("__iter__", "__next__"):
        assert not hasattr(ours, name)


def test_dunder_await(make: Callable[[], Any]) -> None:
    coroutine = make()
    iterator = coroutine.__await__()
    assert iter(iterator) is iterator
    assert next(iterator) == "available 50000?"
    with pytest.raises(StopIteration) as stop:
        iterator.send(False)
    assert stop.value.value is True
    assert error_of(next, coroutine.__await__()) == (
        "RuntimeError: cannot reuse already awaited coroutine"
    )
    iterator = make().__await__()
    next(iterator)
    assert error_of(iterator.throw, ValueError("thrown")) == "ValueError: thrown"
    iterator = make().__await__()
    next(iterator)
    assert iterator.close() is None
    assert error_of(next, iterator) == "RuntimeError: cannot reuse already awaited coroutine"


def test_await_within_a_coroutine(make: Callable[[], Any]) -> None:
    async def outer() -> Any:
        return "got", await make()

    coroutine = outer()
    assert coroutine.send(None) == "available 50000?"
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_SUSPENDED
    assert finish_with(coroutine, False) == ("got", True)


def test_awaited_by_two(make: Callable[[], Any]) -> None:
    async def outer(inner: Any) -> Any:
        return await inner

    inner = make()
    first, second = outer(inner), outer(inner)
    first.send(None)
    assert error_of(second.send, None) == "RuntimeError: coroutine is being awaited already"
    assert finish_with(first, False) is True
    assert error_of(outer(inner).send, None) == (
        "RuntimeError: cannot reuse already awaited coroutine"
    )


def test_nothing_to_wait_for(
    make_manager: Callable[..., Any],
    implementation: Any,
    free_port: int,
    busy_port: int,
) -> None:
    manager = make_manager(implementation.PortConfig("api", free_port, required=True))
    assert finish(manager.is_port_available(free_port)) is True
    assert finish(manager.is_port_available(busy_port)) is False
    assert finish(manager.find_available_port(free_port, free_port)) == free_port
    assert finish(manager.find_available_port(busy_port, busy_port)) is None
    allocation = finish(manager.allocate_port("api"))
    assert (allocation.status, allocation.allocated_port) == ("allocated", free_port)
    assert finish(manager.allocate_port("unknown")).status == "error"
    assert finish(manager.allocate_all_ports()) == {"api": allocation}
    assert finish(manager.wait_for_port(busy_port)) is True
    assert finish(manager.wait_for_port(free_port, timeout=0)) is False
    assert [status.port for status in finish(manager.get_port_status())] == [free_port]
    assert finish(manager.cleanup()) is None
    assert manager.allocated_ports == {}
