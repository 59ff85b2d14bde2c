"""The coroutine objects under asyncio: tasks, cancellation, threads, context, leaks."""

# The classes under test are not known before the tests run.
# mypy: allow-subclassing-any

import asyncio
import contextvars
import inspect
import io
import re
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest


@pytest.fixture
def manager(make_manager: Callable[..., Any]) -> Any:
    return make_manager()


@pytest.fixture
def service(implementation: Any, free_port: int) -> Any:
    """A configuration whose port is free."""
    return implementation.PortConfig("api", free_port)


@pytest.fixture
def busy_service(implementation: Any, busy_port: int) -> Any:
    """A configuration whose port is taken and that has no range."""
    return implementation.PortConfig("api", busy_port)


async def ticks(count: list[int]) -> None:
    """Count how often other tasks get their turn."""
    while True:
        count[0] += 1
        await asyncio.sleep(0.001)


def test_run(manager: Any, free_port: int, busy_port: int) -> None:
    assert asyncio.run(manager.is_port_available(free_port)) is True
    assert asyncio.run(manager.is_port_available(busy_port)) is False
    assert asyncio.run(manager.wait_for_port(free_port, timeout=0.01)) is False
    loop = asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(manager.is_port_available(free_port)) is True
    finally:
        loop.close()


async def test_tasks(manager: Any, free_port: int) -> None:
    coroutine = manager.is_port_available(free_port)
    task = asyncio.create_task(coroutine, name="looking")
    assert task.get_coro() is coroutine
    assert await task is True
    assert await asyncio.ensure_future(manager.is_port_available(free_port)) is True
    assert await asyncio.shield(manager.is_port_available(free_port)) is True
    done, pending = await asyncio.wait([asyncio.create_task(manager.cleanup())])
    assert (len(done), pending) == (1, set())
    for first in asyncio.as_completed([manager.find_available_port(free_port, free_port)]):
        assert await first == free_port


@pytest.mark.skipif(sys.version_info < (3, 11), reason="task groups came with Python 3.11")
async def test_task_group(manager: Any, free_port: int) -> None:
    group_class: Any = getattr(asyncio, "TaskGroup")  # noqa: B009 - unknown to older versions
    async with group_class() as group:
        tasks = [group.create_task(manager.is_port_available(free_port)) for _ in range(5)]
    assert [task.result() for task in tasks] == [True] * 5


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
async def test_eager_tasks(manager: Any, free_port: int) -> None:
    loop: Any = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
    at_once = asyncio.create_task(manager.is_port_available(free_port))
    assert at_once.done(), "there is nothing to wait for"
    assert at_once.result() is True
    later = asyncio.create_task(manager.wait_for_port(free_port, timeout=0.01))
    assert not later.done()
    assert await later is False


async def test_many_calls_make_one_attempt(make_manager: Any, service: Any) -> None:
    manager, calls = make_manager(service), []

    async def slow(port: int) -> bool:
        calls.append(port)
        await asyncio.sleep(0.01)
        return True

    manager.is_port_available = slow
    got = await asyncio.gather(*(manager.allocate_port("api") for _ in range(20)))
    assert calls == [service.default_port]
    assert got[0].allocated_port == service.default_port
    assert all(allocation is got[0] for allocation in got)
    assert manager.allocated_ports["api"] is got[0]


async def test_many_calls_share_a_failure(make_manager: Any, busy_service: Any) -> None:
    manager = make_manager(busy_service, max_retries=2, retry_delay=0.01)
    got = await asyncio.gather(*(manager.allocate_port("api") for _ in range(5)))
    assert got[0].status == "in_use"
    assert all(allocation is got[0] for allocation in got)


async def test_cancelling_one_caller_cancels_nobody_else(make_manager: Any, service: Any) -> None:
    manager, gate = make_manager(service), asyncio.Event()

    async def gated(port: int) -> bool:
        await gate.wait()
        return True

    manager.is_port_available = gated
    tasks = [asyncio.create_task(manager.allocate_port("api")) for _ in range(4)]
    await asyncio.sleep(0.01)
    # The first one makes the attempt, the third waits for it.
    tasks[0].cancel()
    tasks[2].cancel()
    await asyncio.sleep(0.01)
    gate.set()
    got = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in got] == [
        True,
        False,
        True,
        False,
    ]
    assert got[1] is got[3]
    assert got[1].allocated_port == service.default_port  # type: ignore[union-attr]


async def test_timeout_cancels(manager: Any, free_port: int) -> None:
    coroutine = manager.wait_for_port(free_port, timeout=60)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(coroutine, 0.02)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


