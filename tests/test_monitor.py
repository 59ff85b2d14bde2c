"""Monitors notice that a service is gone, tell it once, and leave nothing behind."""

import asyncio
import contextlib
import gc
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest

from portmanager import PortAllocation, PortConfig, PortManager, _monitor, _native

FOREVER = 60.0  # seconds: longer than anything here takes, to fail instead of hanging
SHORT = 0.01  # seconds between looks, where many are wanted


class Told(PortManager):
    """A manager that notes what its monitors tell."""

    def __init__(self) -> None:
        super().__init__()
        self.port_configs.clear()
        self.calls: list[tuple[str, int]] = []
        self.threads: list[int] = []
        self.called = threading.Semaphore(0)

    def _on_port_became_available(self, service_name: str, port: int) -> object:
        self.calls.append((service_name, port))
        self.threads.append(threading.get_ident())
        self.called.release()
        return None

    def wait_until_told(self) -> None:
        assert self.called.acquire(timeout=FOREVER)


class Overridden(Told):
    """A manager whose own answer counts, not the kernel's."""

    def __init__(self) -> None:
        super().__init__()
        self.is_up = True
        self.asked = threading.Semaphore(0)

    async def is_port_available(self, port: int, host: str = "127.0.0.1") -> bool:
        self.asked.release()
        return not self.is_up

    def wait_until_asked(self, times: int = 2) -> None:
        """Of two looks that end after now, the second began after now."""
        for _ in range(times):
            assert self.asked.acquire(timeout=FOREVER)


class Looks:
    """The questions to the kernel."""

    def __init__(self, ask: Callable[[Iterable[int]], set[int]]) -> None:
        self._ask = ask
        self._changed = threading.Condition()
        self.questions: list[set[int]] = []

    def __call__(self, ports: Iterable[int]) -> set[int]:
        asked = set(ports)
        answer = self._ask(asked)
        with self._changed:
            self.questions.append(asked)
            self._changed.notify_all()
        return answer

    def wait(self, port: int, times: int = 2) -> None:
        """Of two looks that end after now, the second began after now."""
        self._wait(port, self._count(port) + times)

    def wait_for_first(self, port: int, times: int = 1) -> None:
        """Looks that have ended count."""
        self._wait(port, times)

    def _wait(self, port: int, times: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._count(port) >= times, FOREVER)

    def _count(self, port: int) -> int:
        return sum(port in asked for asked in self.questions)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    spy = Looks(_native._listening_ports)
    monkeypatch.setattr(_native, "_listening_ports", spy)
    return spy


@pytest.fixture
def managers() -> Iterator[list[PortManager]]:
    made: list[PortManager] = []
    yield made
    for manager in made:
        manager.release_all_ports()


def unused_port(given: set[int] = set()) -> int:  # noqa: B006
    """A port of the kernel's choice, each time another one."""
    while True:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = int(unused.getsockname()[1])
        if port not in given:
            given.add(port)
            return port


def allocate(manager: PortManager, service: str = "web") -> int:
    port = unused_port()
    manager.port_configs[service] = PortConfig(service, port)
    allocation = asyncio.run(manager.allocate_port(service))
    assert allocation.allocated_port == port, allocation
    return port


def place(manager: PortManager, service: str = "web") -> int:
    """An allocation that a caller puts there, where an override would have its say in another."""
    port = unused_port()
    manager.allocated_ports[service] = PortAllocation(service, port, port, "allocated")
    return port


@pytest.fixture
def told(managers: list[PortManager]) -> Told:
    manager = Told()
    managers.append(manager)
    return manager


@pytest.fixture
def overridden(managers: list[PortManager]) -> Overridden:
    manager = Overridden()
    managers.append(manager)
    return manager


@contextlib.contextmanager
def listener(port: int, host: str = "127.0.0.1") -> Iterator[socket.socket]:
    with socket.create_server((host, port)) as server:
        yield server


@contextlib.contextmanager
def loop_elsewhere() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def eventually(is_so: Callable[[], object]) -> None:
    """For what nothing announces."""
    deadline = time.monotonic() + FOREVER
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def monitor_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "portmanager-monitor"]


