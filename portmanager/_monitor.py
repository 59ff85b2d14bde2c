"""Monitors: whether something still listens on a port, looked at again and again.

One thread, the watcher, looks for all monitors of an interpreter, with one question to the kernel
for all that are due; it is there while there are monitors. The user's code never runs in it, so
that a hook that hangs holds up no other monitor: it runs on the monitor's event loop, or where
there is none in a helper thread.

Whoever starts or cancels a monitor takes no lock. Everything reaches the watcher by the put() of
a SimpleQueue, which Ctrl-C and the garbage collector may interrupt anywhere.
"""

from __future__ import annotations

import atexit
import functools
import heapq
import itertools
import logging
import math
import os
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable
from queue import Empty, SimpleQueue

from portmanager import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Iterable
    from typing import ClassVar, TypeVar

    from portmanager._native import PortManager

    Override = Callable[[int], Awaitable[object]]
    Job = Callable[[], None]
    T = TypeVar("T")

logger = logging.getLogger("portmanager")

# All in seconds.
SHORTEST_INTERVAL = 0.001  # less would keep a processor busy
SAME_TIME = 0.01  # monitors that are due within it share a look
LONGEST_WAIT = 3600.0  # some platforms refuse waits of centuries
PATIENCE = 1.0  # with a helper thread that hangs, before another goes on with its errands
EXIT_PATIENCE = 0.5  # with our threads at the interpreter's exit


def start(
    manager: PortManager,
    service_name: str,
    port: int,
    interval: float,
    loop: asyncio.AbstractEventLoop | None,
) -> PortMonitor:
    """Watch a port every interval seconds, until cancelled or until manager or loop is gone.

    When something was seen to listen and a later look finds that nothing does, a warning is
    logged and manager._on_port_became_available called: on the loop, which is the given one, else
    the one that runs in this thread; in a thread of its own if there is neither.
    Raises TypeError or ValueError for an interval that is not a finite number greater than 0,
    and RuntimeError for a closed loop or when no thread can be started.
    """
    seconds = max(_checked(interval), SHORTEST_INTERVAL)
    if loop is None:
        loop = _running_loop()
    elif loop.is_closed():
        raise RuntimeError("the event loop that is to run the monitor's callbacks is closed")
    watcher = _Watcher.current
    monitor = PortMonitor(
        watcher, manager, service_name=service_name, port=port, interval=seconds, loop=loop
    )
    try:
        watcher.add(monitor)
    except BaseException:  # Ctrl-C too: nobody would have the monitor to cancel it
        monitor.cancel()
        raise
    return monitor


