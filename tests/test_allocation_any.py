"""Ports that nobody asked for by number, ports that browsers refuse, ports that take a right."""

import errno
import itertools
import os
import resource
import socket
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import isolated
import pytest
from comparing import finish
from logs import Log

from portmanager import PortConfig, PortManager, PortManagerConfig

BAD = {1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6679, 6697, 10080}
BAD |= set(range(6665, 6670))


def make(*configs: PortConfig, **options: Any) -> PortManager:
    manager = PortManager(PortManagerConfig(**{"max_retries": 0, **options}))
    manager.port_configs = {config.service: config for config in configs}
    return manager


def answer(manager: PortManager, name: str) -> list[Any]:
    allocation = finish(manager.allocate_port(name))
    assert manager.allocated_ports[name] is allocation
    return [allocation.status, allocation.allocated_port, allocation.message]


# ---- any port -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def implementation(native: SimpleNamespace) -> SimpleNamespace:
    """The extension alone."""
    return native


def ephemeral_range() -> range:
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    first, last = map(int, text.split())
    return range(first, last + 1)


@pytest.mark.parametrize("ports", [None, (50000, 50001)])
def test_any_free_port(make_manager: Any, native: Any, ports: Any) -> None:
    names = [f"service {number}" for number in range(200)]
    manager = make_manager(*(native.PortConfig(name, 0, ports) for name in names))
    seen = set()
    for name in names:
        allocation = finish(manager.allocate_port(name))
        port = allocation.allocated_port
        text = f"Allocated port {port}"
        assert allocation == native.PortAllocation(name, 0, port, "allocated", text)
        assert finish(manager.allocate_port(name)) is allocation
        seen.add(port)
    assert len(seen) == len(names)
    assert seen.isdisjoint(BAD)
    assert seen.isdisjoint(ephemeral_range())
    assert min(seen) >= 1024
    # What was given back comes last.
    manager.release_all_ports()
    assert seen.isdisjoint({finish(manager.allocate_port(name)).allocated_port for name in names})


async def test_any_port_that_an_override_refuses(make_manager: Any, native: Any) -> None:
    """It is asked about other ports, in each round."""
    manager = make_manager(native.PortConfig("api", 0), max_retries=1, retry_delay=0)
    asked: list[int] = []

    async def refuse(port: int) -> bool:
        asked.append(port)
        return False

    manager.is_port_available = refuse
    allocation = await manager.allocate_port("api")
    assert (allocation.status, allocation.allocated_port) == ("in_use", 0)
    first_round = len(asked) // 2
    assert first_round > 1
    assert len(set(asked)) == len(asked)
    asked.clear()
    manager.config.max_retries = 0
    await manager.allocate_port("api")
    assert len(asked) == first_round


def test_any_port_binds_at_once(make_manager: Any, native: Any) -> None:
    manager = make_manager(native.PortConfig("api", 0))
    port = finish(manager.allocate_port("api")).allocated_port
    with ExitStack() as stack:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("", port))


def all_but(*ports: int, last: int = 65535) -> str:
    """The ports as ip_local_reserved_ports wants them, but for those and what is behind last."""
    edges = [0, *sorted(ports), last + 1]
    pairs = itertools.pairwise(edges)
    return ",".join(f"{low + 1}-{high - 1}" for low, high in pairs if high - low > 1)


def any_of(ports: list[int]) -> list[Any]:
    """Four services, in a network where nearly all ports are set aside."""
    isolated.set_sysctl("net/ipv4/ip_local_reserved_ports", all_but(*ports, last=65530))
    isolated.set_sysctl("net/ipv4/ip_local_port_range", "65531 65535")
    log = Log()
    manager = make(*(PortConfig(name, 0) for name in "abcd"))
    return [*(answer(manager, name) for name in "abcd"), log.texts]


def test_any_port_is_fit_for_it() -> None:
    """Neither privileged nor refused by browsers nor set aside; one of the ephemeral last."""
    *answers, texts = isolated.run(any_of, [80, 2049, 5060, 7000, 7002, 10080], namespaces=True)
    assert {port for _, port, _ in answers[:2]} == {7000, 7002}
    assert {port for _, port, _ in answers[2:]} <= set(range(65531, 65536))
    for status, port, message in answers:
        assert (status, message) == ("allocated", f"Allocated port {port}")
    for (_, port, _), text in zip(answers[2:], texts, strict=True):
        assert text.startswith("WARNING [PortManager] ")
        assert "ephemeral" in text
        assert str(port) in text