def run(code: str, *options: str) -> str:
    """Run code in a Python that takes warnings for errors, and return what it printed."""
    command = [sys.executable, "-X", "dev", "-W", "error", *options, "-c", textwrap.dedent(code)]
    done = subprocess.run(
        command,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=FOREVER,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# What is told, and how often


def test_a_port_that_falls_free_is_told(
    told: Told, looks: Looks, caplog: pytest.LogCaptureFixture
) -> None:
    port = allocate(told)
    with listener(port):
        told.start_port_monitoring("web", interval=SHORT)
        looks.wait(port)
    told.wait_until_told()
    assert told.calls == [("web", port)]
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.name == "portmanager"
    assert record.message.startswith("[PortManager] ")
    assert str(port) in record.message
    assert "web" in record.message


def test_it_is_told_once_for_each_change(told: Told, looks: Looks) -> None:
    port = allocate(told)
    told.start_port_monitoring("web", interval=SHORT)
    for times in (1, 2, 3):
        with listener(port):
            looks.wait(port)
        told.wait_until_told()
        looks.wait(port, times=4)
        assert told.calls == [("web", port)] * times


def test_nothing_is_told_of_a_port_that_was_never_up(told: Told, looks: Looks) -> None:
    port = allocate(told)
    told.start_port_monitoring("web", interval=SHORT)
    looks.wait(port, times=5)
    assert told.calls == []


def test_nothing_is_told_while_the_service_is_up(told: Told, looks: Looks) -> None:
    port = allocate(told)
    with listener(port):
        told.start_port_monitoring("web", interval=SHORT)
        looks.wait(port, times=5)
        assert told.calls == []
        told.stop_port_monitoring("web")


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.20.4", "::1"])
def test_a_listener_on_any_local_address_counts(told: Told, looks: Looks, host: str) -> None:
    port = allocate(told)
    try:
        if ":" in host:
            server = socket.create_server((host, port), family=socket.AF_INET6)
        else:
            server = socket.create_server((host, port))
    except OSError as error:
        pytest.skip(f"this machine cannot listen on {host}: {error}")
    with server:
        told.start_port_monitoring("web", interval=SHORT)
        looks.wait(port)
        assert told.calls == []
    told.wait_until_told()


def test_the_first_look_comes_at_once(told: Told, looks: Looks) -> None:
    port = allocate(told)
    told.start_port_monitoring("web", interval=10 * FOREVER)
    looks.wait_for_first(port)


def test_looking_neither_binds_nor_connects(told: Told, looks: Looks) -> None:
    port = allocate(told)
    with listener(port) as server:
        told.start_port_monitoring("web", interval=SHORT)
        looks.wait(port, times=5)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    told.wait_until_told()
    # Without SO_REUSEADDR: nothing of ours is bound there, not for a moment.
    for _ in range(50):
        with socket.socket() as service:
            service.bind(("127.0.0.1", port))


def test_a_service_without_a_port_is_not_monitored(told: Told) -> None:
    told.start_port_monitoring("web")
    told.stop_port_monitoring("web")
    assert told.port_monitors == {}


@pytest.mark.parametrize("interval", ["5", None, 1j, [1]])
def test_an_interval_that_is_no_number(told: Told, interval: Any) -> None:
    port = allocate(told)
    with pytest.raises(TypeError):
        told.start_port_monitoring("web", interval=interval)
    with pytest.raises(TypeError) as caught:
        _monitor.start(told, "web", port, interval, None)
    assert repr(interval) in str(caught.value)
    assert told.port_monitors == {}


@pytest.mark.parametrize("interval", [0, -1.5, float("nan"), float("inf"), 10**400])
def test_an_interval_that_makes_no_sense(told: Told, interval: float) -> None:
    port = allocate(told)
    with pytest.raises(ValueError, match="interval"):
        told.start_port_monitoring("web", interval=interval)
    with pytest.raises(ValueError, match="interval") as caught:
        _monitor.start(told, "web", port, interval, None)
    assert repr(interval) in str(caught.value)
    assert told.port_monitors == {}


@pytest.mark.parametrize("interval", [1, True, 5e-324, 1e300])
def test_any_number_of_seconds_greater_than_0(told: Told, looks: Looks, interval: float) -> None:
    port = allocate(told)
    told.start_port_monitoring("web", interval=interval)
    looks.wait_for_first(port)
    monitor = told.port_monitors[port]
    assert not monitor.done()
    assert monitor.interval == max(interval, 0.001)  # so that no number makes it spin


# Where the hook runs


async def test_the_hook_runs_on_the_running_loop(managers: list[PortManager], looks: Looks) -> None:
    class Manager(Told):
        def _on_port_became_available(self, service_name: str, port: int) -> None:
            asyncio.get_running_loop().call_soon(happened.set)
            super()._on_port_became_available(service_name, port)

    happened = asyncio.Event()
    manager = Manager()
    managers.append(manager)
    port = await asyncio.to_thread(allocate, manager)
    with listener(port):
        manager.start_port_monitoring("web", interval=SHORT)
        await asyncio.to_thread(looks.wait, port)
    await asyncio.wait_for(happened.wait(), FOREVER)
    assert manager.threads == [threading.get_ident()]


def test_the_hook_runs_on_the_given_loop(told: Told, looks: Looks) -> None:
    port = allocate(told)
    with loop_elsewhere() as loop:
        with listener(port):
            told.start_port_monitoring("web", interval=SHORT, loop=loop)
            looks.wait(port)
        told.wait_until_told()

        async def ident() -> int:
            return threading.get_ident()

        expected = asyncio.run_coroutine_threadsafe(ident(), loop).result(FOREVER)
        assert told.threads == [expected]


def test_a_given_loop_may_start_later(told: Told, looks: Looks) -> None:
    async def main() -> None:
        while not told.calls:
            await asyncio.sleep(0)

    port = allocate(told)
    loop = asyncio.new_event_loop()
    with listener(port):
        told.start_port_monitoring("web", interval=SHORT, loop=loop)
        looks.wait(port)
    looks.wait(port)
    assert told.calls == []
    loop.run_until_complete(asyncio.wait_for(main(), FOREVER))
    assert told.threads == [threading.get_ident()]
    loop.close()


def test_without_a_loop_it_runs_in_another_thread(told: Told, looks: Looks) -> None:
    port = allocate(told)
    with listener(port):
        told.start_port_monitoring("web", interval=SHORT)
        looks.wait(port)
    told.wait_until_told()
    assert told.threads != [threading.get_ident()]


def test_without_a_loop_a_hook_may_run_its_own(managers: list[PortManager], looks: Looks) -> None:
    class Manager(Told):
        def _on_port_became_available(self, service_name: str, port: int) -> None:
            asyncio.run(asyncio.sleep(0))
            super()._on_port_became_available(service_name, port)

    manager = Manager()
    managers.append(manager)
    port = allocate(manager)
    with listener(port):
        manager.start_port_monitoring("web", interval=SHORT)
        looks.wait(port)
    manager.wait_until_told()


class AsyncHook(Told):
    """A manager with a hook that is a coroutine function, as subclasses may have."""

    def _on_port_became_available(self, service_name: str, port: int) -> Awaitable[None]:
        return self._tell(service_name, port)

    async def _tell(self, service_name: str, port: int) -> None:
        await asyncio.sleep(0)
        super()._on_port_became_available(service_name, port)


def test_a_coroutine_of_the_hook_is_run_without_a_loop(
    managers: list[PortManager], looks: Looks
) -> None:
    manager = AsyncHook()
    managers.append(manager)
    port = allocate(manager)
    with listener(port):
        manager.start_port_monitoring("web", interval=SHORT)
        looks.wait(port)
    manager.wait_until_told()


async def test_a_coroutine_of_the_hook_is_run_on_the_loop(
    managers: list[PortManager], looks: Looks
) -> None:
    manager = AsyncHook()
    managers.append(manager)
    port = await asyncio.to_thread(allocate, manager)
    with listener(port):
        manager.start_port_monitoring("web", interval=SHORT)
        await asyncio.to_thread(looks.wait, port)
    await asyncio.to_thread(manager.wait_until_told)
    assert manager.threads == [threading.get_ident()]


async def test_a_coroutine_of_the_hook_survives_the_garbage_collector(
    managers: list[PortManager], looks: Looks
) -> None:
    class Manager(AsyncHook):
        future: Callable[[], asyncio.Future[None] | None] = staticmethod(lambda: None)

        async def _tell(self, service_name: str, port: int) -> None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.future = weakref.ref(future)
            await future
            await super()._tell(service_name, port)

    manager = Manager()
    managers.append(manager)
    port = await asyncio.to_thread(allocate, manager)
    with listener(port):
        manager.start_port_monitoring("web", interval=SHORT)
        await asyncio.to_thread(looks.wait, port)
    while manager.future() is None:
        await asyncio.sleep(0)
    gc.collect()
    future = manager.future()
    assert future is not None
    future.set_result(None)
    await asyncio.to_thread(manager.wait_until_told)


# What goes wrong in user code


@pytest.mark.parametrize("kind", [Told, AsyncHook])
@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, asyncio.CancelledError])
def test_a_hook_that_fails_is_logged_and_the_monitor_goes_on(
    kind: type[Told],
    error: type[BaseException],
    managers: list[PortManager],
    looks: Looks,
    caplog: pytest.LogCaptureFixture,
) -> None:
    failing = threading.Semaphore(0)

    class Sync(Told):
        def _on_port_became_available(self, service_name: str, port: int) -> None:
            failing.release()
            raise error("of the hook")

    class Async(AsyncHook):
        async def _tell(self, service_name: str, port: int) -> None:
            failing.release()
            raise error("of the hook")

    manager = Sync() if kind is Told else Async()
    managers.append(manager)
    port = allocate(manager)
    manager.start_port_monitoring("web", interval=SHORT)
    for _ in range(2):
        with listener(port):
            looks.wait(port)
        assert failing.acquire(timeout=FOREVER)
    eventually(lambda: sum(r.exc_info is not None for r in caplog.records) >= 2)
    records = [r for r in caplog.records if r.exc_info]
    assert all(r.message.startswith("[PortManager] ") for r in records)
    assert not manager.port_monitors[port].done()


