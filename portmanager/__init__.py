"""Hands out TCP ports to the services of a program: nobody gets the same port twice.

manager = portmanager.get_port_manager()
allocation = await manager.allocate_port("python-ai-service")
"""

from portmanager._native import (
    DEFAULT_PORT_CONFIGS,
    PortAllocation,
    PortConfig,
    PortManager,
    PortManagerConfig,
    PortStatus,
    get_port_manager,
)
from portmanager._version import __version__

__all__ = [
    "DEFAULT_PORT_CONFIGS",
    "PortAllocation",
    "PortConfig",
    "PortManager",
    "PortManagerConfig",
    "PortStatus",
    "__version__",
    "get_port_manager",
]