def any_that_binds(family: int, kind: int, host: str) -> list[Any]:
    isolated.set_sysctl("net/ipv4/ip_local_port_range", "65530 65535")
    isolated.set_sysctl("net/ipv4/ip_local_reserved_ports", all_but(7000, 7002))
    manager = make(PortConfig("a", 0), PortConfig("b", 0))
    with socket.socket(family, kind) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, 7000))
        answers = [answer(manager, "a"), answer(manager, "b")]
    return [*answers, answer(manager, "b")]


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.20.4"), (socket.AF_INET6, "::1")],
)
def test_any_port_needs_no_option(family: int, kind: int, host: str) -> None:
    """A server that sets no SO_REUSEADDR, and one of UDP, can have it."""
    one, none, last = isolated.run(any_that_binds, family, kind, host, namespaces=True)
    assert one == ["allocated", 7002, "Allocated port 7002"]
    assert none[:2] == ["in_use", 0]
    assert last == ["allocated", 7000, "Allocated port 7000"]


# ---- ports that browsers refuse -----------------------------------------------------------------


def documented_service(busy: list[int]) -> list[Any]:
    log = Log()
    manager = PortManager(PortManagerConfig(max_retries=0))
    with ExitStack() as stack:
        for port in busy:
            stack.enter_context(socket.create_server(("127.0.0.1", port)))
        return [*answer(manager, "python-ai-service"), log.texts]


@pytest.mark.parametrize(
    ("busy", "port"), [(range(5050, 5060), 5060), (range(5050, 5059), 5059), ([5050], 5051)]
)
def test_refused_port_of_a_range(busy: Any, port: int) -> None:
    status, allocated, message, texts = isolated.run(
        documented_service, list(busy), namespaces=True
    )
    assert (status, allocated) == ("allocated", port)
    assert message == f"Default port 5050 was in use. Allocated alternative port {port}"
    assert [str(port) in text for text in texts] == ([True] if port == 5060 else [])


def refused_ports_last(overridden: str) -> list[Any]:
    """Services with one range, for which no port but those of the range is free."""
    manager = make(*(PortConfig(name, 5059, (5059, 5063)) for name in "abcdef"))
    if overridden == "is_port_available":
        real = manager.is_port_available

        async def probe(port: int) -> bool:
            return await real(port)

        manager.is_port_available = probe  # type: ignore[method-assign, assignment]
    return [answer(manager, name)[1] for name in "abcdef"]


@pytest.mark.parametrize("overridden", ["", "is_port_available"])
def test_refused_ports_come_last(overridden: str) -> None:
    ports = isolated.run(refused_ports_last, overridden, namespaces=True)
    assert ports == [5059, 5062, 5063, 5060, 5061, 0]


def refused_defaults(ports: list[int]) -> list[Any]:
    log = Log()
    manager = make(*(PortConfig(f"port {port}", port) for port in ports))
    return [[*answer(manager, f"port {port}"), log.texts] for port in ports][-1:] + [
        [*allocation_of(manager, f"port {port}")] for port in ports
    ]


def allocation_of(manager: PortManager, name: str) -> list[Any]:
    allocation = manager.allocated_ports[name]
    return [allocation.status, allocation.allocated_port, allocation.message]


def test_refused_port_that_is_configured() -> None:
    ports = sorted(BAD)
    (last, *answers) = isolated.run(refused_defaults, [5059, *ports, 5062], namespaces=True)
    for port, outcome in zip([5059, *ports, 5062], answers, strict=True):
        assert outcome == ["allocated", port, f"Allocated default port {port}"]
    texts = last[-1]
    assert len(texts) == len(ports)
    for port, text in zip(ports, texts, strict=True):
        assert text.startswith("WARNING [PortManager] ")
        assert str(port) in text
        assert "browsers" in text


# ---- ports that take a right ------------------------------------------------------------------


def start_of_the_unprivileged() -> int:
    """What is below needs a right that this process does not have; 0 if nothing does."""
    start = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    isolated.become_unprivileged()
    with socket.socket() as plain:
        try:
            plain.bind(("127.0.0.1", start - 1))
        except PermissionError:
            return start
        except OverflowError:
            return 0
    return 0