async def test_a_hook_that_fails_on_the_loop(
    managers: list[PortManager], looks: Looks, caplog: pytest.LogCaptureFixture
) -> None:
    class Manager(Told):
        def _on_port_became_available(self, service_name: str, port: int) -> None:
            super()._on_port_became_available(service_name, port)
            raise ZeroDivisionError

    manager = Manager()
    managers.append(manager)
    port = await asyncio.to_thread(allocate, manager)
    manager.start_port_monitoring("web", interval=SHORT)
    for _ in range(2):
        with listener(port):
            await asyncio.to_thread(looks.wait, port)
        await asyncio.to_thread(manager.wait_until_told)
    assert [r.levelname for r in caplog.records if r.exc_info] == ["ERROR", "ERROR"]


def test_a_hook_may_end_its_own_monitor(managers: list[PortManager], looks: Looks) -> None:
    class Manager(Told):
        def _on_port_became_available(self, service_name: str, port: int) -> None:
            self.release_port(service_name)
            super()._on_port_became_available(service_name, port)

    manager = Manager()
    managers.append(manager)
    port = allocate(manager)
    with listener(port):
        manager.start_port_monitoring("web", interval=SHORT)
        looks.wait(port)
    manager.wait_until_told()
    assert manager.port_monitors == {}


