"""Code that uses the manager in the middle of one of its methods, or interrupts it."""

import asyncio
import contextlib
import gc
import inspect
import logging
import signal
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import hostile
import isolated
import pytest
from comparing import ASYNC_METHODS, finish
from hostile import DICTS, PORTS, Stop

import portmanager
from portmanager import PortConfig, PortManager, PortManagerConfig

DO: dict[str, Callable[[Any], Any]] = {
    "release_port": lambda manager: manager.release_port("api"),
    "release_all_ports": lambda manager: manager.release_all_ports(),
    "cleanup": lambda manager: finish(manager.cleanup()),
    "__init__": lambda manager: manager.__init__(),
    "clear dicts": lambda manager: [getattr(manager, name).clear() for name in DICTS],
    "new dicts": lambda manager: manager.__dict__.update({name: {} for name in DICTS}),
    "no dicts": lambda manager: [manager.__dict__.pop(name, None) for name in DICTS],
    "no __dict__": lambda manager: manager.__dict__.clear(),
    "config": lambda manager: setattr(manager, "config", None),
    "allocate another": lambda manager: finish(manager.allocate_port("web")),
    "allocate the same": lambda manager: finish(manager.allocate_port("api")),
    "allocate all": lambda manager: finish(manager.allocate_all_ports()),
    "status": lambda manager: finish(manager.get_port_status()),
    "collect": lambda manager: gc.collect(),
    "raise": lambda manager: 1 // 0,
    "interrupt": lambda manager: (_ for _ in ()).throw(Stop),
}


@pytest.fixture(autouse=True, scope="module")
def little_garbage() -> Iterator[None]:
    """What is there already need not be looked at in each of the many collections."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def first(port_block: Callable[[int], int]) -> int:
    """The first of some free ports."""
    return port_block(PORTS)


@pytest.fixture
def manager(first: int) -> Iterator[Any]:
    """A manager with three services that share a range."""
    manager: Any = PortManager(PortManagerConfig(max_retries=0))
    manager.port_configs = {
        name: PortConfig(name, first, (first, first + PORTS - 1), None, True)
        for name in ("api", "web", "db")
    }
    yield manager
    manager.__dict__.clear()
    manager.__init__()
    manager.release_all_ports()
    hostile.check_nothing_is_held(first)


def once(manager: Any, action: str) -> Callable[[], None]:
    """A function that does it to the manager at its first call."""
    calls: list[str] = []

    def act() -> None:
        if not calls:
            calls.append(action)
            DO[action](manager)

    return act


def use(manager: Any, first: int) -> None:
    """Allocate; what is then reported as allocated is nobody else's to have."""
    allowed = (*hostile.EXPECTED, ZeroDivisionError)
    with contextlib.suppress(*allowed):
        finish(manager.allocate_port("api"))
    manager.__dict__.pop("is_port_available", None)
    manager.__dict__.pop("find_available_port", None)
    if "allocated_ports" not in manager.__dict__:
        return
    ports = set(manager.get_allocated_ports().values())
    assert len(ports) == len(manager.get_allocated_ports())
    other = PortManager(PortManagerConfig(max_retries=0))
    for port in range(first, first + PORTS):
        other.port_configs["api"] = PortConfig("api", port)
        status = finish(other.allocate_port("api")).status
        assert status == ("in_use" if port in ports else "allocated")
        other.release_all_ports()


@pytest.mark.parametrize("action", DO)
def test_in_an_override(manager: Any, first: int, action: str) -> None:
    act = once(manager, action)

    async def available(port: int) -> bool:
        act()
        return True

    manager.is_port_available = available
    use(manager, first)


