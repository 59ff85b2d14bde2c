"""Small helpers for tests that compare the extension with its twin."""

import types
import typing
from collections.abc import Callable, Generator
from typing import Any

from hypothesis import HealthCheck, settings

# Machines that run tests may be busy with other things.
RELAXED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# The fields of the records, in order, and what those that have a default default to.
FIELDS = {
    "PortConfig": ("service", "default_port", "range", "description", "required"),
    "PortAllocation": ("service", "requested_port", "allocated_port", "status", "message"),
    "PortStatus": ("port", "service", "in_use", "pid", "allocated_at"),
    "PortManagerConfig": (
        "port_config_path",
        "enable_auto_allocation",
        "max_retries",
        "retry_delay",
    ),
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "PortConfig": {"range": None, "description": None, "required": False},
    "PortAllocation": {"message": None},
    "PortStatus": {"pid": None, "allocated_at": None},
    "PortManagerConfig": {
        "port_config_path": None,
        "enable_auto_allocation": True,
        "max_retries": 10,
        "retry_delay": 0.1,
    },
}

# Arguments that do for making a coroutine; it need not be run.
ASYNC_METHODS: dict[str, tuple[Any, ...]] = {
    "is_port_available": (1,),
    "find_available_port": (1,),
    "allocate_port": ("api",),
    "allocate_all_ports": (),
    "get_port_status": (),
    "wait_for_port": (1,),
    "save_configuration": (),
    "cleanup": (),
}


def error_of(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Type and text of the exception that the call raises."""
    try:
        result = call(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"no exception, but {result!r}")


def plain_hint(hint: Any) -> Any:
    """A type hint in a form that is equal for both implementations and every spelling."""
    arguments = tuple(plain_hint(argument) for argument in typing.get_args(hint))
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return frozenset(arguments)
    if origin is not None:
        return origin, arguments
    return hint.__qualname__ if isinstance(hint, type) else hint


def finish(coroutine: Any) -> Any:
    """Run a coroutine that has nothing to wait for, without an event loop."""
    try:
        waits_for = coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError(f"waits for {waits_for!r}")


@types.coroutine
def switch(value: Any) -> Generator[Any, Any, Any]:
    """Suspend the coroutine with a value and take what is sent."""
    return (yield value)


async def suspending(port: int) -> Any:
    """An override of is_port_available that asks whoever runs the coroutine."""
    return await switch(f"available {port}?")


def make_waiting(manager_class: Any) -> Any:
    """Make a coroutine that suspends once, and returns whether it was sent something false."""
    manager = manager_class()
    manager.is_port_available = suspending
    return manager.wait_for_port(50000)
