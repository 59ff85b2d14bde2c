"""Nothing is left of what is gone: no memory, no descriptor, no port; and exits are quiet."""

import asyncio
import contextlib
import copy
import ctypes
import gc
import importlib
import logging
import os
import pickle
import subprocess
import sys
import sysconfig
import textwrap
import time
import types
import warnings
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from comparing import ASYNC_METHODS, finish, switch

import portmanager
from portmanager import (
    PortAllocation,
    PortConfig,
    PortManager,
    PortManagerConfig,
    PortStatus,
    _native,
)

FOREVER = 60.0  # seconds: longer than anything here takes, to fail instead of hanging
without_gil = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
CYCLES = 10_000


def run(code: str, *options: str) -> str:
    """Run code in a Python that takes warnings for errors, and return what it printed."""
    command = [sys.executable, "-X", "dev", "-W", "error", *options, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FOREVER, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """Make managers that know the given configurations; those that are left are cleaned up."""
    made: list[weakref.ref[PortManager]] = []

    def make(*configs: PortConfig, cls: type[PortManager] = PortManager) -> Any:
        manager = cls(PortManagerConfig(max_retries=0))
        manager.port_configs.clear()
        manager.port_configs.update({config.service: config for config in configs})
        made.append(weakref.ref(manager))
        return manager

    yield make
    for reference in made:
        if (manager := reference()) is not None:
            manager.release_all_ports()


# Ten thousand of each

SINGLETONS: list[Any] = [
    *(None, True, False, NotImplemented, (), "", 0),
    *(type, object, dict, list, StopIteration, OSError),
    *(types.CoroutineType, types.FunctionType, types.MethodType),
    *(types, portmanager, _native),
    *(PortManager, PortConfig, PortAllocation, PortStatus, PortManagerConfig),
]


class Mallinfo(ctypes.Structure):
    """struct mallinfo2 of the C library."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")),
        *((name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks")),
        ("keepcost", ctypes.c_size_t),
    )


def allocated_bytes() -> int:
    """Bytes that malloc has handed out; 0 where the C library does not tell."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError):
        return 0
    mallinfo.restype = Mallinfo
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)