def privileged(case: str) -> list[Any]:
    start = start_of_the_unprivileged()
    if start < 4:
        return []
    config = PortConfig("api", start - 1)
    # A retry would raise: there is no event loop.
    manager = make(config, max_retries=5, retry_delay=0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        if case == "range":
            config.range = (start - 2, start + 200)
        elif case == "privileged range":
            config.range = (start - 3, start - 1)
        elif case == "busy range":
            manager.config.max_retries = 0
            config.range = (server.getsockname()[1],) * 2
        elif case == "find_available_port":

            async def find(start_port: int, end_port: int | None = None) -> int | None:
                return None

            config.range = (start, start)
            manager.find_available_port = find  # type: ignore[method-assign, assignment]
        return [start, *answer(manager, "api")]


def run_unprivileged(function: Any, *arguments: Any) -> Any:
    outcome = isolated.run(function, *arguments, namespaces=os.geteuid() == 0)
    if not outcome:
        pytest.skip("no port needs a right here")
    return outcome


@pytest.mark.parametrize("case", ["", "privileged range", "find_available_port"])
def test_privileged_port_without_alternative(case: str) -> None:
    start, status, port, message = run_unprivileged(privileged, case)
    assert (status, port) == ("error", 0)
    for part in (f"ort {start - 1} ", "privilege", f"{start}", "CAP_NET_BIND_SERVICE"):
        assert part in message
    assert "in use" not in message


def test_privileged_port_with_an_alternative() -> None:
    start, status, port, message = run_unprivileged(privileged, "range")
    assert status == "allocated"
    assert start <= port <= start + 200
    assert message.startswith(f"Default port {start - 1} ")
    assert message.endswith(f". Allocated alternative port {port}")
    assert "privilege" in message
    assert "in use" not in message


def test_privileged_port_and_busy_alternatives() -> None:
    """Waiting may help, but it is not the default port that is in use."""
    start, status, port, message = run_unprivileged(privileged, "busy range")
    assert (status, port) == ("in_use", 0)
    assert f"Port {start - 1} is in use" not in message


def low_ports_for_all() -> list[Any]:
    isolated.set_sysctl("net/ipv4/ip_unprivileged_port_start", "0")
    if os.geteuid() == 0:
        isolated.become_unprivileged()
    return answer(make(PortConfig("api", 79)), "api")


def test_the_system_decides_what_is_privileged() -> None:
    assert isolated.run(low_ports_for_all, namespaces=True)[:2] == ["allocated", 79]


# ---- out of descriptors and memory ------------------------------------------------------------


def exhausted(error: int, port: int, ports: list[int] | None, left: int) -> list[Any]:
    manager = make(PortConfig("api", port, tuple(ports) if ports else None), max_retries=5)  # type: ignore[arg-type]
    if error == errno.EMFILE:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        isolated.use_up_descriptors(left)
        manager.config.max_retries = 0 if left else 5  # running out is no reason to wait
        outcome = answer(manager, "api")
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        return [*outcome, finish(manager.allocate_port("api")).status]
    for family in (socket.AF_INET, socket.AF_INET6):
        isolated.refuse_sockets(family, error)
    return [*answer(manager, "api"), "allocated"]


OTHERS = [errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]


@isolated.needs_seccomp
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        *((kind, errno.EMFILE) for kind in ("default", "range", "any")),
        *(("default", error) for error in OTHERS),
    ],
)
def test_exhausted(free_port: int, error: int, kind: str) -> None:
    ports = (free_port, free_port) if kind == "range" else None
    port = 0 if kind == "any" else free_port
    status, allocated, message, afterwards = isolated.run(exhausted, error, port, ports, 0)
    assert (status, allocated) == ("error", 0)
    assert os.strerror(error) in message
    assert "in use" not in message
    assert afterwards == "allocated"


@pytest.mark.parametrize("left", [1, 2])
def test_nearly_out_of_descriptors(busy_port: int, left: int) -> None:
    """Enough for the look that says busy, not for the one that knows."""
    status, _, message, _ = isolated.run(exhausted, errno.EMFILE, busy_port, None, left)
    assert status in {"error", "in_use"}
    assert (status == "error") == (os.strerror(errno.EMFILE) in message)
    if left == 1:
        assert status == "error"


def exhausted_with_override(port: int) -> list[Any]:
    """The ledger is new, and has no descriptor left to be opened with."""

    class Careful(PortManager):
        async def is_port_available(self, port: int, host: str = "127.0.0.1") -> bool:
            raise AssertionError("asked about a port that is not claimed")

    manager = Careful(PortManagerConfig(max_retries=5))
    manager.port_configs = {"api": PortConfig("api", port)}
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    isolated.use_up_descriptors(0)
    try:
        return answer(manager, "api")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_exhausted_with_an_override(free_port: int) -> None:
    status, port, message = isolated.run(exhausted_with_override, free_port)
    assert (status, port) == ("error", 0)
    assert os.strerror(errno.EMFILE) in message
