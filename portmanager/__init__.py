"""Hands out TCP ports to the services of a program: nobody gets the same port twice.

manager = portmanager.get_port_manager()
allocation = await manager.allocate_port("python-ai-service")

with portmanager.reserve() as port:
    ...
"""

from portmanager._native import (
    DEFAULT_PORT_CONFIGS,
    PortAllocation,
    PortConfig,
    PortManager,
    PortManagerConfig,
    PortReservation,
    PortStatus,
    get_port_manager,
)
from portmanager._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from portmanager._reservation import PortsExhausted, Reservation, reserve, reserved_ports

__all__ = [
    "DEFAULT_PORT_CONFIGS",
    "PortAllocation",
    "PortConfig",
    "PortManager",
    "PortManagerConfig",
    "PortReservation",
    "PortStatus",
    "PortsExhausted",
    "Reservation",
    "__version__",
    "get_port_manager",
    "reserve",
    "reserved_ports",
]


def __getattr__(name: str) -> object:
    """What not every program needs is imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from portmanager import _reservation

    value: object = getattr(_reservation, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