async def test_cancelling_a_task(manager: Any, free_port: int) -> None:
    task = asyncio.create_task(manager.wait_for_port(free_port, timeout=60))
    await asyncio.sleep(0.01)
    task.cancel("enough")
    with pytest.raises(asyncio.CancelledError) as info:
        await task
    assert task.cancelled()
    if sys.version_info >= (3, 11):
        assert info.value.args == ("enough",)
    never_started = asyncio.create_task(manager.cleanup())
    never_started.cancel()
    with pytest.raises(asyncio.CancelledError):
        await never_started


async def test_waiting_lets_others_run(
    make_manager: Any, busy_service: Any, free_port: int
) -> None:
    manager = make_manager(busy_service, max_retries=3, retry_delay=0.02)
    waits: list[Callable[[], Any]] = [
        lambda: manager.allocate_port("api"),
        lambda: manager.wait_for_port(free_port, timeout=0.06),
    ]
    for wait in waits:
        count = [0]
        ticking = asyncio.create_task(ticks(count))
        await wait()
        ticking.cancel()
        # One that blocks the loop leaves no turn at all, or one.
        assert count[0] > 1


async def test_cancelling_a_retry_reserves_nothing(
    make_manager: Any, implementation: Any, free_port: int
) -> None:
    config = implementation.PortConfig("api", free_port)
    manager = make_manager(config, max_retries=1000, retry_delay=0.02)
    looked = asyncio.Event()

    async def busy(port: int) -> bool:
        looked.set()
        return False

    manager.is_port_available = busy
    task = asyncio.create_task(manager.allocate_port("api"))
    await looked.wait()
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert manager.allocated_ports == {}
    other = make_manager(implementation.PortConfig("other", free_port))
    assert (await other.allocate_port("other")).allocated_port == free_port


@pytest.mark.parametrize("way", ["cancel", "close", "drop", "raise"])
async def test_an_attempt_that_ends_early_reserves_nothing(
    make_manager: Any, implementation: Any, service: Any, way: str
) -> None:
    """The port is claimed while the override looks at it, and no longer."""
    manager, never = make_manager(service), asyncio.Event()

    async def looking(port: int) -> bool:
        if way == "raise":
            raise LookupError(port)
        await never.wait()
        return True

    manager.is_port_available = looking
    coroutine = manager.allocate_port("api")
    if way == "cancel":
        task = asyncio.create_task(coroutine)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    elif way == "raise":
        with pytest.raises(LookupError):
            await coroutine
    else:
        coroutine.send(None)
        if way == "close":
            coroutine.close()
    del coroutine
    assert manager.allocated_ports == {}
    other = make_manager(implementation.PortConfig("other", service.default_port))
    assert (await other.allocate_port("other")).allocated_port == service.default_port


def test_any_thread_and_any_loop(
    make_manager: Any, implementation: Any, port_block: Callable[[int], int]
) -> None:
    first = port_block(8)
    configs = [
        implementation.PortConfig(f"s{index}", first, (first, first + 7)) for index in range(8)
    ]
    manager = make_manager(*configs, max_retries=500)
    together = threading.Barrier(8)

    def allocate(name: str) -> Any:
        together.wait()
        return asyncio.run(manager.allocate_port(name))

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(allocate, [config.service for config in configs]))
        assert {allocation.allocated_port for allocation in got} == {*range(first, first + 8)}
        again = list(pool.map(allocate, [config.service for config in configs]))
    assert all(a is b for a, b in zip(got, again, strict=True))


def test_first_success_is_the_answer_of_all_threads(make_manager: Any, service: Any) -> None:
    manager, together = make_manager(service, max_retries=100), threading.Barrier(8)

    def allocate(_: int) -> Any:
        together.wait()
        return asyncio.run(manager.allocate_port("api"))

    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(allocate, range(8)))
    assert [allocation.allocated_port for allocation in got] == [service.default_port] * 8
    assert all(allocation is got[0] for allocation in got)


def test_success_of_another_thread_meanwhile(
    make_manager: Any, implementation: Any, port_block: Callable[[int], int]
) -> None:
    first = port_block(2)
    manager = make_manager(implementation.PortConfig("api", first, (first, first + 1)))
    looked, answered = threading.Event(), threading.Event()

    async def slow_at_the_first(port: int) -> bool:
        if port == first:
            looked.set()
            await asyncio.get_running_loop().run_in_executor(None, answered.wait, 10)
        return True

    manager.is_port_available = slow_at_the_first
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(asyncio.run, manager.allocate_port("api"))
        assert looked.wait(10)
        quick = asyncio.run(manager.allocate_port("api"))
        answered.set()
        assert slow.result(10) is quick
    assert manager.get_allocated_ports() == {"api": first + 1}
    # What the slow one had claimed is nobody's.
    del manager.is_port_available
    assert asyncio.run(manager.find_available_port(first, first)) == first


