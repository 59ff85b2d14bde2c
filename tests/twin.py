"""The documented service in plain Python: what the extension is compared with.

Tests run the same assertions on both, benchmarks take this one as the rival. It keeps its
reservations to itself: other managers and other processes do not see them.
"""

import asyncio
import errno
import json
import logging
import math
import os
import re
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

log = logging.getLogger("portmanager.twin")

LOCALHOST = "127.0.0.1"
# What browsers refuse to fetch from, as far as a range of unprivileged ports can meet it.
BAD_PORTS = {1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6679, 6697, 10080}
BAD_PORTS.update(range(6665, 6670))
NO_ANSWER = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass
class PortConfig:
    """How a service wants its port."""

    service: str
    default_port: int
    range: tuple[int, int] | None = None
    description: str | None = None
    required: bool = False


@dataclass
class PortAllocation:
    """What a service got."""

    service: str
    requested_port: int
    allocated_port: int
    status: str
    message: str | None = None


@dataclass
class PortStatus:
    """How an allocated port fares."""

    port: int
    service: str
    in_use: bool
    pid: int | None = None
    allocated_at: datetime | None = None


@dataclass
class PortManagerConfig:
    """How a manager goes about it."""

    port_config_path: str | None = None
    enable_auto_allocation: bool = True
    max_retries: int = 10
    retry_delay: float = 0.1


DEFAULT_PORT_CONFIGS = [
    PortConfig("vite-dev-server", 5176, (5173, 5180), "Vite development server", True),
    PortConfig("python-ai-service", 5050, (5050, 5060), "Python AI document analysis service"),
    PortConfig("electron-dev-api", 8080, (8080, 8090), "Electron development API server"),
    PortConfig("playwright-debug", 9323, (9320, 9330), "Playwright debugger"),
]


class Monitor(threading.Thread):
    """Looks at one port every interval seconds until it is cancelled."""

    def __init__(self, manager: "PortManager", service: str, port: int, interval: float) -> None:
        super().__init__(daemon=True)
        self.manager, self.service, self.port, self.interval = manager, service, port, interval
        self.loop = asyncio._get_running_loop()
        self.stopped = threading.Event()
        self.cancel, self.done = self.stopped.set, self.stopped.is_set

    def run(self) -> None:
        was_up = False
        while not self.stopped.wait(self.interval):
            is_up = not asyncio.run(self.manager.is_port_available(self.port))
            if was_up and not is_up:
                log.warning("[PortManager] Port %d of %s fell free", self.port, self.service)
                if self.loop is None:
                    asyncio.run(self.tell())
                else:
                    asyncio.run_coroutine_threadsafe(self.tell(), self.loop)
            was_up = is_up

    async def tell(self) -> None:
        answer = self.manager._on_port_became_available(self.service, self.port)
        if asyncio.iscoroutine(answer):
            await answer