def test_a_hook_that_hangs_holds_up_no_other_monitor(
    managers: list[PortManager], told: Told, looks: Looks
) -> None:
    go_on = threading.Event()

    class Hanging(Told):
        def _on_port_became_available(self, service_name: str, port: int) -> None:
            super()._on_port_became_available(service_name, port)
            go_on.wait(2 * FOREVER)

    hanging = Hanging()
    managers.append(hanging)
    ports = [allocate(hanging), allocate(told)]
    with listener(ports[0]), listener(ports[1]):
        hanging.start_port_monitoring("web", interval=SHORT)
        told.start_port_monitoring("web", interval=SHORT)
        for port in ports:
            looks.wait(port)
    hanging.wait_until_told()
    told.wait_until_told()  # whether it was told in the same look or in a later one
    with listener(ports[1]):
        looks.wait(ports[1])
    told.wait_until_told()
    go_on.set()


def test_a_loop_that_hangs_holds_up_no_other_monitor(
    managers: list[PortManager], told: Told, looks: Looks
) -> None:
    go_on = threading.Event()
    held_up = Told()
    managers.append(held_up)
    ports = [allocate(held_up), allocate(told)]
    with loop_elsewhere() as loop:
        loop.call_soon_threadsafe(go_on.wait, 2 * FOREVER)
        with listener(ports[0]), listener(ports[1]):
            held_up.start_port_monitoring("web", interval=SHORT, loop=loop)
            told.start_port_monitoring("web", interval=SHORT)
            for port in ports:
                looks.wait(port)
        told.wait_until_told()
        assert held_up.calls == []
        go_on.set()
        held_up.wait_until_told()