def resident_bytes() -> int:
    """Bytes of memory; 0 where /proc does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0


def descriptors() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return 0


def measure() -> dict[str, int]:
    gc.collect()
    measured = {
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
        "bytes": allocated_bytes(),
        "resident": resident_bytes(),
        "descriptors": descriptors(),
    }
    for index, thing in enumerate(SINGLETONS):
        measured[f"references to {thing!r} ({index})"] = sys.getrefcount(thing)
    return measured


def check_growth(before: dict[str, int], cycles: int) -> None:
    after = measure()
    # One thing lost in each cycle is a leak; what is less is some cache.
    allowed = {"bytes": cycles * 8 + 65536, "resident": 4 << 20, "descriptors": 0}
    if without_gil:  # its allocator gives back late; objects are counted all the same
        allowed |= {"blocks": sys.maxsize, "resident": sys.maxsize}
    if "libasan" in os.environ.get("LD_PRELOAD", ""):  # keeps what is freed for a while
        allowed["resident"] = sys.maxsize
    grown = {name: after[name] - before[name] for name in before}
    too_much = {
        name: growth
        for name, growth in grown.items()
        if growth > allowed.get(name, max(cycles // 10, 800))
    }
    assert too_much == {}


def check_nothing_grows(
    cycle: Callable[[], object],
    cycles: int = CYCLES,
    settle: Callable[[], object] = lambda: None,
) -> None:
    for _ in range(max(cycles // 10, 1000)):  # until every cache is full
        cycle()
    settle()
    before = measure()
    for _ in range(cycles):
        cycle()
    settle()
    check_growth(before, cycles)


async def check_nothing_grows_in_a_loop(
    cycle: Callable[[], Awaitable[object]], cycles: int = CYCLES
) -> None:
    """Like check_nothing_grows, where cycles are awaited."""
    for _ in range(cycles // 10):
        await cycle()
    before = measure()
    for _ in range(cycles):
        await cycle()
    check_growth(before, cycles)


@pytest.fixture
def silent() -> Iterator[None]:
    """Without log records, which pytest keeps."""
    logger = logging.getLogger("portmanager")
    logger.disabled = True
    yield
    logger.disabled = False


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("name", ASYNC_METHODS)
async def test_awaiting_leaves_nothing(
    make: Callable[..., Any], free_port: int, busy_port: int, name: str, tmp_path: Path
) -> None:
    manager = make(PortConfig("api", free_port, required=True))
    other = make()
    other.allocated_ports["busy"] = PortAllocation("busy", 1, 2, "allocated")
    path = str(tmp_path / "ports.json")

    async def cycle() -> None:
        if name == "is_port_available":
            await manager.is_port_available(free_port)
            await manager.is_port_available(busy_port, "::1")
        elif name == "find_available_port":
            await manager.find_available_port(busy_port, busy_port)
            await manager.find_available_port(free_port)
        elif name == "allocate_port":
            await manager.allocate_port("api")
            await manager.allocate_port("api")
            manager.release_port("api")
        elif name == "allocate_all_ports":
            await manager.allocate_all_ports()
            manager.release_all_ports()
        elif name == "get_port_status":
            await other.get_port_status()
        elif name == "wait_for_port":
            await manager.wait_for_port(busy_port, host="")
            await manager.wait_for_port(free_port, 0)
        elif name == "save_configuration":
            await manager.save_configuration(path)
        else:
            await manager.allocate_port("api")
            await manager.cleanup()

    # A file and a thread take their time; durable is not what it must be here.
    cycles = CYCLES // 10 if name == "save_configuration" else CYCLES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        await check_nothing_grows_in_a_loop(cycle, cycles)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("what", ["pause", "name", "override", "failure", "busy", "cancel"])
async def test_waiting_in_a_loop_leaves_nothing(
    make: Callable[..., Any], free_port: int, busy_port: int, what: str
) -> None:
    manager = make(PortConfig("api", busy_port))
    manager.config.max_retries = 1
    manager.config.retry_delay = 0
    asked = make(PortConfig("api", free_port))

    async def is_port_available(port: int) -> bool:
        await asyncio.sleep(0)
        if what == "failure":
            raise ZeroDivisionError
        return True

    asked.is_port_available = is_port_available

    async def cycle() -> None:
        if what == "pause":
            await manager.wait_for_port(free_port, 1e-9)
        elif what == "name":
            await manager.is_port_available(free_port, "localhost")
        elif what == "busy":
            await asyncio.gather(manager.allocate_port("api"), manager.allocate_port("api"))
        elif what == "cancel":
            tasks = [asyncio.create_task(asked.allocate_port("api")) for _ in range(2)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        else:
            with contextlib.suppress(ZeroDivisionError):
                await asyncio.gather(asked.allocate_port("api"), asked.allocate_port("api"))
            asked.release_all_ports()

    await check_nothing_grows_in_a_loop(cycle, CYCLES // 10)


@pytest.mark.parametrize("name", ASYNC_METHODS)
def test_coroutines_that_are_never_awaited_leave_nothing(
    make: Callable[..., Any], name: str
) -> None:
    method = getattr(make(), name)
    arguments = ASYNC_METHODS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_nothing_grows(lambda: method(*arguments))


def in_a_cycle(manager: Any) -> None:
    manager.me = manager


LIVES: dict[str, Callable[[int], object]] = {
    "manager": lambda port: PortManager(),
    "manager with a port": lambda port: allocating(PortManager(), port),
    "manager in a cycle": lambda port: in_a_cycle(PortManager()),
    "subclass": lambda port: type("Sub", (PortManager,), {})(),
    "PortConfig": lambda port: PortConfig("".join(["ap", "i"]), port, (port, port)),
    "PortAllocation": lambda port: PortAllocation("api", port, port, "allocated", str(port)),
    "PortStatus": lambda port: PortStatus(port, "api", True, None, None),
    "PortManagerConfig": lambda port: PortManagerConfig(str(port), retry_delay=port * 1.5),
    "repr": lambda port: repr(PortConfig("api", port)),
    "equal": lambda port: PortConfig("api", port) == PortConfig("api", port + 0),
    "not equal": lambda port: PortConfig("api", port) == PortConfig("web", port),
    "other class": lambda port: PortConfig("api", port) == PortStatus(port, "api", True),
    "copy": lambda port: copy.copy(PortConfig("api", port)),
    "pickle": lambda port: pickle.loads(pickle.dumps(PortConfig("api", port))),
    "method": lambda port: PortManager.allocate_port.__name__,
    "bad call": lambda port: call_badly(PortConfig, port),
}


def allocating(manager: PortManager, port: int) -> None:
    manager.port_configs["api"] = PortConfig("api", port)
    finish(manager.allocate_port("api"))


def call_badly(function: Callable[..., object], port: int) -> None:
    with contextlib.suppress(TypeError):
        function(port, port, surprise=port)


@pytest.mark.parametrize("life", LIVES)
def test_objects_leave_nothing(free_port: int, life: str) -> None:
    if life == "subclass" and without_gil:
        pytest.skip("classes live for ever on this CPython")
    live = LIVES[life]
    heavy = life in {"subclass", "manager in a cycle"}
    check_nothing_grows(lambda: live(free_port), CYCLES // 10 if heavy else CYCLES)


def test_monitors_leave_nothing(make: Callable[..., Any], free_port: int) -> None:
    manager = make(PortConfig("api", free_port))
    finish(manager.allocate_port("api"))

    def cycle() -> None:
        manager.start_port_monitoring("api", 60.0)
        manager.stop_port_monitoring("api")

    def settle() -> None:
        """Wait until the thread that looks has taken in all that was sent."""
        deadline = time.monotonic() + FOREVER
        while watcher._heap or not watcher._inbox.empty():
            assert time.monotonic() < deadline
            time.sleep(0.001)

    cycle()
    watcher = sys.modules["portmanager._monitor"]._Watcher.current
    check_nothing_grows(cycle, CYCLES // 10, settle)


# Garbage

GARBAGE: dict[str, Callable[[Any], object]] = {
    "itself": lambda manager: manager,
    "a coroutine": lambda manager: waiting(manager.wait_for_port(1)),
    "an attempt": lambda manager: waiting(manager.allocate_port("other")),
    "a bound method": lambda manager: manager.allocate_port,
    "a monitor": lambda manager: manager.start_port_monitoring("api", 60.0),
    "its allocation": lambda manager: setattr(manager.allocated_ports["api"], "of", manager),
    "its configuration": lambda manager: setattr(manager.config, "of", manager),
    "its port_configs": lambda manager: manager.port_configs.update(of=manager),
    "a weak reference": lambda manager: weakref.ref(manager, manager.port_configs.get),
}


async def suspending(port: int) -> Any:
    return await switch(None)


def waiting(coroutine: Any) -> Any:
    coroutine.send(None)
    return coroutine


@pytest.mark.parametrize("reason", GARBAGE)
def test_cycles_are_collected_and_their_ports_given_back(
    make: Callable[..., Any], port_block: Callable[[int], int], reason: str
) -> None:
    port = port_block(2)
    manager = make(PortConfig("api", port), PortConfig("other", port + 1))
    finish(manager.allocate_port("api"))
    if reason in {"a coroutine", "an attempt"}:
        manager.is_port_available = suspending
    kept = GARBAGE[reason](manager)
    manager.kept = kept
    manager.cycle = [manager]
    reference = weakref.ref(manager)
    monitors = list(manager.port_monitors.values())
    del manager, kept
    gc.collect()
    assert reference() is None
    assert all(monitor.done() for monitor in monitors)
    taker = make(PortConfig("api", port), PortConfig("other", port + 1))
    assert finish(taker.allocate_port("api")).allocated_port == port
    assert finish(taker.allocate_port("other")).allocated_port == port + 1


def test_a_manager_gives_its_ports_back_at_once(make: Callable[..., Any], free_port: int) -> None:
    gc.disable()
    try:
        manager = make(PortConfig("api", free_port))
        finish(manager.allocate_port("api"))
        del manager  # no cycle, so nobody needs to look for it
        taker = make()
        assert finish(taker.find_available_port(free_port, free_port)) == free_port
    finally:
        gc.enable()


@pytest.mark.parametrize("how", ["default", "range", "find", "override"])
def test_garbage_is_collected_before_a_port_is_refused(
    make: Callable[..., Any], port_block: Callable[[int], int], how: str
) -> None:
    port = port_block(2)
    manager = make(PortConfig("api", port))
    taker = make(PortConfig("api", port + 1 if how == "range" else port, (port, port)))
    if how == "range":
        holder = make(PortConfig("held", port + 1))
        finish(holder.allocate_port("held"))
    if how == "override":

        async def is_port_available(port: int) -> bool:
            return True

        taker.is_port_available = is_port_available
    gc.collect()
    gc.disable()
    try:
        finish(manager.allocate_port("api"))
        in_a_cycle(manager)
        del manager
        if how == "find":
            assert finish(taker.find_available_port(port, port)) == port
        else:
            assert finish(taker.allocate_port("api")).allocated_port == port
    finally:
        gc.enable()


def test_garbage_is_collected_once_at_most(
    make: Callable[..., Any],
    port_block: Callable[[int], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = port_block(5)
    holder = make(*(PortConfig(f"s{index}", first + index) for index in range(5)))
    for name in holder.port_configs:
        finish(holder.allocate_port(name))
    taker = make(PortConfig("api", first, (first, first + 4)))
    calls: list[str] = []
    monkeypatch.setattr(gc, "collect", lambda: calls.append("collect"))
    assert finish(taker.allocate_port("api")).status == "in_use"
    assert len(calls) == 1
    assert finish(taker.find_available_port(first, first + 4)) is None
    assert len(calls) == 2
    free = port_block(1)
    taker.port_configs["free"] = PortConfig("free", free)
    assert finish(taker.allocate_port("free")).allocated_port == free
    assert len(calls) == 2  # nobody held that one


def test_weak_references(make: Callable[..., Any]) -> None:
    gone: list[int] = []
    things: dict[str, Any] = {
        "manager": make(),
        "config": PortConfig("api", 1),
        "allocation": PortAllocation("api", 1, 1, "allocated"),
        "status": PortStatus(1, "api", False),
        "manager config": PortManagerConfig(),
        "coroutine": PortManager.cleanup(make()),
    }
    things["coroutine"].close()
    references = [
        weakref.ref(thing, lambda reference: gone.append(id(reference)))
        for thing in things.values()
    ]
    assert [reference() for reference in references] == list(things.values())
    for name, reference in zip(list(things), references, strict=True):
        del things[name]
        gc.collect()
        assert gone[-1] == id(reference)
    assert len(gone) == len(references)
    assert weakref.ref(PortManager.cleanup)() is PortManager.cleanup


def test_a_finalizer_may_use_the_manager(make: Callable[..., Any], free_port: int) -> None:
    class Manager(PortManager):
        def __del__(self) -> None:
            seen.append((self.get_allocated_ports(), finish(self.allocate_port("api")).status))
            finish(self.cleanup())

    seen: list[Any] = []
    for cycle in (False, True):
        manager = make(PortConfig("api", free_port), cls=Manager)
        finish(manager.allocate_port("api"))
        if cycle:
            in_a_cycle(manager)
        del manager
        gc.collect()
    assert seen == [({"api": free_port}, "allocated")] * 2
    assert finish(make(PortConfig("api", free_port)).allocate_port("api")).status == "allocated"


def test_a_manager_that_is_resurrected_goes_on(make: Callable[..., Any], free_port: int) -> None:
    class Manager(PortManager):
        def __del__(self) -> None:
            kept.append(self)

    kept: list[PortManager] = []
    manager = make(PortConfig("api", free_port), cls=Manager)
    finish(manager.allocate_port("api"))
    in_a_cycle(manager)
    del manager
    gc.collect()
    assert kept[0].get_allocated_ports() == {"api": free_port}
    other = make(PortConfig("api", free_port))
    assert finish(other.allocate_port("api")).status == "in_use"
    kept[0].release_port("api")
    assert finish(other.allocate_port("api")).status == "allocated"
    kept[0].__dict__.pop("me")


def mixed_work(first: int) -> None:
    """A bit of everything that makes objects."""
    manager: Any = PortManager(PortManagerConfig(max_retries=0))
    manager.port_configs = {
        f"s{index}": PortConfig(f"s{index}", first, (first, first + 3), required=True)
        for index in range(4)
    }
    manager.keep = manager.allocate_port
    assert len(finish(manager.allocate_all_ports())) == 4
    assert set(manager.get_allocated_ports().values()) == set(range(first, first + 4))
    assert len(manager.get_environment_variables()) == 4
    assert [status.in_use for status in finish(manager.get_port_status())] == [False] * 4
    assert finish(manager.find_available_port(first, first + 3)) is None
    assert finish(manager.wait_for_port(first, 0, host="localhost")) is False
    assert finish(manager.is_port_available(first, "::1")) in (True, False)
    manager.allocated_ports.pop("s1")
    assert manager.get_port("s1") is None
    manager.is_port_available = suspending
    manager.release_port("s2")
    manager.left = waiting(manager.allocate_port("s2"))
    assert repr(copy.deepcopy(manager.config)) == repr(manager.config)
    finish(manager.cleanup())


def test_collecting_all_the_time(port_block: Callable[[int], int]) -> None:
    first = port_block(4)
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(5):
            mixed_work(first)
    finally:
        gc.set_threshold(*before)


@pytest.mark.skipif(without_gil, reason="collects at other moments than it is told to here")
def test_a_cleanup_by_the_garbage_collector() -> None:
    # Which comes at any allocation, so also while the manager walks over its own tables.
    code = """
    import gc, sys
    from portmanager import PortConfig, PortManager

    def finish(coroutine):
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value

    class Cleaner:
        def __init__(self):
            self.me = self
        def __del__(self):
            finish(manager.cleanup())

    gc.disable()
    manager = PortManager()
    for index in range(30):
        manager.port_configs[str(index)] = PortConfig(str(index), 0)
    emptied = 0
    for after in range(60):
        for index in range(30):
            finish(manager.allocate_port(str(index)))
        gc.collect()
        kept = None
        kept = [(index, after) for index in range(3000)]  # so that no free lists help
        Cleaner()
        gc.set_threshold(gc.get_count()[0] + after)
        gc.enable()
        manager.get_allocated_ports()
        gc.disable()
        emptied += not manager.allocated_ports
        gc.collect()
    print(emptied > 0)
    """
    assert run(code) == "True\n"


# Several copies of the module

PRELUDE = """
import asyncio, atexit, gc, importlib, logging, sys, threading, time, weakref
import portmanager
logging.disable()
from portmanager import PortConfig, PortManager