class PortManager:
    """Hands out ports to services."""

    def __init__(self, config: PortManagerConfig | None = None) -> None:
        self.config = config if config is not None else PortManagerConfig()
        self.port_configs: dict[str, PortConfig] = {
            default.service: replace(default) for default in DEFAULT_PORT_CONFIGS
        }
        self.allocated_ports: dict[str, PortAllocation] = {}
        self.port_monitors: dict[int, Monitor] = {}
        self._allocated_at: dict[str, datetime] = {}
        self._claims: set[int] = set()
        self._attempts: dict[tuple[str, object], list[asyncio.Future[PortAllocation | None]]] = {}
        self._lock = threading.RLock()
        path = self.config.port_config_path
        if path and Path(path).exists():
            self._load(Path(path))

    async def is_port_available(self, port: int, host: str = LOCALHOST) -> bool:
        """Say whether a TCP socket can be bound there."""
        _check_port(port, 0)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host.strip("[]"), port))
        except OSError as error:
            if error.errno in NO_ANSWER:
                raise
            return False
        return True

    async def find_available_port(
        self, start_port: int, end_port: int | None = None, host: str = LOCALHOST
    ) -> int | None:
        """Find the first free port of start..end, both included."""
        _check_port(start_port, 1)
        end = min(start_port + 100, 65535) if end_port is None else end_port
        _check_port(end, 1)
        for port in range(start_port, end + 1):
            if self._claim(port):
                try:
                    if await self._probe(port, host):
                        return port
                finally:
                    self._claims.discard(port)
        return None

    async def allocate_port(self, service_name: str) -> PortAllocation:
        """Give a service its port: the default one, else one of its range."""
        key = service_name, asyncio._get_running_loop()
        while (others := self._attempts.get(key)) is not None:
            other: asyncio.Future[PortAllocation | None] = asyncio.Future()
            others.append(other)
            # None: whoever made the attempt was cancelled, so it is for one of us to make it.
            if (result := await other) is not None:
                return result
        waiting = self._attempts[key] = []
        result = None
        try:
            result = await self._attempt(service_name)
            return result
        finally:
            del self._attempts[key]
            for other in waiting:
                if not other.done():
                    other.set_result(result)

    async def allocate_all_ports(self) -> dict[str, PortAllocation]:
        """Allocate the ports of all services that are required."""
        required = [name for name, config in self.port_configs.items() if config.required]
        return {name: await self.allocate_port(name) for name in required}

    def get_port(self, service_name: str) -> int | None:
        """Get the allocated port of a service."""
        entry = self._allocation_of(service_name)
        return None if entry is None else entry.allocated_port

    def get_allocated_ports(self) -> dict[str, int]:
        """Get all allocated ports by service."""
        with self._lock:
            entries = list(self.allocated_ports.items())
        return {name: entry.allocated_port for name, entry in entries if _is_allocated(entry)}

    def release_port(self, service_name: str) -> None:
        """Give the port of a service back."""
        self.stop_port_monitoring(service_name)
        with self._lock:
            self.allocated_ports.pop(service_name, None)
            self._allocated_at.pop(service_name, None)

    def release_all_ports(self) -> None:
        """Give all ports back."""
        for service_name in list(self.allocated_ports):
            self.release_port(service_name)

    async def get_port_status(self) -> list[PortStatus]:
        """Describe each allocated port."""
        return [
            PortStatus(port, name, not await self._probe(port), None, self._allocated_at.get(name))
            for name, port in self.get_allocated_ports().items()
        ]

    def get_environment_variables(self) -> dict[str, str]:
        """Get the variables that tell programs the allocated ports."""
        return {
            re.sub("[^A-Z0-9_]", "_", name.upper()) + "_PORT": str(port)
            for name, port in self.get_allocated_ports().items()
        }

    async def wait_for_port(
        self, port: int, timeout: float = 30.0, check_interval: float = 1.0, host: str = LOCALHOST
    ) -> bool:
        """Wait until something listens; both times are in seconds."""
        _check_port(port, 0)
        if math.isnan(timeout) or math.isnan(check_interval):
            raise ValueError("timeout and check_interval must be numbers of seconds, not NaN")
        deadline = time.monotonic() + timeout
        pause = 0.001
        while await self._probe(port, host):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await asyncio.sleep(min(pause, left))
            pause = max(0.001, min(pause * 2, check_interval))
        return True

    async def save_configuration(self, file_path: str | None = None) -> None:
        """Write configurations and allocations as JSON."""
        path = file_path or self.config.port_config_path
        if not path:
            raise ValueError("No configuration file path: give file_path or port_config_path")
        content = {
            "timestamp": datetime.now().isoformat(),
            "portConfigs": [asdict(config) for config in self.port_configs.values()],
            "allocations": [asdict(a) for a in self.allocated_ports.values() if _is_allocated(a)],
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        part = Path(f"{path}.part")
        part.write_text(json.dumps(content, indent=2))
        os.replace(part, path)

    async def cleanup(self) -> None:
        """Save, where a path is configured, and give everything back."""
        if self.config.port_config_path:
            try:
                await self.save_configuration()
            except OSError:
                log.exception("[PortManager] Cannot save the configuration")
        self.release_all_ports()

    def start_port_monitoring(
        self,
        service_name: str,
        interval: float = 5.0,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Look every interval seconds whether something still listens."""
        port = self.get_port(service_name)
        if port is not None:
            self.stop_port_monitoring(service_name)
            monitor = self.port_monitors[port] = Monitor(self, service_name, port, interval)
            monitor.loop = loop or asyncio._get_running_loop()
            monitor.start()

    def stop_port_monitoring(self, service_name: str) -> None:
        """End the monitor of a service."""
        port = self.get_port(service_name)
        if port is not None and (monitor := self.port_monitors.pop(port, None)):
            monitor.cancel()

    def _on_port_became_available(self, service_name: str, port: int) -> Any:
        """For subclasses: nothing listens any more on a monitored port."""

    async def _probe(self, port: int, host: str = LOCALHOST) -> bool:
        if host == LOCALHOST:  # Overrides need not take a host.
            return await self.is_port_available(port)
        return await self.is_port_available(port, host)

    def _claim(self, port: int) -> bool:
        """Keep others away from a port while it is looked at."""
        with self._lock:
            entries = filter(_is_allocated, self.allocated_ports.values())
            if port in self._claims or any(entry.allocated_port == port for entry in entries):
                return False
            self._claims.add(port)
            return True

    async def _attempt(self, service: str) -> PortAllocation:
        if entry := self._allocation_of(service):
            return entry
        if (config := self.port_configs.get(service)) is None:
            text = f"No port configuration found for service: {service}"
            return self._store(service, 0, 0, "error", text)
        if problem := _problem(config):
            text = f"Configuration of {service}: {problem}"
            return self._store(service, 0, 0, "error", text)
        for attempt in range(max(self.config.max_retries, 0) + 1):
            if attempt:
                await asyncio.sleep(max(self.config.retry_delay, 0))
            if allocation := await self._round(service, config):
                return allocation
        text = f"Port {config.default_port} is in use and no alternatives available"
        return self._store(service, config.default_port, 0, "in_use", text)

    async def _round(self, service: str, config: PortConfig) -> PortAllocation | None:
        wanted = config.default_port
        if wanted == 0:
            return await self._take(service, 0, [_any_port()], "Allocated port {}", True)
        text = "Allocated default port {}"
        allocation = await self._take(service, wanted, [wanted], text)
        if allocation or not self.config.enable_auto_allocation or config.range is None:
            return allocation
        text = f"Default port {wanted} was in use. Allocated alternative port {{}}"
        start, end = config.range
        if getattr(self.find_available_port, "__func__", None) is not _find_available_port:
            found = await self.find_available_port(start, end)
            return await self._take(service, wanted, [] if found is None else [found], text, True)
        candidates = sorted(range(start, end + 1), key=BAD_PORTS.__contains__)
        return await self._take(service, wanted, candidates, text)

    async def _take(
        self, service: str, wanted: int, ports: Iterable[int], text: str, is_free: bool = False
    ) -> PortAllocation | None:
        for port in ports:
            if self._claim(port):
                try:
                    if is_free or await self._probe(port):
                        return self._store(service, wanted, port, "allocated", text.format(port))
                finally:
                    self._claims.discard(port)
        return None

    def _store(self, name: str, wanted: int, port: int, status: str, text: str) -> PortAllocation:
        with self._lock:
            # Another thread may have been quicker; the first success is everyone's.
            if entry := self._allocation_of(name):
                return entry
            self._allocated_at[name] = datetime.now()
            entry = PortAllocation(name, wanted, port, status, text)
            self.allocated_ports[name] = entry
            return entry

    def _allocation_of(self, service: str) -> PortAllocation | None:
        entry = self.allocated_ports.get(service)
        return entry if entry is not None and _is_allocated(entry) else None

    def _load(self, path: Path) -> None:
        known = {field.name for field in fields(PortConfig)}
        try:
            content = json.loads(path.read_text())
            configs = []
            for entry in content["portConfigs"] if isinstance(content, dict) else content:
                snake = {re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", k): entry[k] for k in entry}
                if isinstance(snake.get("range"), list):
                    snake["range"] = tuple(snake["range"])
                configs.append(PortConfig(**{k: snake[k] for k in snake if k in known}))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            log.exception("[PortManager] Cannot load %s, the defaults are used", path)
        else:
            self.port_configs = {config.service: config for config in configs}


_find_available_port = PortManager.find_available_port
_singleton: PortManager | None = None


def get_port_manager(config: PortManagerConfig | None = None) -> PortManager:
    """Get the manager that everybody shares; the config counts at the first call."""
    global _singleton  # noqa: PLW0603
    if _singleton is None:
        _singleton = PortManager(config)
    elif config is not None and config != _singleton.config:
        log.warning("[PortManager] The manager exists already: another config is ignored")
    return _singleton


def _is_allocated(entry: PortAllocation) -> bool:
    return entry.status == "allocated"


def _check_port(port: Any, lowest: int) -> None:
    if not isinstance(port, int):
        raise TypeError(f"port must be an integer, not {type(port).__name__}")
    if not lowest <= port <= 65535:
        raise ValueError(f"port must be in {lowest}..65535, not {port}")


def _problem(config: PortConfig) -> str | None:
    port, pair = config.default_port, config.range
    if not isinstance(port, int) or not 0 <= port <= 65535:
        return f"default_port must be a port, not {port!r}"
    if pair is not None:
        is_pair = isinstance(pair, (tuple, list)) and [type(end) for end in pair] == [int, int]
        if not is_pair or not 1 <= pair[0] <= pair[1] <= 65535:
            return f"range must be the lowest and the highest port, not {pair!r}"
    return None


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        return int(probe.getsockname()[1])
