"""Many who ask for one service at once: tasks of a loop, and callers on other loops."""

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from comparing import finish


@pytest.fixture(scope="module")
def implementation(native: SimpleNamespace) -> SimpleNamespace:
    """The extension alone."""
    return native


class Gate:
    """An override of is_port_available whose answers come when they are told to."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.entered = asyncio.Event()
        self.answers: asyncio.Queue[Any] = asyncio.Queue()

    async def __call__(self, port: int) -> Any:
        self.asked.append(port)
        self.entered.set()
        answer = await self.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer


@pytest.fixture
async def gate() -> Gate:
    """The gate of the manager."""
    return Gate()


@pytest.fixture
def manager(make_manager: Any, native: Any, free_port: int, gate: Gate) -> Any:
    """A manager for one service, with a gate."""
    manager = make_manager(native.PortConfig("api", free_port))
    manager.is_port_available = gate
    return manager


async def start(manager: Any, gate: Gate, count: int) -> list[asyncio.Task[Any]]:
    """So many tasks that ask; the first is the one that attempts."""
    tasks = [asyncio.create_task(manager.allocate_port("api")) for _ in range(count)]
    await gate.entered.wait()
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize("answer", [True, False])
async def test_one_attempt_for_all(manager: Any, gate: Gate, answer: bool) -> None:
    tasks = await start(manager, gate, 20)
    gate.answers.put_nowait(answer)
    results = await asyncio.gather(*tasks)
    assert len(gate.asked) == 1
    assert all(result is results[0] for result in results)
    assert results[0].status == ("allocated" if answer else "in_use")
    assert manager.allocated_ports["api"] is results[0]


async def test_who_comes_later_follows_too(manager: Any, gate: Gate) -> None:
    manager.config.max_retries = 1
    tasks = await start(manager, gate, 2)
    gate.answers.put_nowait(False)
    while len(gate.asked) < 2:  # the second round
        await asyncio.sleep(0.001)
    tasks.append(asyncio.create_task(manager.allocate_port("api")))
    await asyncio.sleep(0)
    gate.answers.put_nowait(True)
    results = await asyncio.gather(*tasks)
    assert len(gate.asked) == 2
    assert all(result is results[0] for result in results)


@pytest.mark.parametrize("answer", [True, False])
async def test_cancelling_the_first(manager: Any, gate: Gate, free_port: int, answer: bool) -> None:
    tasks = await start(manager, gate, 5)
    gate.entered.clear()
    tasks[0].cancel()
    await gate.entered.wait()  # by the next
    gate.answers.put_nowait(answer)
    results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(result is results[1] for result in results[1:])
    assert results[1].allocated_port == (free_port if answer else 0)
    assert gate.asked == [free_port] * 2


async def test_cancelling_one_after_another(manager: Any, gate: Gate, free_port: int) -> None:
    tasks = await start(manager, gate, 5)
    for task in tasks[:-1]:
        gate.entered.clear()
        task.cancel()
        await gate.entered.wait()
    gate.answers.put_nowait(True)
    assert (await tasks[-1]).allocated_port == free_port
    assert all(task.cancelled() for task in tasks[:-1])


@pytest.mark.parametrize("who", [{1}, {2, 4}, {1, 2, 3, 4}])
async def test_cancelling_followers(manager: Any, gate: Gate, who: set[int]) -> None:
    tasks = await start(manager, gate, 5)
    for number in who:
        tasks[number].cancel()
    gate.answers.put_nowait(True)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert len(gate.asked) == 1
    for number, result in enumerate(results):
        assert isinstance(result, asyncio.CancelledError) == (number in who)
        assert number in who or result is results[0]


async def test_cancelling_all(manager: Any, gate: Gate, make_manager: Any) -> None:
    tasks = await start(manager, gate, 5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks)
    assert manager.allocated_ports == {}
    other = make_manager(manager.port_configs["api"])
    assert finish(other.allocate_port("api")).status == "allocated"


@pytest.mark.parametrize("error", [ValueError("from the gate"), OSError(5, "from the gate")])
async def test_first_one_fails(manager: Any, gate: Gate, free_port: int, error: Exception) -> None:
    """The exception is its own; the others get an answer."""
    tasks = await start(manager, gate, 4)
    gate.answers.put_nowait(error)
    gate.answers.put_nowait(True)
    results: list[Any] = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
    assert results[0] is error
    assert all(result is results[1] for result in results[1:])
    assert results[1].allocated_port == free_port
    assert len(gate.asked) == 2


async def test_all_fail(manager: Any, gate: Gate) -> None:
    tasks = await start(manager, gate, 3)
    errors = [ValueError(number) for number in range(3)]
    for error in errors:
        gate.answers.put_nowait(error)
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
    assert sorted(results, key=str) == errors
    assert manager.allocated_ports == {}


async def test_other_services_do_not_wait(
    manager: Any, gate: Gate, native: Any, port_block: Any
) -> None:
    port = port_block(1)
    tasks = await start(manager, gate, 2)
    manager.port_configs["web"] = native.PortConfig("web", port)
    web = asyncio.create_task(manager.allocate_port("web"))
    while len(gate.asked) < 2:
        await asyncio.sleep(0)
    gate.answers.put_nowait(True)
    gate.answers.put_nowait(True)
    assert (await web).allocated_port == port
    assert (await tasks[0]) is (await tasks[1])


async def test_releasing_during_the_attempt(manager: Any, gate: Gate, free_port: int) -> None:
    """Nothing is allocated yet, so nothing is released."""
    tasks = await start(manager, gate, 2)
    manager.release_all_ports()
    manager.allocated_ports = {}
    gate.answers.put_nowait(True)
    results = await asyncio.gather(*tasks)
    assert results[0] is results[1]
    assert manager.get_port("api") == free_port


async def test_retries_are_shared(make_manager: Any, native: Any, busy_port: int) -> None:
    manager = make_manager(native.PortConfig("api", busy_port), max_retries=3)
    results = await asyncio.gather(*(manager.allocate_port("api") for _ in range(10)))
    assert results[0].status == "in_use"
    assert all(result is results[0] for result in results)


# ---- other loops and threads ------------------------------------------------------------------


def in_threads(work: Callable[[int], Any], count: int) -> list[Any]:
    """What each of so many threads returns; an exception counts as a result."""
    results: list[Any] = [None] * count
    barrier = threading.Barrier(count)

    def target(number: int) -> None:
        try:
            barrier.wait()
            results[number] = work(number)
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=target, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("override", [False, True])
@pytest.mark.parametrize("loops", [False, True])
def test_first_success_is_everyones(
    make_manager: Any, native: Any, port_block: Any, override: bool, loops: bool
) -> None:
    first = port_block(4)
    manager = make_manager(native.PortConfig("api", first, (first, first + 3)), max_retries=0)
    if override:

        async def free(port: int) -> bool:
            if loops:
                await asyncio.sleep(0)
            return True

        manager.is_port_available = free

    def work(number: int) -> Any:
        coroutine = manager.allocate_port("api")
        return asyncio.run(coroutine) if loops else finish(coroutine)

    for _ in range(5):
        results = in_threads(work, 4)
        assert all(result is results[0] for result in results)
        assert results[0].status == "allocated"
        assert manager.allocated_ports == {"api": results[0]}
        # One port is held, not four.
        other = make_manager(*(native.PortConfig(f"{n}", first + n) for n in range(4)))
        taken = [finish(other.allocate_port(f"{n}")).allocated_port for n in range(4)]
        assert taken.count(0) == 1
        other.release_all_ports()
        manager.release_all_ports()


async def test_another_loop_is_first(manager: Any, gate: Gate) -> None:
    """Both attempt; whoever waits longer takes the answer of the other."""
    tasks = await start(manager, gate, 2)
    manager.config.max_retries = 0

    async def ask() -> Any:
        # The port is claimed by the first loop's attempt, so this one fails for now.
        return await manager.allocate_port("api")

    busy = await asyncio.to_thread(asyncio.run, ask())
    assert busy.status == "in_use"
    gate.answers.put_nowait(True)
    results = await asyncio.gather(*tasks)
    assert results[0] is results[1]
    assert manager.allocated_ports["api"] is results[0]
    assert await asyncio.to_thread(asyncio.run, ask()) is results[0]


@pytest.fixture
def at_error() -> Iterator[list[Callable[[], Any]]]:
    """Functions that are called, once each, when an error is logged."""
    calls: list[Callable[[], Any]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            while calls:
                calls.pop()()

    handler, logger = Handler(logging.ERROR), logging.getLogger("portmanager")
    logger.addHandler(handler)
    yield calls
    logger.removeHandler(handler)


@pytest.mark.parametrize("thread", [False, True])
def test_success_while_a_failure_is_logged(
    make_manager: Any, native: Any, at_error: list[Callable[[], Any]], thread: bool
) -> None:
    """A failure never takes the place of a success."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        manager = make_manager(native.PortConfig("api", port))
        successes: list[Any] = []

        def succeed() -> None:
            successes.append(finish(manager.allocate_port("api")))

        def meanwhile() -> None:
            server.close()
            if thread:
                other = threading.Thread(target=succeed)
                other.start()
                other.join()
            else:
                succeed()

        at_error.append(meanwhile)
        finish(manager.allocate_port("api"))
    assert successes[0].allocated_port == port
    assert manager.get_port("api") == port
    assert manager.allocated_ports["api"] is successes[0]
    other_manager = make_manager(native.PortConfig("api", port))
    assert finish(other_manager.allocate_port("api")).status == "in_use"
