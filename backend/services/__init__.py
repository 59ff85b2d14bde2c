"""The import path of the service that portmanager replaces; re-exports only.

``backend`` is a namespace package, so that an application's own ``backend`` wins, and this
package takes in the modules of an application's ``backend/services`` folders.
"""

import sys

# pkgutil costs more to import than all of ours; without other folders there is nothing to add.
if len(sys.modules[__name__.rpartition(".")[0]].__path__) > 1 if "." in __name__ else False:
    __path__ = __import__("pkgutil").extend_path(__path__, __name__)

from backend.services.port_manager import (
    PortAllocation,
    PortConfig,
    PortManager,
    PortManagerConfig,
    PortStatus,
    get_port_manager,
)

__all__ = [
    "PortAllocation",
    "PortConfig",
    "PortManager",
    "PortManagerConfig",
    "PortStatus",
    "get_port_manager",
]