@pytest.mark.parametrize("action", DO)
def test_in_a_search(manager: Any, first: int, action: str) -> None:
    act = once(manager, action)

    async def find(start_port: int, end_port: int | None = None) -> int:
        act()
        return start_port + 1

    manager.find_available_port = find
    owner = PortManager()
    owner.port_configs["api"] = PortConfig("api", first)
    assert finish(owner.allocate_port("api")).status == "allocated"
    with contextlib.suppress(*hostile.EXPECTED, ZeroDivisionError):
        finish(manager.allocate_port("api"))
    owner.release_all_ports()
    use(manager, first)


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR])
@pytest.mark.parametrize("action", [action for action in DO if action != "interrupt"])
def test_in_a_log_handler(
    manager: Any, first: int, action: str, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hostile.unraisable(monkeypatch), hostile.log_handler(once(manager, action)):
        if level == logging.ERROR:
            with contextlib.suppress(AttributeError):
                finish(manager.allocate_port("no such service"))
        use(manager, first)


@pytest.mark.parametrize("where", ["default_port", "range", "max_retries", "service"])
@pytest.mark.parametrize("action", DO)
def test_in_a_value(manager: Any, first: int, action: str, where: str) -> None:
    act = once(manager, action)
    armed: list[bool] = []

    class Index:
        def __index__(self) -> int:
            act()
            return 0 if where == "max_retries" else first

    class Name(str):
        def __hash__(self) -> int:
            return str.__hash__(self)

        def __eq__(self, other: object) -> bool:
            if armed:
                act()
            return str.__eq__(self, other)

    config = manager.port_configs["api"]
    if where == "default_port":
        config.default_port = Index()
    elif where == "range":
        config.range = (first, Index())
    elif where == "max_retries":
        manager.config.max_retries = Index()
    else:
        manager.port_configs[Name("api")] = manager.port_configs.pop("api")
    armed.append(True)
    use(manager, first)


@pytest.mark.parametrize("method", ["__setitem__", "__getitem__", "__delitem__"])
@pytest.mark.parametrize("action", DO)
def test_in_a_mapping(manager: Any, first: int, action: str, method: str) -> None:
    act = once(manager, action)
    plain = getattr(dict, method)

    def acting(self: Any, *arguments: Any) -> Any:
        act()
        return plain(self, *arguments)

    acting_dict: Any = type("Acting", (dict,), {method: acting})
    manager.allocated_ports = acting_dict()
    with contextlib.suppress(*hostile.EXPECTED, ZeroDivisionError):
        finish(manager.allocate_port("web"))
        manager.release_port("web")
    use(manager, first)


@pytest.mark.parametrize("action", DO)
def test_in_a_monitor(manager: Any, first: int, action: str) -> None:
    act = once(manager, action)
    finish(manager.allocate_port("api"))
    manager.port_monitors = {first: SimpleNamespace(cancel=act)}
    for name in ("release_port", "cleanup"):
        with contextlib.suppress(*hostile.EXPECTED, ZeroDivisionError):
            if name == "cleanup":
                finish(manager.cleanup())
            else:
                manager.release_port("api")
    use(manager, first)


def test_let_go_in_the_middle(first: int) -> None:
    """The coroutine keeps its manager for as long as it takes."""
    manager: Any = PortManager()
    manager.port_configs["api"] = PortConfig("api", first)
    reference = weakref.ref(manager)
    seen = []

    class Asking:
        async def __call__(self, port: int) -> bool:
            gc.collect()
            seen.append(reference() is not None)
            return True

    manager.is_port_available = Asking()
    coroutine = manager.allocate_port("api")
    del manager
    assert finish(coroutine).allocated_port == first
    assert seen == [True]
    del coroutine
    assert reference() is None
    hostile.check_nothing_is_held(first)


# ---- interrupts -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
@pytest.mark.parametrize("name", ["is_port_available", "find_available_port"])
def test_interrupt_in_an_override(
    manager: Any, first: int, name: str, error: type[BaseException]
) -> None:
    async def interrupted(*_: Any) -> Any:
        raise error("from the override")

    if name == "find_available_port":
        manager.port_configs["api"].range = (first + 1, first + 1)
    setattr(manager, name, interrupted)
    owner: Any = PortManager()
    owner.port_configs["api"] = PortConfig("api", first)
    if name == "find_available_port":
        finish(owner.allocate_port("api"))
    with pytest.raises(error, match="from the override"):
        finish(manager.allocate_port("api"))
    assert manager.allocated_ports == {}
    owner.release_all_ports()
    hostile.check_nothing_is_held(first)


NTH = 8
METHODS: dict[str, Callable[[Any], Any]] = {
    "allocate_port": lambda manager: finish(manager.allocate_port("web")),
    "get_port": lambda manager: manager.get_port("web"),
    "get_allocated_ports": lambda manager: manager.get_allocated_ports(),
    "get_environment_variables": lambda manager: manager.get_environment_variables(),
    "get_port_status": lambda manager: finish(manager.get_port_status()),
    "release_port": lambda manager: manager.release_port("web"),
    "release_all_ports": lambda manager: manager.release_all_ports(),
    "cleanup": lambda manager: finish(manager.cleanup()),
}


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_interrupt_in_a_comparison(manager: Any, method: str, asked: bool) -> None:
    """At whichever time it comes, it comes out."""

    class Status:
        def __init__(self, number: int) -> None:
            self.left = number

        def __eq__(self, other: object) -> bool:
            self.left -= 1
            if self.left == 0:
                raise Stop
            return other == "allocated"

        __hash__ = None  # type: ignore[assignment]

    async def available(port: int) -> bool:
        return True

    if asked:
        manager.is_port_available = available
    finish(manager.allocate_port("api"))
    for number in range(1, NTH):
        status = Status(number)
        manager.allocated_ports["web"] = SimpleNamespace(status=status, allocated_port=1)
        with contextlib.suppress(Stop):
            METHODS[method](manager)
            assert status.left != 0, "lost"


def interrupt_while_logging() -> list[Any]:
    manager: Any = PortManager()
    manager.port_configs["api"] = PortConfig("api", 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    calls: list[bool] = []

    def press() -> None:
        if not calls:
            calls.append(True)
            signal.raise_signal(signal.SIGINT)

    interrupted = False
    with hostile.log_handler(press):
        try:
            finish(manager.allocate_port("api"))
            for _ in range(1000):
                pass
        except KeyboardInterrupt:
            interrupted = True
    # Either it was allocated or not, but both sides know.
    port = manager.get_port("api")
    manager.release_all_ports()
    return [calls, interrupted, port is None or port >= 1024]


def test_interrupt_in_a_log_handler_is_not_lost() -> None:
    assert isolated.run(interrupt_while_logging) == [[True], True, True]


def test_log_handler_that_fails_harms_nothing(
    manager: Any, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with hostile.unraisable(monkeypatch) as reported, hostile.log_handler(fail):
        assert finish(manager.allocate_port("api")).allocated_port == first
        assert finish(manager.allocate_port("x")).status == "error"
        manager.release_all_ports()
    assert set(reported) == {ZeroDivisionError}
    assert manager.allocated_ports == {}


# ---- managers that are none ---------------------------------------------------------------------


class Unfinished(PortManager):
    """A subclass that forgot something."""

    def __init__(self) -> None:
        pass


CALLS: dict[str, tuple[Any, ...]] = {
    **ASYNC_METHODS,
    "get_port": ("api",),
    "get_allocated_ports": (),
    "release_port": ("api",),
    "release_all_ports": (),
    "get_environment_variables": (),
    "start_port_monitoring": ("api",),
    "stop_port_monitoring": ("api",),
}
NEEDS_NOTHING = {"is_port_available", "find_available_port", "wait_for_port"}


@pytest.mark.parametrize("make", [Unfinished, lambda: PortManager.__new__(PortManager)])
@pytest.mark.parametrize("name", CALLS)
def test_without_init(name: str, make: Callable[[], Any]) -> None:
    def call(manager: Any) -> Any:
        arguments = (1, 0) if name == "wait_for_port" else CALLS[name]
        result = getattr(manager, name)(*arguments)
        return finish(result) if inspect.iscoroutine(result) else result

    manager = make()
    if name in NEEDS_NOTHING:
        call(manager)
    else:
        with pytest.raises(AttributeError, match=r"config|port_|allocated_ports"):
            call(manager)
    # It is not too late.
    PortManager.__init__(manager)
    manager.config.port_config_path = None
    if name != "save_configuration":
        call(manager)
    manager.release_all_ports()


@pytest.mark.parametrize("wrong", [None, 5, "api", object(), PortManager, SimpleNamespace()])
@pytest.mark.parametrize("name", [*CALLS, "__init__", "_on_port_became_available"])
def test_wrong_self(name: str, wrong: Any) -> None:
    arguments = CALLS.get(name, ("api", 1) if name.startswith("_on") else ())
    with pytest.raises(TypeError, match=rf"PortManager\.{name}\(\) is for PortManager objects"):
        getattr(PortManager, name)(wrong, *arguments)
    with pytest.raises(TypeError, match="missing"):
        getattr(PortManager, name)()


@pytest.mark.parametrize("name", ["PortConfig", "PortAllocation", "PortStatus"])
def test_wrong_self_of_a_record(name: str) -> None:
    cls: Any = getattr(portmanager, name)
    values = [None] * len(cls.__match_args__)
    for wrong in (None, 5, object()):
        with pytest.raises((TypeError, AttributeError)):
            cls.__init__(wrong, *values)
        with pytest.raises((TypeError, AttributeError)):
            cls.__repr__(wrong)
        assert cls.__eq__(cls(*values), wrong) is NotImplemented


def test_init_twice(manager: Any, first: int) -> None:
    config = PortManagerConfig(max_retries=3)
    before = {name: getattr(manager, name) for name in DICTS}
    assert finish(manager.allocate_port("api")).allocated_port == first
    assert manager.__init__(config) is None
    assert manager.config is config
    for name in DICTS:
        assert getattr(manager, name) is not before[name]
    assert list(manager.port_configs) == [c.service for c in portmanager.DEFAULT_PORT_CONFIGS]
    assert manager.allocated_ports == manager.port_monitors == {}
    assert manager.get_port("api") is None
    hostile.check_nothing_is_held(first)


@pytest.mark.parametrize("config", [5, "text", object(), SimpleNamespace()])
def test_init_with_nonsense(config: Any) -> None:
    with pytest.raises(AttributeError, match="port_config_path"):
        PortManager(config)
    manager = PortManager()
    with pytest.raises(AttributeError, match="port_config_path"):
        manager.__init__(config)  # type: ignore[misc]
    assert manager.config == PortManagerConfig()
    assert manager.get_port("api") is None
