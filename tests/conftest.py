"""Fixtures that every test may use: ports, and managers of either implementation."""

import importlib
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
import twin
from comparing import FIELDS

PUBLIC_NAMES = (
    "PortManager",
    "PortConfig",
    "PortAllocation",
    "PortStatus",
    "PortManagerConfig",
    "get_port_manager",
    "DEFAULT_PORT_CONFIGS",
)
_given: set[int] = set()
# Parallel runs must not give one port to two tests: each worker of pytest-xdist has its share.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def _load(name: str) -> SimpleNamespace:
    module = importlib.import_module({"twin": "twin", "native": "portmanager"}[name])
    return SimpleNamespace(
        name=name, **{public: getattr(module, public) for public in PUBLIC_NAMES}
    )


@pytest.fixture(scope="session", params=["twin", "native"])
def implementation(request: pytest.FixtureRequest) -> SimpleNamespace:
    """The public names, once from the plain Python service and once from the extension."""
    return _load(request.param)


@pytest.fixture(scope="session")
def native() -> SimpleNamespace:
    """The public names of the extension, where the twin has nothing to say."""
    return _load("native")


def _is_free(stack: ExitStack, port: int) -> int:
    """Bind a port on both loopback addresses until the stack closes; 0 if it is not free."""
    bound = port
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            holder = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            holder.bind((host, bound))
        except OSError:
            if family == socket.AF_INET or _has_ipv6():
                return 0
        else:
            bound = holder.getsockname()[1]
    return bound


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture(scope="session")
def port_block() -> Callable[[int], int]:
    """Find the first of so many consecutive ports that are free; no port is given twice."""

    def find(count: int) -> int:
        for _ in range(1000):
            with ExitStack() as stack:
                first = _is_free(stack, 0)
                block = range(first, first + count)
                if not first or block[-1] > 65535 or not _given.isdisjoint(block):
                    continue
                if any(port // 128 % _WORKERS != _WORKER for port in block):
                    continue
                if all(_is_free(stack, port) for port in block[1:]):
                    _given.update(block)
                    return first
        raise AssertionError(f"this machine has no {count} free ports in a row")

    return find


@pytest.fixture
def free_port(port_block: Callable[[int], int]) -> int:
    """A port that nothing is bound to."""
    return port_block(1)


@pytest.fixture
def block(port_block: Callable[[int], int]) -> range:
    """Seven consecutive ports that nothing is bound to."""
    first = port_block(7)
    return range(first, first + 7)


@pytest.fixture
def busy_port() -> Iterator[int]:
    """A port that a socket listens on while the test runs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def make_manager(implementation: SimpleNamespace) -> Iterator[Callable[..., Any]]:
    """Make managers that know only the given configurations; all are cleaned up at the end.

    Busy ports are not retried unless the options say so, which keeps tests short.
    """
    made = []

    def make(*configs: Any, cls: Any = None, **options: Any) -> Any:
        options = {"max_retries": 0, "retry_delay": 0.001, **options}
        manager = (cls or implementation.PortManager)(implementation.PortManagerConfig(**options))
        manager.port_configs.clear()
        manager.port_configs.update({config.service: config for config in configs})
        made.append(manager)
        return manager

    yield make
    for manager in made:
        manager.release_all_ports()


@pytest.fixture(params=FIELDS)
def record_name(request: pytest.FixtureRequest) -> str:
    """Each record's name in turn."""
    return str(request.param)


@pytest.fixture
def record(implementation: SimpleNamespace, record_name: str) -> Any:
    """The record class under test."""
    return getattr(implementation, record_name)


@pytest.fixture
def model(record_name: str) -> Any:
    """The twin's class of the same name."""
    return getattr(twin, record_name)


@pytest.fixture
def values(record_name: str) -> tuple[str, ...]:
    """One value for each field; types do not matter to a dataclass."""
    return tuple(f"<{field}>" for field in FIELDS[record_name])
