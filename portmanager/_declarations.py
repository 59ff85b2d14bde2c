"""What introspection shows of the functions and classes that are written in C.

Nothing here is ever instantiated, and no body here ever runs. The extension imports this module
when somebody asks for a signature, a docstring, a code object or a dataclass's fields, and takes
those from the function or class of the same name; and when a call does not fit a signature, so
that Python itself words the TypeError. What the functions do is in ``csrc/ext``.

Annotations are real objects, not strings, and written as the documentation writes them.
"""

import asyncio
import socket
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Awaitable, Dict, List, Optional

from portmanager import _native


async def awaiting(awaitable: Awaitable[Any]) -> Any:
    """Await what has no ``__await__``: a generator-based coroutine, or a TypeError."""
    return await awaitable


@dataclass
class PortConfig:
    service: str
    default_port: int
    range: tuple[int, int] | None = None
    description: str | None = None
    required: bool = False


@dataclass
class PortAllocation:
    service: str
    requested_port: int
    allocated_port: int
    status: str
    message: str | None = None


@dataclass
class PortStatus:
    port: int
    service: str
    in_use: bool
    pid: int | None = None
    allocated_at: datetime | None = None


@dataclass
class PortReservation:
    port: int
    service: str | None
    pid: int | None
    since: datetime


@dataclass
class PortManagerConfig:
    port_config_path: str | None = None
    enable_auto_allocation: bool = True
    max_retries: int = 10
    retry_delay: float = 0.1


def get_port_manager(
    config: Optional[_native.PortManagerConfig] = None,
) -> _native.PortManager:
    """The PortManager of this process, made at the first call.

    ``config`` counts at the first call; a later, different one is ignored with a warning in the
    log. May read the configuration file.
    """
    raise NotImplementedError


class PortManager:
    def __init__(self, config: Optional[_native.PortManagerConfig] = None) -> None:
        """Make a manager; ``config.port_config_path`` is read, if there is such a file.

        A file that cannot be used is logged as an error, and the default configurations are
        used.
        """

    async def is_port_available(self, port: int, host: str = "127.0.0.1") -> bool:
        """Can a server that sets SO_REUSEADDR bind the port on a host of this machine now?

        The operating system's own answer, found by binding the port for a moment; it says
        nothing about reservations. ``port`` is 0..65535 (0: some free port); ``host`` an IPv4 or
        IPv6 literal, ``''`` for the wildcards, or a name, of which every address that is this
        machine's must be free. False too if none is, and where a privilege is missing.

        TypeError or ValueError for what is no port or no host, OSError when the answer is not
        known (out of descriptors or memory). Names are resolved in another thread.
        """
        raise NotImplementedError

    async def find_available_port(
        self, start_port: int, end_port: Optional[int] = None, host: str = "127.0.0.1"
    ) -> Optional[int]:
        """The first port of start_port..end_port that can be bound and that nobody holds.

        Both ends are included; without ``end_port`` it is ``start_port + 100``, at most 65535.
        None if there is none. Nothing stays held: only allocate_port() makes a reservation.

        TypeError or ValueError for ports outside 1..65535, OSError when the answer is not known.
        """
        raise NotImplementedError

    async def allocate_port(self, service_name: str) -> _native.PortAllocation:
        """Reserve a port for a service: its default, else the lowest free one of its range.

        The same PortAllocation every time until it is released. Where all are busy, tried again
        up to ``max_retries`` times, ``retry_delay`` seconds apart; then status 'in_use'. Status
        'error' for an unknown service, a bad configuration, and where a privilege or
        descriptors are missing; the message says which. Every outcome is in
        ``allocated_ports``.
        """
        raise NotImplementedError

    async def allocate_all_ports(self) -> Dict[str, _native.PortAllocation]:
        """Allocate a port for each service whose configuration says required, in order."""
        raise NotImplementedError

    async def bind_port(
        self, service_name: str, host: str = "127.0.0.1", backlog: int = 128
    ) -> socket.socket:
        """Allocate a port for a service, and listen on it at once.

        The socket is bound with SO_REUSEADDR and listens on ``host`` (``''``: all addresses,
        IPv4 and IPv6); it is the caller's to pass on and to close. The allocation is
        allocate_port()'s, and stays when the socket is closed or could not be made.

        OSError with the allocation's message where no port is to be had, and where the host
        cannot be bound; TypeError or ValueError for what is no host or backlog. Names are
        resolved in another thread.
        """
        raise NotImplementedError

    def get_port(self, service_name: str) -> Optional[int]:
        """The port that is allocated to a service, or None."""
        raise NotImplementedError

    def get_allocated_ports(self) -> Dict[str, int]:
        """The allocated ports by service."""
        raise NotImplementedError

    def release_port(self, service_name: str) -> None:
        """Give a service's port back and stop its monitor; nothing for an unknown service."""
        raise NotImplementedError

    def release_all_ports(self) -> None:
        """Give every port back and stop the monitors."""
        raise NotImplementedError

    async def get_port_status(self) -> List[_native.PortStatus]:
        """The status of each allocated port: does something listen, and which process?

        One look at the kernel's tables for all of them; nothing is bound or connected. OSError
        when the kernel does not tell.
        """
        raise NotImplementedError

    def get_environment_variables(self) -> Dict[str, str]:
        """``{'PYTHON_AI_SERVICE_PORT': '5050'}`` for each allocated port.

        The service's name in upper case, with '_' for what a variable's name cannot hold.
        """
        raise NotImplementedError

    async def wait_for_port(
        self,
        port: int,
        timeout: float = 30.0,
        check_interval: float = 1.0,
        host: str = "127.0.0.1",
    ) -> bool:
        """Wait until something listens where a client on ``host`` reaches it.

        True as soon as it does, False after ``timeout`` seconds; 0 or less looks once. Looks
        come quickly at first, at last ``check_interval`` seconds apart. The port is never bound
        and never connected to.

        TypeError or ValueError for what is no port (1..65535), no number of seconds, or no host.
        """
        raise NotImplementedError

    async def save_configuration(self, file_path: Optional[str] = None) -> None:
        """Save configurations and allocations as JSON, by default to ``port_config_path``.

        Atomic and durable: a crash leaves the old file or the new one. Over a file that was
        loaded, its shape and its unknown keys stay. ValueError without a path; what goes wrong
        is logged and raised.
        """
        raise NotImplementedError

    async def cleanup(self) -> None:
        """End monitors, save if there is a ``port_config_path``, and give every port back.

        An error of saving is logged, not raised.
        """
        raise NotImplementedError

    def start_port_monitoring(
        self,
        service_name: str,
        interval: float = 5.0,
        loop: Optional[asyncio.AbstractEventLoop] = None,
    ) -> None:
        """Look every ``interval`` seconds whether something listens on a service's port.

        When nothing does any more where something did, a warning is logged and
        ``_on_port_became_available`` is called: on ``loop`` or the running event loop, or from
        a thread where there is none. A second start replaces the first; nothing happens for a
        service that is not allocated. ValueError for an interval that is not above 0.
        """
        raise NotImplementedError

    def stop_port_monitoring(self, service_name: str) -> None:
        """End the monitor of a service's port, if there is one."""
        raise NotImplementedError

    def _on_port_became_available(self, service_name: str, port: int) -> Any:
        """Called by a monitor; does nothing. For subclasses; may be an ``async def``."""
        raise NotImplementedError