def test_a_kernel_that_does_not_answer_is_said_once(
    told: Told,
    looks: Looks,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    refused = threading.Semaphore(0)

    def refuse(ports: Iterable[int]) -> set[int]:
        refused.release()
        raise OSError("Too many open files")

    port = allocate(told)
    with listener(port):
        told.start_port_monitoring("web", interval=SHORT)
        looks.wait(port)
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(_native, "_listening_ports", refuse)
                for _ in range(4):
                    assert refused.acquire(timeout=FOREVER)
            looks.wait(port)
        assert told.calls == []
    told.wait_until_told()
    assert [r.levelname for r in caplog.records if r.exc_info] == ["ERROR", "ERROR"]


# Overrides


def test_an_override_is_asked_instead_of_the_kernel(overridden: Overridden, looks: Looks) -> None:
    port = place(overridden)
    overridden.start_port_monitoring("web", interval=SHORT)
    overridden.wait_until_asked()
    overridden.is_up = False
    overridden.wait_until_told()
    overridden.is_up = True
    overridden.wait_until_asked()
    overridden.is_up = False
    overridden.wait_until_told()
    assert overridden.calls == [("web", port)] * 2
    assert looks.questions == []


async def test_an_override_is_asked_on_the_loop(managers: list[PortManager]) -> None:
    class Manager(Overridden):
        async def is_port_available(self, port: int, host: str = "127.0.0.1") -> bool:
            idents.append(threading.get_ident())
            await asyncio.sleep(0)
            return await super().is_port_available(port, host)

    idents: list[int] = []
    manager = Manager()
    managers.append(manager)
    place(manager)
    manager.start_port_monitoring("web", interval=SHORT)
    await asyncio.to_thread(manager.wait_until_asked)
    manager.is_up = False
    await asyncio.to_thread(manager.wait_until_told)
    assert set(idents) == set(manager.threads) == {threading.get_ident()}


@pytest.mark.parametrize("place", ["instance", "class"])
def test_a_patched_method_is_an_override(told: Told, place: str) -> None:
    port = allocate(told)
    answers = [True, False, False, True, True, False, True]  # not up before the first False
    patched = mock.AsyncMock(side_effect=[*answers, *[True] * 10_000])
    with mock.patch.object(told if place == "instance" else Told, "is_port_available", patched):
        told.start_port_monitoring("web", interval=SHORT)
        told.wait_until_told()
        told.wait_until_told()
        told.stop_port_monitoring("web")
    assert told.calls == [("web", port)] * 2
    # As (port), without the host, which is the default one.
    assert all(call == ((port,), {}) for call in map(tuple, patched.await_args_list))


def test_an_override_that_comes_and_goes(told: Told, looks: Looks) -> None:
    port = allocate(told)
    told.start_port_monitoring("web", interval=SHORT)
    asked = threading.Semaphore(0)

    async def is_up(port: int) -> bool:
        asked.release()
        return False

    with mock.patch.object(told, "is_port_available", is_up):
        for _ in range(2):
            assert asked.acquire(timeout=FOREVER)
    told.wait_until_told()  # by the kernel's word
    looks.wait(port)


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, asyncio.CancelledError])
def test_an_override_that_fails_is_logged_and_asked_again(
    managers: list[PortManager], caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    class Manager(Overridden):
        fails = False

        async def is_port_available(self, port: int, host: str = "127.0.0.1") -> bool:
            answer = await super().is_port_available(port, host)
            if self.fails:
                raise error("of the override")
            return answer

    manager = Manager()
    managers.append(manager)
    port = place(manager)
    manager.start_port_monitoring("web", interval=SHORT)
    manager.wait_until_asked()
    manager.fails = True
    manager.wait_until_asked(4)
    assert manager.calls == []
    manager.is_up = manager.fails = False
    manager.wait_until_told()
    assert manager.calls == [("web", port)]
    failures = [r.message for r in caplog.records if r.exc_info]
    assert failures
    assert all(message.startswith("[PortManager] ") for message in failures)


async def test_an_override_that_is_cancelled_is_asked_again(
    managers: list[PortManager], caplog: pytest.LogCaptureFixture
) -> None:
    class Manager(Overridden):
        async def is_port_available(self, port: int, host: str = "127.0.0.1") -> bool:
            await super().is_port_available(port, host)
            if self.is_up:
                await asyncio.get_running_loop().create_future()
            return True

    manager = Manager()
    managers.append(manager)
    place(manager)
    manager.start_port_monitoring("web", interval=SHORT)
    for _ in range(3):
        await asyncio.to_thread(manager.wait_until_asked, 1)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
    manager.is_up = False
    await asyncio.to_thread(manager.wait_until_asked)
    manager.stop_port_monitoring("web")
    assert caplog.records == []


def test_a_loop_that_cannot_be_made_for_an_override(
    overridden: Overridden, caplog: pytest.LogCaptureFixture
) -> None:
    place(overridden)
    refused = threading.Semaphore(0)

    def refuse(coroutine: object) -> None:
        refused.release()
        raise OSError("Too many open files")

    with mock.patch.object(asyncio, "run", refuse):
        overridden.start_port_monitoring("web", interval=SHORT)
        for _ in range(3):
            assert refused.acquire(timeout=FOREVER)
    overridden.wait_until_asked()
    assert any("Too many open files" in str(r.exc_info) for r in caplog.records)


def test_an_override_that_cannot_even_be_looked_up(
    managers: list[PortManager], caplog: pytest.LogCaptureFixture
) -> None:
    class Manager(Told):
        fails = False
        failed = threading.Semaphore(0)

        def __getattribute__(self, name: str) -> Any:
            if name == "is_port_available" and Manager.fails:
                Manager.failed.release()
                raise ZeroDivisionError
            return super().__getattribute__(name)

    manager = Manager()
    managers.append(manager)
    port = allocate(manager)
    Manager.fails = True
    manager.start_port_monitoring("web", interval=SHORT)
    for _ in range(3):
        assert Manager.failed.acquire(timeout=FOREVER)
    Manager.fails = False
    assert not manager.port_monitors[port].done()
    assert any(r.exc_info for r in caplog.records)


@pytest.mark.parametrize("is_async", [True, False])
def test_an_override_that_hangs_holds_up_no_other_monitor(
    managers: list[PortManager], monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    monkeypatch.setattr(_monitor, "PATIENCE", SHORT)
    go_on = threading.Event()
    hangs = threading.Semaphore(0)

    class Hanging(Overridden):
        async def is_port_available(self, port: int, host: str = "127.0.0.1") -> bool:
            hangs.release()
            while is_async and not go_on.is_set():
                await asyncio.sleep(SHORT)
            go_on.wait(2 * FOREVER)
            return True

    class Slow(Overridden):
        """Due at the same time as the others, so that it shares their errands."""

    several = [Hanging(), Slow(), Hanging(), Slow()]
    managers.extend(several)
    plain = Told()
    managers.append(plain)
    for manager in [*several, plain]:
        place(manager)
        manager.start_port_monitoring("web", interval=SHORT)
    for _ in range(2):
        assert hangs.acquire(timeout=FOREVER)
    for manager in several:
        if isinstance(manager, Slow):
            manager.wait_until_asked(5)
            manager.is_up = False
            manager.wait_until_told()
    go_on.set()


def test_patience_with_one_that_hangs_does_not_wait_for_the_next_look(
    managers: list[PortManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_monitor, "PATIENCE", SHORT)
    looking, go_on = threading.Event(), threading.Event()

    def look(ports: Iterable[int]) -> set[int]:
        looking.set()
        go_on.wait(2 * FOREVER)
        return set()

    class Hanging(Overridden):
        async def is_port_available(self, port: int, host: str = "127.0.0.1") -> bool:
            await super().is_port_available(port, host)
            go_on.wait(2 * FOREVER)
            return True

    several = [Told(), Hanging(), Overridden()]
    managers.extend(several)
    monkeypatch.setattr(_native, "_listening_ports", look)
    for manager in several:
        place(manager)
        manager.start_port_monitoring("web", interval=10 * FOREVER)
        assert looking.wait(FOREVER)  # so that the others arrive together
    hanging, other = several[1:]
    assert isinstance(hanging, Hanging)
    assert isinstance(other, Overridden)
    go_on.set()
    go_on.clear()
    hanging.wait_until_asked(1)
    other.wait_until_asked(1)
    go_on.set()


def test_an_override_that_hangs_is_not_asked_again_meanwhile(
    managers: list[PortManager], told: Told, looks: Looks
) -> None:
    go_on = threading.Event()

    class Hanging(Overridden):
        async def is_port_available(self, port: int, host: str = "127.0.0.1") -> bool:
            await super().is_port_available(port, host)
            go_on.wait(2 * FOREVER)
            return True

    hanging = Hanging()
    managers.append(hanging)
    place(hanging)
    hanging.start_port_monitoring("web", interval=SHORT)
    hanging.wait_until_asked(1)
    port = allocate(told)
    told.start_port_monitoring("web", interval=SHORT)
    looks.wait(port, times=5)
    assert not hanging.asked.acquire(blocking=False)
    go_on.set()
    hanging.wait_until_asked()


# How it ends


@pytest.mark.parametrize("how", ["stop", "release", "release all", "cleanup", "cancel"])
def test_a_monitor_that_was_ended_tells_nothing(
    told: Told, overridden: Overridden, looks: Looks, how: str
) -> None:
    port = allocate(told)
    other = place(overridden, "other")
    overridden.start_port_monitoring("other", interval=SHORT)
    with listener(port):
        told.start_port_monitoring("web", interval=SHORT)
        looks.wait(port)
        monitor = told.port_monitors[port]
        assert not monitor.done()
        {
            "stop": lambda: told.stop_port_monitoring("web"),
            "release": lambda: told.release_port("web"),
            "release all": told.release_all_ports,
            "cleanup": lambda: asyncio.run(told.cleanup()),
            "cancel": monitor.cancel,
        }[how]()
        assert monitor.done()
        assert not monitor.cancel()
    if how != "cancel":
        assert told.port_monitors == {}
    overridden.wait_until_asked(4)
    assert told.calls == []
    assert list(overridden.port_monitors) == [other]


def test_cancel_says_whether_the_monitor_was_running(told: Told) -> None:
    port = allocate(told)
    told.start_port_monitoring("web")
    monitor = told.port_monitors[port]
    assert (monitor.done(), monitor.cancel()) == (False, True)
    assert (monitor.done(), monitor.cancel()) == (True, False)


def test_of_many_that_cancel_at_once_one_was_first(told: Told) -> None:
    port = allocate(told)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(50):
            told.start_port_monitoring("web")
            monitor = told.port_monitors[port]
            barrier = threading.Barrier(8)

            def cancel(monitor: Any = monitor, barrier: threading.Barrier = barrier) -> bool:
                barrier.wait(FOREVER)
                return bool(monitor.cancel())

            assert sum(future.result() for future in [pool.submit(cancel) for _ in range(8)]) == 1


def test_a_second_start_replaces_the_first(told: Told) -> None:
    port = allocate(told)
    told.start_port_monitoring("web")
    first = told.port_monitors[port]
    told.start_port_monitoring("web")
    assert first.done()
    assert not told.port_monitors[port].done()
    assert list(told.port_monitors) == [port]


async def test_cancelled_on_the_loop_it_tells_nothing_that_was_on_its_way(
    managers: list[PortManager], looks: Looks, caplog: pytest.LogCaptureFixture
) -> None:
    manager = Told()
    managers.append(manager)
    port = await asyncio.to_thread(allocate, manager)
    with listener(port):
        manager.start_port_monitoring("web", interval=SHORT)
        await asyncio.to_thread(looks.wait, port)
    looks.wait(port, times=3)  # holds this loop up, so that what is told must wait
    manager.stop_port_monitoring("web")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert manager.calls == []
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_manager_that_is_gone_ends_its_monitors() -> None:
    manager = Told()
    port = allocate(manager)
    manager.start_port_monitoring("web", interval=10 * FOREVER)
    monitor = manager.port_monitors[port]
    del manager
    gc.collect()
    assert monitor.done()
    assert not monitor.cancel()
    eventually(lambda: not monitor_threads())


def test_an_override_does_not_keep_its_manager() -> None:
    manager = Overridden()
    place(manager)
    manager.start_port_monitoring("web", interval=10 * FOREVER)
    manager.wait_until_asked(1)
    reference = weakref.ref(manager)
    del manager
    eventually(lambda: gc.collect() is None or reference() is None)
    eventually(lambda: not monitor_threads())


def test_a_closed_loop_ends_its_monitors(told: Told, overridden: Overridden) -> None:
    async def main() -> list[Any]:
        monitors = []
        for manager in (told, overridden):
            port = place(manager)
            manager.start_port_monitoring("web", interval=SHORT)
            monitors.append(manager.port_monitors[port])
        assert not any(monitor.done() for monitor in monitors)
        return monitors

    assert all(monitor.done() for monitor in asyncio.run(main()))
    eventually(lambda: not monitor_threads())


def test_a_closed_loop_keeps_no_manager(told: Told) -> None:
    """Though an override was at work on it, which it will never end."""

    class Hanging(Overridden):
        async def is_port_available(self, port: int, host: str = "127.0.0.1") -> bool:
            await super().is_port_available(port, host)
            self.hangs = asyncio.get_running_loop().create_future()
            await self.hangs
            return True

    async def main(manager: Hanging) -> None:
        manager.start_port_monitoring("web", interval=SHORT)
        await asyncio.to_thread(manager.wait_until_asked, 1)

    place(told)
    told.start_port_monitoring("web", interval=SHORT)  # so that the thread goes on
    manager = Hanging()
    place(manager)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main(manager))
    loop.run_until_complete(loop.shutdown_default_executor())
    logging.getLogger("asyncio").disabled = True  # it says that a task was destroyed
    try:
        loop.close()
        reference = weakref.ref(manager)
        del manager, loop
        eventually(lambda: gc.collect() is None or reference() is None)
    finally:
        logging.getLogger("asyncio").disabled = False


def test_a_loop_that_closes_while_it_is_told(told: Told, looks: Looks) -> None:
    """Between the look whether it is closed and the call."""
    closing = Told()
    port, other = allocate(closing), allocate(told)
    loop = asyncio.new_event_loop()
    refused = threading.Event()

    def refuse(*arguments: Any) -> None:
        refused.set()
        raise RuntimeError("Event loop is closed")

    with mock.patch.object(loop, "call_soon_threadsafe", refuse):
        with listener(port), listener(other):
            closing.start_port_monitoring("web", interval=SHORT, loop=loop)
            told.start_port_monitoring("web", interval=SHORT)
            looks.wait(port)
            looks.wait(other)
        told.wait_until_told()
        assert refused.wait(FOREVER)
    looks.wait(other)
    loop.close()
    closing.release_all_ports()


def test_a_loop_that_is_closed_already(told: Told) -> None:
    port = allocate(told)
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        told.start_port_monitoring("web", loop=loop)
    assert not [m for m in told.port_monitors.values() if not m.done()]
    told.start_port_monitoring("web")
    assert not told.port_monitors[port].done()


def test_a_monitor_says_in_its_repr_what_it_watches(told: Told) -> None:
    port = allocate(told)
    told.start_port_monitoring("web")
    monitor = told.port_monitors[port]
    assert repr(monitor) == f"<PortMonitor port={port} service='web' running>"
    monitor.cancel()
    assert repr(monitor) == f"<PortMonitor port={port} service='web' done>"


# Threads


def test_a_hundred_monitors_share_a_thread_and_the_questions(told: Told, looks: Looks) -> None:
    ports = {allocate(told, f"web{i}") for i in range(100)}
    for i in range(100):
        told.start_port_monitoring(f"web{i}", interval=SHORT)
    eventually(lambda: ports in looks.questions)
    eventually(lambda: len(monitor_threads()) == 1)
    told.release_all_ports()
    eventually(lambda: not monitor_threads())
    assert told.port_monitors == {}
    told.start_port_monitoring("web0")
    assert told.port_monitors == {}


def test_the_thread_comes_back_for_the_next_monitor(told: Told, looks: Looks) -> None:
    port = allocate(told)
    for i in range(20):
        told.start_port_monitoring("web", interval=10 * FOREVER)
        looks.wait_for_first(port, times=i + 1)
        told.stop_port_monitoring("web")
        eventually(lambda: not monitor_threads())


def test_a_thread_that_cannot_be_started_is_an_error(told: Told) -> None:
    allocate(told)
    eventually(lambda: not monitor_threads())  # an earlier one would do
    refusal = RuntimeError("can't start new thread")
    with (
        mock.patch.object(threading.Thread, "start", side_effect=refusal),
        pytest.raises(RuntimeError),
    ):
        told.start_port_monitoring("web")
    assert all(monitor.done() for monitor in told.port_monitors.values())


def test_many_threads_start_and_end_monitors(managers: list[PortManager], looks: Looks) -> None:
    def work(manager: Told) -> None:
        port = allocate(manager)
        for i in range(100):
            manager.start_port_monitoring("web", interval=SHORT)
            if i % 3 == 0:
                looks.wait(port, times=1)
            manager.stop_port_monitoring("web")
        with listener(port):
            manager.start_port_monitoring("web", interval=SHORT)
            looks.wait(port)
        manager.wait_until_told()
        manager.release_all_ports()

    several = [Told() for _ in range(8)]
    managers.extend(several)
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(work, manager) for manager in several]:
            future.result()
    assert all(len(manager.calls) == 1 for manager in several)
    eventually(lambda: not monitor_threads())


# Processes and interpreters

PRELUDE = """
    import asyncio, logging, os, signal, socket, sys, threading, time
    logging.getLogger("portmanager").addHandler(logging.NullHandler())
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of a slow machine
    from portmanager import PortAllocation, PortManager

    class Manager(PortManager):
        def __init__(self):
            super().__init__()
            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                self.port = unused.getsockname()[1]
            self.allocated_ports["web"] = PortAllocation("web", 0, self.port, "allocated")
            self.told = threading.Event()

        def _on_port_became_available(self, service_name, port):
            self.told.set()

        def watch(self, interval=0.01):
            self.start_port_monitoring("web", interval)
            return self.port

    def notices(manager):
        port = manager.watch()
        server = socket.create_server(("127.0.0.1", port))
        time.sleep(0.1)
        while not manager.told.wait(0.1):
            server.close()
            time.sleep(0.1)
            if not manager.told.is_set():
                server = socket.create_server(("127.0.0.1", port))
                time.sleep(0.1)
        server.close()
        return True
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_has_no_monitors_and_can_have_its_own() -> None:
    code = """
    manager = Manager()
    port = manager.watch()
    inherited = manager.port_monitors[port]
    assert not inherited.done()
    child = os.fork()
    if not child:
        code = 1
        try:
            assert inherited.done() and not inherited.cancel()
            assert threading.active_count() == 1
            assert notices(Manager())
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert not inherited.done() and inherited.cancel()
    assert notices(manager)
    """
    # Python warns of any fork beside a thread.
    run(textwrap.dedent(PRELUDE) + textwrap.dedent(code), "-W", "ignore::DeprecationWarning")


AT_EXIT = {
    "looking": "manager.watch()",
    "waiting": "manager.watch(600)",
    "on a loop that is closed": """
        async def main():
            manager.start_port_monitoring("web", 0.01)
            await asyncio.sleep(0.05)
        asyncio.run(main())
        """,
    "on a loop that never ran": """
        loop = asyncio.new_event_loop()
        manager.start_port_monitoring("web", 0.01, loop=loop)
        time.sleep(0.05)
        loop.close()
        """,
    "in a hook": """
        def hang(*arguments):
            manager.told.set()
            time.sleep(600)
        manager._on_port_became_available = hang
        notices(manager)
        """,
    "in an override": """
        asked = threading.Event()
        manager.watch(600)
        async def hang(port):
            asked.set()
            await asyncio.sleep(600)
        manager.is_port_available = hang
        manager.start_port_monitoring("web", 0.01)
        asked.wait(60)
        """,
    "left by sys.exit": "manager.watch(); sys.exit(0)",
    "in a reference cycle": "manager.watch(); manager.cycle = manager; del manager",
    "started at exit": """
        import atexit
        manager.watch()
        atexit.register(manager.start_port_monitoring, "web", 0.01)
        """,
}


@pytest.mark.parametrize("where", AT_EXIT)
def test_the_interpreter_exits_quietly(where: str) -> None:
    parts = [PRELUDE, "manager = Manager()", AT_EXIT[where], "print('done')"]
    if where == "left by sys.exit":
        parts.insert(2, "print('done')")
    assert run("\n".join(map(textwrap.dedent, parts))) == "done\n"


def test_no_thread_is_left_when_the_interpreter_ends() -> None:
    """A thread that wrote a log line at that moment would make it abort."""
    code = """
    import atexit
    atexit.register(lambda: print(threading.active_count()))  # before ours, so called after it
    manager = Manager()
    monitor = manager.watch()
    """
    assert run(textwrap.dedent(PRELUDE) + textwrap.dedent(code)) == "1\n"


def test_the_interpreter_exits_while_much_is_logged() -> None:
    code = """
    manager = Manager()
    manager.watch(600)
    async def fail(port):
        raise ZeroDivisionError
    manager.is_port_available = fail
    manager.start_port_monitoring("web", 0.0001)
    time.sleep(0.1)
    """
    command = [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, timeout=FOREVER, check=False)
    assert done.returncode == 0
    assert b"Fatal" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no setitimer")
def test_ctrl_c_anywhere_does_no_harm() -> None:
    code = """
    manager, other = Manager(), Manager()
    other.watch()
    manager.watch()

    def interrupt(*arguments):
        global interrupted
        interrupted = True
        raise KeyboardInterrupt

    def work():
        while not interrupted:
            manager.start_port_monitoring("web", 0.01)
            manager.stop_port_monitoring("web")

    signal.signal(signal.SIGALRM, interrupt)
    for i in range(300):
        interrupted = False
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + i * 0.000003)
            work()
        except KeyboardInterrupt:
            pass
    other.release_all_ports()
    manager.release_all_ports()
    assert notices(Manager())
    """
    run(textwrap.dedent(PRELUDE) + textwrap.dedent(code))


def test_subinterpreters_have_monitors_of_their_own() -> None:
    inner = """
    manager = Manager()
    assert notices(manager)
    if sys.version_info < (3, 12):  # which ends no interpreter that has threads
        manager.release_all_ports()
        while threading.active_count() > 1:
            time.sleep(0.01)
    """
    prelude = PRELUDE.replace("asyncio, ", "")  # which some 3.12 cannot load in two interpreters
    code = f"""
    import sys
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    # Before 3.12 the isolated ones may have no threads at all.
    options = {{}} if sys.version_info >= (3, 12) else {{"isolated": False}}
    # Some 3.12 do not survive a second one's import of _datetime, which the extension asks for.
    for _ in range(2 if sys.version_info >= (3, 13) else 1):
        interpreter = interpreters.create(**options)
        failure = interpreters.run_string(interpreter, {textwrap.dedent(prelude + inner)!r})
        assert failure is None, failure
        interpreters.destroy(interpreter)
    """
    run(code)
