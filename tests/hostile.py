"""Objects that raise, lie or use the manager when they are looked at, and a manager to meet them.

What an object does is an action by name, so that an example that fails can be read.
"""

import contextlib
import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import portmanager
from portmanager import PortAllocation, PortConfig, PortManager, PortManagerConfig

RECORDS = (PortAllocation, PortConfig, portmanager.PortStatus, PortManagerConfig)
PORTS = 6
NAMES = ("api", "web", "db")
DICTS = ("port_configs", "allocated_ports", "port_monitors")
ATTRIBUTES = ("config", *DICTS)
OVERRIDES = ("is_port_available", "find_available_port", "allocate_port")


class Boom(Exception):
    """What hostile objects raise."""


class Stop(KeyboardInterrupt):
    """What they raise that is no Exception."""


# What the manager may raise of its own, and what comes out of the objects.
DOCUMENTED = (TypeError, ValueError, OSError, AttributeError)
EXPECTED = (*DOCUMENTED, LookupError, Boom, Stop, StopIteration, RuntimeError)


class World:
    """A manager, and what hostile objects do to it."""

    def __init__(self, first: int) -> None:
        self.first, self.depth = first, 0
        self.managers: list[weakref.ref[Any]] = []
        self.do_forget("", None)

    def reset(self) -> None:
        """Give the manager three services that share a range."""
        last = self.first + PORTS - 1
        self.manager.port_configs = {
            name: PortConfig(name, self.first, (self.first, last), None, True) for name in NAMES
        }
        self.manager.config = PortManagerConfig(max_retries=0)

    def act(self, action: str, default: Any) -> Any:
        """Do what an object is there for; the default where that would never end."""
        if self.depth > 2:
            return default
        self.depth += 1
        try:
            kind, _, what = action.partition(" ")
            return getattr(self, f"do_{kind}")(what, default)
        finally:
            self.depth -= 1

    def do_raise(self, what: str, _: Any) -> Any:
        raise {"Boom": Boom, "Stop": Stop, "StopIteration": StopIteration, "TypeError": TypeError}[
            what
        ]("hostile")

    def do_return(self, what: str, default: Any) -> Any:
        values = {"None": None, "True": True, "text": "text", "port": self.first, "huge": 10**30}
        return values.get(what, default)

    def do_call(self, what: str, default: Any) -> Any:
        self.call(what, "api")
        return default

    def do_init(self, _: str, default: Any) -> Any:
        self.manager.__init__()
        self.reset()
        return default

    def do_clear(self, what: str, default: Any) -> Any:
        for name in DICTS:
            with contextlib.suppress(*EXPECTED):
                getattr(self.manager, name).clear()
        return default

    def do_delete(self, what: str, default: Any) -> Any:
        self.manager.__dict__.pop(what, None)
        return default

    def do_forget(self, _: str, default: Any) -> Any:
        """Let go of the manager; who is in the middle of something goes on with the old one."""
        self.manager: Any = PortManager()
        self.managers.append(weakref.ref(self.manager))
        self.reset()
        return default

    def do_collect(self, _: str, default: Any) -> Any:
        gc.collect(0)
        return default

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method, with as many of the arguments as fit; run a coroutine a few steps."""
        method = getattr(self.manager, name)
        count = {"is_port_available": 2, "find_available_port": 3, "wait_for_port": 4}.get(name, 1)
        if name in {"release_all_ports", "cleanup", "get_allocated_ports", "get_port_status"}:
            count = 0
        if name in {"get_environment_variables", "allocate_all_ports"}:
            count = 0
        return drive(method(*arguments[:count]))

    def release(self) -> None:
        """Let the manager give everything back, after it was made usable again."""
        self.depth = 99  # from here on the objects do nothing
        for name in (*OVERRIDES, *ATTRIBUTES):
            self.manager.__dict__.pop(name, None)
        self.manager.__init__()
        self.manager.release_all_ports()

    def give_up(self) -> None:
        """Whatever is still held must not disturb the next example."""
        for reference in self.managers:
            if (manager := reference()) is not None:
                PortManager.__init__(manager)
                manager.release_all_ports()


def check_nothing_is_held(first: int) -> None:
    """Fail unless a fresh manager can have all of the ports."""
    other: Any = PortManager(PortManagerConfig(max_retries=0))
    other.port_configs = {}

    async def free(port: int) -> bool:
        return True

    other.is_port_available = free
    for port in range(first, first + PORTS):
        other.port_configs["check"] = PortConfig("check", port)
        allocation = drive(other.allocate_port("check"))
        assert allocation.status == "allocated", allocation.message
        other.release_all_ports()


def drive(result: Any) -> Any:
    """Run a coroutine for a few steps without an event loop, then close it."""
    if not hasattr(result, "send"):
        return result
    try:
        for _ in range(3):
            result.send(None)
    except StopIteration as stop:
        return stop.value
    finally:
        if hasattr(result, "close"):
            result.close()
    return None


# ---- the objects -----------------------------------------------------------------------------

DEFAULTS: dict[str, Callable[[Any], Any]] = {
    "__eq__": lambda self: NotImplemented,
    "__hash__": lambda self: 1,
    "__index__": lambda self: self.world.first,
    "__float__": lambda self: 0.0,
    "__bool__": lambda self: True,
    "__str__": lambda self: "hostile",
    "__repr__": lambda self: "<hostile>",
    "__len__": lambda self: 2,
    "__getitem__": lambda self: self.world.first,
    "__iter__": lambda self: iter(()),
    "__call__": lambda self: None,
    "__await__": lambda self: iter(()),
}
TEXT_METHODS = ("__eq__", "__hash__", "__str__", "__repr__", "upper", "encode", "__len__")


class Hostile:
    """An object whose special methods, and attributes, do what it was told."""

    def __init__(self, world: World, actions: dict[str, str]) -> None:
        self.__dict__.update(world=world, actions=actions)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in {"send", "throw", "close"}:
            raise AttributeError(name)
        return self.world.act(self.actions.get("__getattr__", "raise Boom"), self.world.first)


class HostileText(str):
    """A str with methods of its own."""

    world: World
    actions: dict[str, str]


def _make(name: str, default: Callable[[Any], Any]) -> Callable[..., Any]:
    def method(self: Any, *_: Any) -> Any:
        if name not in self.actions:
            return default(self)
        return self.world.act(self.actions[name], default(self))

    return method


for _name, _default in DEFAULTS.items():
    setattr(Hostile, _name, _make(_name, _default))
for _name in TEXT_METHODS:
    _plain = getattr(str, _name)
    if _name == "__eq__":
        setattr(HostileText, _name, _make(_name, lambda self: NotImplemented))
    else:
        setattr(HostileText, _name, _make(_name, _plain))


def hostile_text(world: World, text: str, actions: dict[str, str]) -> HostileText:
    result = HostileText(text)
    result.world, result.actions = world, actions
    return result


class HostileDict(dict):  # type: ignore[type-arg]
    """A mapping that does something when it is used, and is a dict all the same."""

    world: World
    action = ""

    def __getitem__(self, key: Any) -> Any:
        return self.world.act(self.action, None) or super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.world.act(self.action, None)
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        self.world.act(self.action, None)
        super().__delitem__(key)

    def items(self) -> Any:
        return self.world.act(self.action, None) or super().items()

    def values(self) -> Any:
        return self.world.act(self.action, None) or super().values()


@contextlib.contextmanager
def log_handler(emit: Callable[[], Any]) -> Iterator[None]:
    """Something that is called at each line of the log."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            emit()

    handler, logger = Handler(logging.DEBUG), logging.getLogger("portmanager")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


@contextlib.contextmanager
def unraisable(patch: Any) -> Iterator[list[Any]]:
    """Collects what could not be raised; a SystemError among it is a defect."""
    found: list[Any] = []
    patch.setattr("sys.unraisablehook", lambda report: found.append(report.exc_type))
    yield found
    assert SystemError not in found