class PortMonitor:
    """A running watch over one port."""

    def __init__(
        self,
        watcher: _Watcher,
        manager: PortManager,
        *,
        service_name: str,
        port: int,
        interval: float,
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        self.service_name = service_name
        self.port = port
        self.interval = interval
        self.loop = loop
        self.is_asking = False  # an override is at work; the port is not looked at meanwhile
        self._watcher = watcher
        self._manager = weakref.ref(manager, lambda _: watcher.wake())
        self._was_up = False
        # Locked for good by who ends the monitor: of two that cancel at once only one is first.
        self._end = threading.Lock()

    def __repr__(self) -> str:
        state = "done" if self.done() else "running"
        return f"<PortMonitor port={self.port} service={self.service_name!r} {state}>"

    def cancel(self) -> bool:
        """End it, and return whether it was running. A callback at work is not interrupted."""
        if self.done() or not self._end.acquire(blocking=False):
            return False
        self._watcher.wake()
        return True

    def done(self) -> bool:
        """Whether it has ended: cancelled, its manager or loop gone, left behind by a fork."""
        return (
            self._end.locked()
            or self._watcher.is_over
            or self._manager() is None
            or (self.loop is not None and self.loop.is_closed())
        )

    def override(self) -> Override | None:
        """Find what is to be asked instead of the kernel, where the manager has such a thing."""
        manager = self._manager()
        return None if manager is None else _native._override(manager)

    def saw(self, listening: bool) -> bool:
        """Take in the result of a look, and return whether it means that the port fell free."""
        fell_free = self._was_up and not listening
        self._was_up = listening
        return fell_free

    # What follows runs on the loop, or in a helper thread where there is none.

    def ask(self, override: Override) -> None:
        """Look, by asking the override."""
        if self.done():
            return
        if self.loop is not None:
            self._spawn(self._ask(override)).add_done_callback(self._asked)
            return
        try:
            fell_free = _run(self._ask(override))
        finally:
            self.is_asking = False
        if fell_free:
            self.tell()

    async def _ask(self, override: Override) -> bool:
        try:
            return self.saw(not await override(self.port))
        except Exception:
            self.log_failure("is_port_available")
            return False

    def _asked(self, task: asyncio.Task[bool]) -> None:
        self.is_asking = False
        if not task.cancelled() and task.exception() is None and task.result():
            self.tell()

    def tell(self) -> None:
        """Say that the port fell free."""
        manager = self._manager()
        if manager is None or self.done():
            return
        logger.warning(
            "[PortManager] Port %d of service %s became available: nothing listens on it any more",
            self.port,
            self.service_name,
        )
        try:
            result: object = manager._on_port_became_available(self.service_name, self.port)
        except Exception:
            self.log_failure("_on_port_became_available")
            return
        if isinstance(result, Awaitable):
            if self.loop is not None:
                self._spawn(self._finish(result))
            else:
                _run(self._finish(result))

    async def _finish(self, awaitable: Awaitable[object]) -> None:
        try:
            await awaitable
        except Exception:
            self.log_failure("_on_port_became_available")

    def _spawn(self, coroutine: Coroutine[object, object, T]) -> asyncio.Task[T]:
        assert self.loop is not None
        task = self.loop.create_task(coroutine)
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
        return task

    def log_failure(self, method: str) -> None:
        logger.exception(
            "[PortManager] %s failed for port %d of service %s, which is monitored all the same",
            method,
            self.port,
            self.service_name,
        )


class _Watcher:
    """The monitors of this interpreter, and the thread that looks."""

    current: ClassVar[_Watcher]

    def __init__(self) -> None:
        self.is_over = False  # in a forked child, and when the interpreter exits
        self._inbox: SimpleQueue[PortMonitor | None] = SimpleQueue()
        self._role = threading.Lock()  # held by the thread that is the watcher, nobody waits for it
        # The rest is the watcher's alone. Entries are (due time, a number, monitor).
        self._heap: list[tuple[float, int, PortMonitor]] = []
        self._numbers = itertools.count()  # monitors have no order
        self._errands: list[_Errands] = []
        self._is_blind = False

    def add(self, monitor: PortMonitor) -> None:
        self._inbox.put(monitor)
        if not self._role.locked():
            _start_thread(self._run)

    def wake(self) -> None:
        """Have monitors that are done forgotten, so that the thread can end."""
        if not self.is_over:
            self._inbox.put(None)

    def close(self) -> None:
        self.is_over = True
        self._inbox.put(None)

    def _run(self) -> None:
        # A thread leaves the role before it looks into the inbox for the last time, and add()
        # looks at the role after it has put: one of the two sees what the other did.
        while not self._inbox.empty() and not self.is_over:
            if not self._role.acquire(blocking=False):
                return
            try:
                self._serve()
            finally:
                self._role.release()

    def _serve(self) -> None:
        while True:
            self._receive()
            if self.is_over:
                return
            due = self._take_due()
            self._look(due)
            now = time.monotonic()
            for monitor in due:
                self._push(now + monitor.interval, monitor)
            self._errands = [errands for errands in self._errands if errands.are_under_way()]
            # A loop that was closed does not end what it was still to do.
            _tasks.difference_update([t for t in list(_tasks) if t.get_loop().is_closed()])
            if not self._heap and not self._errands:
                return

    def _receive(self) -> None:
        """Wait until a monitor is due or something comes, and take in all that came."""
        wait = LONGEST_WAIT
        if self._heap:
            wait = min(wait, self._heap[0][0] - time.monotonic())
        if self._errands:
            wait = min(wait, PATIENCE)
        somebody_left = False
        try:
            arrived = self._inbox.get(True, max(wait, 0.0))
            while True:
                if arrived is None:
                    somebody_left = True
                else:
                    # The first look comes at once: a service that is up already and ends within
                    # the first interval is seen to end.
                    self._push(time.monotonic(), arrived)
                arrived = self._inbox.get_nowait()
        except Empty:
            pass
        if somebody_left:
            self._heap = [entry for entry in self._heap if not entry[2].done()]
            heapq.heapify(self._heap)

    def _push(self, due: float, monitor: PortMonitor) -> None:
        heapq.heappush(self._heap, (due, next(self._numbers), monitor))

    def _take_due(self) -> list[PortMonitor]:
        due = []
        until = time.monotonic() + SAME_TIME
        while self._heap and self._heap[0][0] <= until:
            monitor = heapq.heappop(self._heap)[2]
            if not monitor.done():
                due.append(monitor)
        return due

    def _look(self, monitors: Iterable[PortMonitor]) -> None:
        """Look for all these monitors, or have their overrides do it."""
        jobs: list[tuple[PortMonitor, Job]] = []  # gone on return: overrides hold managers
        by_kernel = []
        for monitor in monitors:
            if monitor.is_asking:
                continue
            try:
                override = monitor.override()
            except Exception:  # an attribute that is a property
                monitor.log_failure("is_port_available")
                continue
            if override is None:
                by_kernel.append(monitor)
            else:
                monitor.is_asking = True
                jobs.append((monitor, functools.partial(monitor.ask, override)))
        listening = self._listening({monitor.port for monitor in by_kernel})
        if listening is not None:
            for monitor in by_kernel:
                if monitor.saw(monitor.port in listening):
                    jobs.append((monitor, monitor.tell))
        self._hand_out(jobs)

    def _hand_out(self, jobs: list[tuple[PortMonitor, Job]]) -> None:
        """Have user code run where each monitor's is to run."""
        errands = []
        for monitor, job in jobs:
            if monitor.loop is None:
                errands.append(job)
            else:
                try:
                    monitor.loop.call_soon_threadsafe(job)
                except RuntimeError:  # closed, and the monitor done with it
                    continue
        if errands:
            self._errands.append(_Errands(errands))

    def _listening(self, ports: set[int]) -> set[int] | None:
        """Get those of the ports on which something listens; None if that cannot be known now."""
        if not ports:
            return set()
        try:
            listening = _native._listening_ports(ports)
        except Exception:
            if not self._is_blind:  # said once, not with every look
                logger.exception("[PortManager] Monitored ports cannot be looked at, trying on")
            self._is_blind = True
            return None
        self._is_blind = False
        return listening


class _Errands:
    """User code of monitors that have no loop, to be done one after the other.

    A helper thread does it. While one hangs in an errand, another goes on with the rest.
    """

    def __init__(self, jobs: list[Job]) -> None:
        self._jobs = deque(jobs)
        self._left = len(jobs)
        self._seen_at = time.monotonic()
        self._send_helper()

    def are_under_way(self) -> bool:
        """See to it that they are; False when the last one has been begun."""
        now = time.monotonic()
        if now - self._seen_at >= PATIENCE:
            if len(self._jobs) == self._left:
                self._send_helper()
            self._left = len(self._jobs)
            self._seen_at = now
        return bool(self._jobs)

    def _send_helper(self) -> None:
        try:
            _start_thread(self._run)
        except RuntimeError:  # no thread to be had, so the watcher has to do it
            self._run()

    def _run(self) -> None:
        while self._jobs:
            try:
                job = self._jobs.popleft()
            except IndexError:  # another helper was quicker
                return
            try:
                job()
            except BaseException:  # SystemExit too: the rest is to be done all the same
                logger.exception("[PortManager] A monitor's callback failed")


_tasks: set[asyncio.Task[object]] = set()  # event loops have weak references only
_threads: set[threading.Thread] = set()


def _checked(interval: float) -> float:
    try:
        is_finite = math.isfinite(interval)
    except TypeError:
        raise TypeError(f"interval must be a number of seconds, not {interval!r}") from None
    except OverflowError:
        is_finite = False
    if not is_finite or interval <= 0:
        raise ValueError(
            f"interval must be a finite number of seconds greater than 0, not {interval!r}"
        )
    return float(interval)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    if "asyncio" not in sys.modules:  # nobody runs a loop, and importing it takes long
        return None
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _run(coroutine: Coroutine[object, object, T]) -> T:
    import asyncio

    try:
        return asyncio.run(coroutine)
    finally:
        coroutine.close()  # for want of descriptors the loop may not have come to be


def _start_thread(work: Job) -> None:
    """Do work in a thread that holds up the interpreter's exit as little as may be."""

    def run() -> None:
        thread = threading.current_thread()
        _threads.add(thread)
        try:
            work()
        finally:
            _threads.discard(thread)

    try:
        thread = threading.Thread(target=run, name="portmanager-monitor", daemon=True)
    except RuntimeError:  # subinterpreters with their own GIL have no daemon threads
        _end_threads_before_they_are_joined()
        thread = threading.Thread(target=run, name="portmanager-monitor", daemon=False)
    thread.start()


@functools.cache
def _end_threads_before_they_are_joined() -> None:
    """Keep threads that are no daemons from holding up their interpreter's end for ever.

    atexit would be too late, and not on every version does the main thread cease to be alive.
    Raises RuntimeError where that cannot be done.
    """
    register = getattr(threading, "_register_atexit", None)  # what concurrent.futures uses
    if register is None:
        raise RuntimeError("port monitors need an interpreter that allows daemon threads")
    register(_end_threads)


def _begin_anew() -> None:
    """In a forked child: the threads did not come along, and the locks are in any state."""
    _Watcher.current.is_over = True
    _Watcher.current = _Watcher()


def _end_threads() -> None:
    """At exit: a thread that writes a log line while the interpreter ends could make it abort."""
    ended, _Watcher.current = _Watcher.current, _Watcher()
    ended.close()
    deadline = time.monotonic() + EXIT_PATIENCE
    for thread in list(_threads):
        if thread is not threading.current_thread():
            thread.join(max(deadline - time.monotonic(), 0.0))


_Watcher.current = _Watcher()
atexit.register(_end_threads)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
