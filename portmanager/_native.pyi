"""The types of the extension; what each thing does is said in its docstring."""

import asyncio
import socket
from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar, final

from typing_extensions import Self, disjoint_base

DEFAULT_PORT_CONFIGS: list[PortConfig]

class PortConfig:
    __match_args__: ClassVar[tuple[str, ...]]
    service: str
    default_port: int
    range: tuple[int, int] | None = ...
    description: str | None = ...
    required: bool = ...
    def __init__(
        self,
        service: str,
        default_port: int,
        range: tuple[int, int] | None = None,
        description: str | None = None,
        required: bool = False,
    ) -> None: ...
    def __eq__(self, other: object) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

class PortAllocation:
    __match_args__: ClassVar[tuple[str, ...]]
    service: str
    requested_port: int
    allocated_port: int
    status: str
    message: str | None = ...
    def __init__(
        self,
        service: str,
        requested_port: int,
        allocated_port: int,
        status: str,
        message: str | None = None,
    ) -> None: ...
    def __eq__(self, other: object) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

class PortStatus:
    __match_args__: ClassVar[tuple[str, ...]]
    port: int
    service: str
    in_use: bool
    pid: int | None = ...
    allocated_at: datetime | None = ...
    def __init__(
        self,
        port: int,
        service: str,
        in_use: bool,
        pid: int | None = None,
        allocated_at: datetime | None = None,
    ) -> None: ...
    def __eq__(self, other: object) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

class PortReservation:
    __match_args__: ClassVar[tuple[str, ...]]
    port: int
    service: str | None
    pid: int | None
    since: datetime
    def __init__(
        self, port: int, service: str | None, pid: int | None, since: datetime
    ) -> None: ...
    def __eq__(self, other: object) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

class PortManagerConfig:
    __match_args__: ClassVar[tuple[str, ...]]
    port_config_path: str | None = ...
    enable_auto_allocation: bool = ...
    max_retries: int = ...
    retry_delay: float = ...
    def __init__(
        self,
        port_config_path: str | None = None,
        enable_auto_allocation: bool = True,
        max_retries: int = 10,
        retry_delay: float = 0.1,
    ) -> None: ...
    def __eq__(self, other: object) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

@disjoint_base
class PortManager:
    config: PortManagerConfig
    port_configs: dict[str, PortConfig]
    allocated_ports: dict[str, PortAllocation]
    port_monitors: dict[int, Any]
    def __new__(cls, config: PortManagerConfig | None = None) -> Self: ...
    def __init__(self, config: PortManagerConfig | None = None) -> None: ...
    async def is_port_available(self, port: int, host: str = "127.0.0.1") -> bool: ...
    async def find_available_port(
        self, start_port: int, end_port: int | None = None, host: str = "127.0.0.1"
    ) -> int | None: ...
    async def allocate_port(self, service_name: str) -> PortAllocation: ...
    async def allocate_all_ports(self) -> dict[str, PortAllocation]: ...
    async def bind_port(
        self, service_name: str, host: str = "127.0.0.1", backlog: int = 128
    ) -> socket.socket: ...
    def get_port(self, service_name: str) -> int | None: ...
    def get_allocated_ports(self) -> dict[str, int]: ...
    def release_port(self, service_name: str) -> None: ...
    def release_all_ports(self) -> None: ...
    async def get_port_status(self) -> list[PortStatus]: ...
    def get_environment_variables(self) -> dict[str, str]: ...
    async def wait_for_port(
        self,
        port: int,
        timeout: float = 30.0,
        check_interval: float = 1.0,
        host: str = "127.0.0.1",
    ) -> bool: ...
    async def save_configuration(self, file_path: str | None = None) -> None: ...
    async def cleanup(self) -> None: ...
    def start_port_monitoring(
        self,
        service_name: str,
        interval: float = 5.0,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None: ...
    def stop_port_monitoring(self, service_name: str) -> None: ...
    def _on_port_became_available(self, service_name: str, port: int) -> Any: ...

def get_port_manager(config: PortManagerConfig | None = None) -> PortManager: ...

# For the package's own modules.
@final
class _Held:
    ports: tuple[int, ...]
    found: int
    wanted: int
    borrowed: bool
    ephemeral: int
    forbidden: bool
    def release(self) -> None: ...

def _log(level: int, text: str, /) -> None: ...
def _reserve(
    count: int, consecutive: bool, key: bytes | None, label: bytes | None, first: int, last: int, /
) -> _Held: ...
def _reserved_ports(
    first: int, last: int, /
) -> list[tuple[int, str | None, int | None, float]]: ...
def _listening_ports(ports: Iterable[int], /) -> set[int]: ...
def _override(manager: PortManager, /) -> Any: ...
def _resolve(host: str, /) -> bytes: ...
