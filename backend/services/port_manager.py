"""The module of the service that portmanager replaces: the same objects as portmanager's."""

from portmanager import (
    DEFAULT_PORT_CONFIGS,
    PortAllocation,
    PortConfig,
    PortManager,
    PortManagerConfig,
    PortStatus,
    get_port_manager,
)

__all__ = [
    "DEFAULT_PORT_CONFIGS",
    "PortAllocation",
    "PortConfig",
    "PortManager",
    "PortManagerConfig",
    "PortStatus",
    "get_port_manager",
]