def finish(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value

def make(*services, cls=None):
    manager = (cls or PortManager)()
    manager.port_configs.clear()
    for service in services:
        manager.port_configs[service] = PortConfig(service, 0)
    return manager
"""


def test_an_import_anew_is_another_module() -> None:
    code = """
    def import_anew():
        for name in [name for name in sys.modules if name.startswith("portmanager")]:
            del sys.modules[name]
        return importlib.import_module("portmanager")

    old = make("api")
    port = finish(old.allocate_port("api")).allocated_port
    first, first_singleton = portmanager, portmanager.get_port_manager()
    loaded = [getattr(first, name) for name in first.__all__]  # some are when asked for
    second = import_anew()
    assert second is not first
    for name in first.__all__:
        if name != "__version__":
            assert getattr(second, name) is not getattr(first, name), name
    assert second.get_port_manager() is not first_singleton
    assert first.get_port_manager() is first_singleton
    assert second.PortConfig("a", 1) != first.PortConfig("a", 1)

    # Both work, and their ports are one process's.
    manager = second.PortManager(second.PortManagerConfig(max_retries=0))
    manager.port_configs["api"] = second.PortConfig("api", port)
    assert finish(manager.allocate_port("api")).status == "in_use"
    assert finish(manager.find_available_port(port, port)) is None
    old.release_port("api")
    assert finish(manager.allocate_port("api")).allocated_port == port
    assert finish(old.find_available_port(port, port)) is None
    try:
        first.PortManager.get_port(manager, "api")
    except TypeError:
        pass
    else:
        raise AssertionError("another module's manager")
    assert asyncio.run(old.allocate_port("api")).status == "allocated"
    print("done")
    """
    assert run(textwrap.dedent(PRELUDE) + textwrap.dedent(code)) == "done\n"


def test_a_copy_that_nobody_has_is_gone() -> None:
    code = """
    import ctypes
    def life():
        native = importlib.import_module("portmanager._native")
        manager = native.PortManager()
        manager.port_configs["api"] = native.PortConfig("api", 0)
        finish(manager.allocate_port("api"))
        manager.left = manager.wait_for_port(1)
        async def forever(port):
            await asyncio.sleep(600)
        manager.is_port_available = forever
        native.get_port_manager().kept = manager
        repr(native.PortConfig.__init__), native.PortManager.cleanup.__name__
        manager.left.close()
        reference = weakref.ref(native)
        del sys.modules["portmanager._native"]
        return reference

    for name in [name for name in sys.modules if name.startswith("portmanager.")]:
        del sys.modules[name]
    del portmanager, PortManager, PortConfig, sys.modules["portmanager"]
    importlib.import_module("portmanager")
    del sys.modules["portmanager._native"]
    counts = []
    for round in range(30):
        reference = life()
        if "portmanager" in sys.modules:
            vars(sys.modules["portmanager"]).pop("_native", None)
        gc.collect()
        assert reference() is None, round
        counts.append(len(gc.get_objects()))
    assert counts[-1] - counts[9] < 20, counts
    print("done")
    """
    assert run(textwrap.dedent(PRELUDE) + textwrap.dedent(code)) == "done\n"


def test_reload_keeps_the_objects() -> None:
    before = {name: getattr(portmanager, name) for name in portmanager.__all__}
    importlib.reload(_native)
    importlib.reload(portmanager)
    for name, thing in before.items():
        assert getattr(portmanager, name) is thing


# The interpreter's end

EXITS = {
    "a live manager": """
        manager = make("api")
        finish(manager.allocate_port("api"))
        """,
    "the singleton": "finish(portmanager.get_port_manager().allocate_all_ports())",
    "a manager in a cycle": """
        manager = make("api")
        finish(manager.allocate_port("api"))
        manager.me = manager
        manager.kept = portmanager
        """,
    "managers everywhere": """
        import builtins
        sys.kept = builtins.kept = PortManager.kept = threading.kept = make("api")
        local = threading.local()
        local.kept = make("api")
        """,
    "suspended coroutines": """
        manager = make("api")
        async def forever(port):
            await Never()
        class Never:
            def __await__(self):
                yield
        manager.is_port_available = forever
        kept = [manager.wait_for_port(1), manager.allocate_port("api"),
                manager.find_available_port(1)]
        for coroutine in kept[:1] + kept[2:]:
            coroutine.send(None)
        kept[1].close()
        manager.kept = kept
        """,
    "a suspended coroutine alone": """
        async def forever(port):
            await Never()
        class Never:
            def __await__(self):
                yield
        manager = make("api")
        manager.is_port_available = forever
        kept = manager.wait_for_port(1)
        kept.send(None)
        sys.kept = kept
        del manager, kept
        """,
    "pending monitors": """
        manager = make("api")
        finish(manager.allocate_port("api"))
        manager.start_port_monitoring("api", 0.001)
        time.sleep(0.02)
        """,
    "a loop that runs in a daemon thread": """
        manager = make("api")
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        futures = [
            asyncio.run_coroutine_threadsafe(manager.wait_for_port(1, 600, 0.0001), loop)
            for _ in range(5)
        ]
        asyncio.run_coroutine_threadsafe(manager.allocate_port("api"), loop).result()
        """,
    "daemon threads that await": """
        manager = make("api")
        started = threading.Barrier(5)
        async def wait():
            started.wait()
            await manager.wait_for_port(1, 600, 0.0001)
        for _ in range(4):
            threading.Thread(target=asyncio.run, args=(wait(),), daemon=True).start()
        started.wait()
        """,
    "daemon threads that are busy": """
        manager = make("api")
        started = threading.Barrier(5)
        def work():
            started.wait()
            while True:
                finish(manager.find_available_port(1024, 65535))
                finish(manager.allocate_port("api"))
                finish(manager.get_port_status())
                manager.release_port("api")
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        started.wait()
        time.sleep(0.02)
        """,
    "daemon threads that run": """
        started = threading.Barrier(3)
        def work():
            started.wait()
            while True:
                manager = make("api")
                finish(manager.allocate_port("api"))
                manager.me = manager
        for _ in range(2):
            threading.Thread(target=work, daemon=True).start()
        started.wait()
        time.sleep(0.02)
        """,
    "a name that is being looked up": """
        manager = make("api")
        async def main():
            task = asyncio.create_task(manager.wait_for_port(1, 600, host="localhost"))
            await asyncio.sleep(0)
            task.cancel()
        asyncio.run(main())
        """,
    "at exit": """
        manager = make("api")
        def late():
            assert finish(manager.allocate_port("api")).status == "allocated"
            assert finish(manager.get_port_status())[0].in_use is False
            manager.release_all_ports()
        atexit.register(late)
        """,
    "in a finalizer at the very end": """
        class Late(PortManager):
            def __del__(self):
                finish(self.allocate_port("api"))
                self.get_allocated_ports()
                self.release_all_ports()
        manager = sys.kept = make("api", cls=Late)
        manager.kept = [manager, portmanager]
        """,
    "an import that was taken back": """
        manager = make("api")
        for name in [name for name in sys.modules if name.startswith("portmanager")]:
            del sys.modules[name]
        del portmanager
        finish(manager.allocate_port("api"))
        """,
    "sys.exit while something runs": """
        manager = make("api")
        class Exit(PortManager):
            async def is_port_available(self, port, host="127.0.0.1"):
                print("done")
                sys.exit()
        manager = make("api", cls=Exit)
        manager.port_configs["api"].default_port = 1
        asyncio.run(manager.allocate_port("api"))
        """,
}


@pytest.mark.parametrize("what", EXITS)
def test_the_interpreter_exits_quietly(what: str) -> None:
    if what == "daemon threads that run" and sys.version_info < (3, 12):
        pytest.skip("a thread that comes for the GIL too late crashes this CPython itself")
    if what == "daemon threads that await" and without_gil:
        pytest.skip("a thread that comes too late keeps a lock of this CPython's own: a hang")
    parts = [PRELUDE, EXITS[what], "" if "sys.exit" in EXITS[what] else "print('done')"]
    assert run("\n".join(map(textwrap.dedent, parts))) == "done\n"


def test_an_exception_is_all_that_an_exit_tells() -> None:
    code = """
    manager = make("api")
    finish(manager.allocate_port("api"))
    manager.start_port_monitoring("api", 0.001)
    raise ZeroDivisionError
    """
    command = [sys.executable, "-X", "dev", "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FOREVER, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("Traceback")
    assert done.stderr.endswith("\nZeroDivisionError\n")
    assert done.stderr.count("Traceback") == 1
    assert "portmanager" not in done.stderr