async def test_made_in_one_thread_and_run_in_another(manager: Any, free_port: int) -> None:
    loop = asyncio.get_running_loop()
    coroutine = manager.wait_for_port(free_port, timeout=0.01)
    assert await loop.run_in_executor(None, asyncio.run, coroutine) is False
    future = await loop.run_in_executor(
        None,
        lambda: asyncio.run_coroutine_threadsafe(manager.is_port_available(free_port), loop),
    )
    assert await asyncio.wrap_future(future) is True


async def test_task_shows_what_it_runs(manager: Any, free_port: int) -> None:
    task = asyncio.create_task(manager.wait_for_port(free_port, timeout=60), name="waiting")
    for _ in range(2):  # Once before it starts, once while it waits.
        assert re.search(r"<Task pending .*coro=<PortManager\.wait_for_port\(\)", repr(task))
        text = io.StringIO()
        task.print_stack(file=text)
        assert text.getvalue().startswith("Stack for <Task pending name='waiting'")
        assert "wait_for_port" in text.getvalue().splitlines()[1]
        assert [frame.f_code.co_name for frame in task.get_stack()] == ["wait_for_port"]
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "PortManager.wait_for_port()" in repr(task)
    assert task.get_stack() == []


@pytest.mark.skipif(sys.version_info < (3, 14), reason="call graphs came with Python 3.14")
async def test_call_graph(manager: Any, free_port: int) -> None:
    task = asyncio.create_task(manager.wait_for_port(free_port, timeout=60))
    await asyncio.sleep(0.01)
    text = getattr(asyncio, "format_call_graph")(task)  # noqa: B009 - unknown to older versions
    assert "wait_for_port" in text
    task.cancel()


def test_debug_mode(manager: Any, free_port: int, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> Any:
        assert await manager.is_port_available(free_port) is True
        task = asyncio.create_task(manager.wait_for_port(free_port, timeout=0.01))
        assert await task is False
        with pytest.warns(RuntimeWarning, match="Coroutine created at") as caught:
            manager.cleanup()
        return str(caught[0].message)

    text = asyncio.run(main(), debug=True)
    assert text.startswith("coroutine 'PortManager.cleanup' was never awaited\n")
    assert __file__ in text
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_overrides_run_in_the_callers_context(manager: Any, free_port: int) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen = []

    async def looking(port: int) -> bool:
        seen.append((variable.get(), asyncio.current_task()))
        variable.set("set by the override")
        await asyncio.sleep(0)
        seen.append((variable.get(), asyncio.current_task()))
        return False

    manager.is_port_available = looking
    variable.set("set by the caller")
    task = asyncio.create_task(manager.wait_for_port(free_port))
    assert await task is True
    assert seen == [("set by the caller", task), ("set by the override", task)]
    assert variable.get() == "set by the caller", "a task has a context of its own"
    assert await manager.wait_for_port(free_port) is True
    assert variable.get() == "set by the override"


async def test_exceptions_of_overrides(make_manager: Any, service: Any) -> None:
    manager = make_manager(service)
    error = LookupError("no luck")

    async def unlucky(port: int) -> bool:
        await asyncio.sleep(0)
        raise error

    manager.is_port_available = unlucky
    calls: list[Callable[[], Any]] = [
        lambda: manager.allocate_port("api"),
        lambda: manager.find_available_port(service.default_port, service.default_port),
        lambda: manager.wait_for_port(service.default_port),
    ]
    for call in calls:
        with pytest.raises(LookupError) as info:
            await call()
        assert info.value is error
        assert error.__cause__ is None
        assert error.__context__ is None
        frames = traceback.extract_tb(info.value.__traceback__)
        assert frames[0].name == "test_exceptions_of_overrides"
        assert frames[-1].name == "unlucky"
        error.__traceback__ = None
    assert manager.allocated_ports == {}


@pytest.mark.parametrize("way", ["in a coroutine", "in a plain function"])
async def test_stop_iteration_in_an_override(manager: Any, free_port: int, way: str) -> None:
    async def stopping(port: int) -> bool:
        raise StopIteration("odd")

    def stopping_at_once(port: int) -> bool:
        raise StopIteration("odd")

    manager.is_port_available = stopping if way == "in a coroutine" else stopping_at_once
    with pytest.raises(RuntimeError, match=r"^coroutine raised StopIteration$") as info:
        await manager.wait_for_port(free_port)
    assert isinstance(info.value.__cause__, StopIteration)
    assert info.value.__cause__.value == "odd"


async def test_other_exceptions_pass(manager: Any, free_port: int) -> None:
    for error in (StopAsyncIteration("a"), GeneratorExit("b"), asyncio.CancelledError("c")):

        async def raising(port: int, error: BaseException = error) -> bool:
            raise error

        manager.is_port_available = raising
        with pytest.raises(type(error)) as info:
            await manager.wait_for_port(free_port)
        assert info.value is error
