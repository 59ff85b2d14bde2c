"""The import path of the service that portmanager replaces; re-exports only.

``backend`` is a namespace package, so that an application's own ``backend`` wins, and this
package takes in the modules of an application's ``backend/services`` folders.
"""

import os
import sys


def _other_folders() -> list[str]:
    """The application's own backend/services folders, as pkgutil.extend_path finds them."""
    parent = sys.modules.get(__name__.rpartition(".")[0])
    entries = list(getattr(parent, "__path__", ()))
    if not all(map(os.path.isdir, entries)):  # a zip file, for example
        from pkgutil import extend_path  # which costs more to import than all of ours

        return [folder for folder in extend_path(__path__, __name__) if folder not in __path__]
    folders = [os.path.join(entry, "services") for entry in entries]
    return [folder for folder in folders if folder not in __path__ and os.path.isdir(folder)]


__path__ += _other_folders()

from backend.services.port_manager import (  # noqa: E402
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
