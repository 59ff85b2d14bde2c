"""reserve(): which ports it gives, in which order, and what it says when there are too few."""

import asyncio
import errno
import itertools
import os
import pickle
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import isolated
import pytest
from logs import Log
from reserving import another, is_held, said_by, within

from portmanager import (
    PortConfig,
    PortManager,
    PortManagerConfig,
    PortsExhausted,
    Reservation,
    reserve,
    reserved_ports,
)

FOREVER = 60.0  # seconds: longer than anything here takes, to fail instead of hanging


def alone(
    ledger: Path, function: Callable[..., Any], *arguments: Any, namespaces: bool = True
) -> Any:
    """Run a function with a ledger of its own, and a network of its own."""
    env = {"PORTMANAGER_LEDGER": str(ledger)}
    return isolated.run(function, *arguments, namespaces=namespaces, env=env)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """Where nobody has a past."""
    tmp_path.chmod(0o755)
    return tmp_path / "ledger"


# ---- one, several, consecutive --------------------------------------------------------------


def test_one_port() -> None:
    reservation = reserve()
    assert isinstance(reservation, Reservation)
    port = reservation.port
    assert type(port) is int
    assert reservation.ports == (port,)
    assert repr(reservation) == f"<Reservation of port {port}>"
    with reservation as given:
        assert given == port
        assert port in {held.port for held in reserved_ports()}
    assert repr(reservation) == f"<Reservation of port {port}, released>"
    assert reservation.ports == (port,)
    assert port not in {held.port for held in reserved_ports()}


@pytest.mark.parametrize("count", [1, 2, 5, 300])
def test_several_ports(count: int) -> None:
    reservation = reserve(count)
    with reservation as ports:
        assert type(ports) is tuple
        assert ports == reservation.ports
        assert reservation.port == ports[0]
        assert len(set(ports)) == count
        assert {held.port for held in reserved_ports()} >= {*ports}


@pytest.mark.parametrize("count", [1, 2, 50])
def test_consecutive_ports(count: int) -> None:
    with reserve(count, consecutive=True) as ports, reserve(count, consecutive=True) as more:
        for run in (ports, more):
            assert run == (*range(run[0], run[0] + count),)
        assert {*ports}.isdisjoint(more)


def test_consecutive_ports_around_one_that_is_taken(block: range) -> None:
    with socket.create_server(("127.0.0.1", block[2])):
        with reserve(4, consecutive=True, **within(block)) as ports:
            assert ports == (*block[3:],)
        with pytest.raises(PortsExhausted) as caught:
            reserve(5, consecutive=True, **within(block))
        assert (caught.value.requested, caught.value.available) == (5, 4)
        assert "5 consecutive ports" in str(caught.value)
    with reserve(7, consecutive=True, **within(block)) as ports:
        assert ports == (*block,)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_range(block: range, count: int) -> None:
    with reserve(count, **within(block)) as ports:
        assert {*ports} <= {*block}
        assert len(set(ports)) == count


@pytest.mark.parametrize(
    "arguments",
    [
        *({"count": value} for value in (0, -1, 65536, 10**30)),
        *({"start": value} for value in (0, -1, 65536, 10**30)),
        *({"end": value} for value in (0, -1, 65536, 10**30)),
        {"start": 7001, "end": 7000},
        {"end": 1023},
    ],
)
def test_bad_values(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"count|start|end") as caught:
        reserve(**arguments)
    for name, value in arguments.items():
        assert name in str(caught.value)
        assert str(value) in str(caught.value)


@pytest.mark.parametrize("name", ["count", "start", "end"])
@pytest.mark.parametrize("value", ["7000", 7000.0, (7000, 7001), b"7"])
def test_bad_types(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=name) as caught:
        reserve(**{name: value})
    assert repr(value) in str(caught.value)


def test_whatever_is_an_integer(block: range) -> None:
    class Number:
        def __init__(self, value: int) -> None:
            self.value = value

        def __index__(self) -> int:
            return self.value

    numbers: list[Any] = [Number(value) for value in (2, block[1], block[2])]
    with reserve(numbers[0], start=numbers[1], end=numbers[2]) as ports:
        assert sorted(ports) == [block[1], block[2]]


# ---- when there are none ------------------------------------------------------------------------


HOLD = """
    held = portmanager.reserve(start=int(sys.argv[1]), end=int(sys.argv[1]))
    print(held.port, flush=True)
    sys.stdin.readline()
"""


def test_exhausted(block: range) -> None:
    """All or none; who holds the rest is said."""
    manager = PortManager(PortManagerConfig(max_retries=0))
    manager.port_configs = {"api": PortConfig("api", block[1])}
    with ExitStack() as stack:
        stack.enter_context(socket.create_server(("127.0.0.1", block[0])))
        asyncio.run(manager.allocate_port("api"))
        process = stack.enter_context(another(HOLD, block[2]))
        assert said_by(process) == str(block[2])
        stack.enter_context(reserve(start=block[3], end=block[3]))
        with pytest.raises(PortsExhausted) as caught:
            reserve(4, **within(block))
        assert not any(is_held(port) for port in block[4:])
        holders = [held for held in reserved_ports() if held.port in block]
    manager.release_all_ports()
    error = caught.value
    assert isinstance(error, OSError)
    assert error.errno == errno.EADDRINUSE
    assert (error.requested, error.available, error.holders) == (4, 3, holders)
    assert [(held.port, held.service, held.pid) for held in holders] == [
        (block[1], "api", os.getpid()),
        (block[2], None, process.pid),
        (block[3], None, os.getpid()),
    ]
    text = str(error)
    for part in (
        *("4 ports were asked for", f"in {block[0]}-{block[-1]}", "only 3 could be had"),
        *(f"{block[1]} by pid {os.getpid()} (api)", f"{block[2]} by pid {process.pid}"),
    ):
        assert part in text
    copied = pickle.loads(pickle.dumps(error))
    assert (type(copied), str(copied), vars(copied)) == (PortsExhausted, text, vars(error))


def test_exhausted_by_many(block: range, port_block: Callable[[int], int]) -> None:
    """So many holders that a message cannot name them all."""
    first = port_block(20)
    with reserve(20, start=first, end=first + 19) as ports:
        with pytest.raises(PortsExhausted, match="none could be had") as caught:
            reserve(start=first, end=first + 19)
        assert [held.port for held in caught.value.holders] == sorted(ports)
        assert (caught.value.requested, caught.value.available) == (1, 0)
        assert 300 < len(str(caught.value)) < 600
        assert f"{first} by pid {os.getpid()}" in str(caught.value)
        assert "1 port was asked for" in str(caught.value)
        assert "12 more" in str(caught.value)


def without_a_privilege() -> list[Any]:
    isolated.set_sysctl("net/ipv4/ip_unprivileged_port_start", "1024")
    with reserve(start=1000, end=1000) as port:
        pass
    if os.geteuid() == 0:
        isolated.become_unprivileged()
    with reserve(start=1000, end=1024) as passed_over:
        pass
    try:
        reserve(2, start=1000, end=1001)
    except PortsExhausted as error:
        return [port, passed_over, error.available, str(error)]
    return []


def test_exhausted_without_a_privilege(ledger: Path) -> None:
    if os.geteuid():
        pytest.skip("nobody can give a right up that they have by name alone")
    port, passed_over, available, text = alone(ledger, without_a_privilege)
    assert (port, passed_over, available) == (1000, 1024, 0)
    assert "privilege" in text


# ---- which ports --------------------------------------------------------------------------------


def set_aside_all_but(*ports: int) -> None:
    """Nothing else is fit but the ephemeral range: the last five."""
    pairs = itertools.pairwise([0, *sorted(ports), 65531])
    isolated.set_sysctl(
        "net/ipv4/ip_local_reserved_ports",
        ",".join(f"{low + 1}-{high - 1}" for low, high in pairs if high - low > 1),
    )
    isolated.set_sysctl("net/ipv4/ip_local_port_range", "65531 65535")
    isolated.set_sysctl("net/ipv4/ip_unprivileged_port_start", "2000")


def fit(ports: list[int]) -> list[Any]:
    set_aside_all_but(*ports)
    log = Log()
    with reserve() as fit:
        texts = [*log.texts]
        with reserve(4) as rest:
            try:
                reserve(3)
            except PortsExhausted as error:
                return [fit, rest, error.available, texts, log.texts]
    return []


def test_ports_are_fit(ledger: Path) -> None:
    """Not privileged, refused by browsers or set aside; one of the ephemeral as a last resort."""
    ports = [80, 1500, 2049, 5060, 7000, 7002, 10080]
    first, (second, *rest), available, none, (text,) = alone(ledger, fit, ports)
    assert sorted([first, second]) == [7000, 7002]
    assert {*rest} < {*range(65531, 65536)}
    assert len(rest) == 3
    assert available == 2
    assert none == []
    assert text.startswith("WARNING [PortManager] ")
    assert "ephemeral" in text
    assert str(rest[0]) in text
    assert str(second) not in text


def fit_in_a_row(ports: list[int]) -> list[Any]:
    set_aside_all_but(*ports)
    log = Log()
    with reserve(3, consecutive=True) as fit, reserve(4, consecutive=True) as ephemeral:
        return [fit, ephemeral, log.texts]


def test_consecutive_ports_are_fit(ledger: Path) -> None:
    fit, ephemeral, (text,) = alone(ledger, fit_in_a_row, [*range(5058, 5065)])
    assert fit == [5062, 5063, 5064]
    assert ephemeral in ([*range(65531, 65535)], [*range(65532, 65536)])
    assert f"{ephemeral[0]}-{ephemeral[-1]}" in text


def asked_for() -> list[Any]:
    set_aside_all_but(7000)
    log = Log()
    with ExitStack() as stack:
        ranges = [(5059, 5062)] * 4 + [(7001, 7001), (65531, 65531)]
        return [
            [stack.enter_context(reserve(start=first, end=last)) for first, last in ranges],
            stack.enter_context(reserve(start=65535)),
            1024 <= stack.enter_context(reserve(end=1030)) <= 1030,
            log.texts,
        ]


def test_ports_that_were_asked_for(ledger: Path) -> None:
    """They are given, set aside or not; those that browsers refuse come last."""
    ports = [5059, 5062, 5060, 5061, 7001, 65531]
    assert alone(ledger, asked_for) == [ports, 65535, True, []]


def leave_in_time_wait(stack: ExitStack, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        server.accept()[0].close()
        assert client.recv(1) == b""


def bind(stack: ExitStack, kind: socket.SocketKind, host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = stack.enter_context(socket.socket(family, kind))
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((host, port))
    return bound


UNFIT: dict[str, Callable[[ExitStack, int], object]] = {
    "UDP": lambda stack, port: bind(stack, socket.SOCK_DGRAM, "127.0.0.1", port),
    "UDP of IPv6": lambda stack, port: bind(stack, socket.SOCK_DGRAM, "::1", port),
    "bound": lambda stack, port: bind(stack, socket.SOCK_STREAM, "127.0.0.1", port),
    "listening": lambda stack, port: bind(stack, socket.SOCK_STREAM, "127.0.20.4", port).listen(),
    "of IPv6": lambda stack, port: bind(stack, socket.SOCK_STREAM, "::1", port).listen(),
    "in TIME_WAIT": leave_in_time_wait,
}


@pytest.mark.parametrize("what", UNFIT)
def test_ports_bind_without_an_option(block: range, what: str) -> None:
    """Neither SO_REUSEADDR nor TCP is taken for granted."""
    with ExitStack() as stack:
        UNFIT[what](stack, block[0])
        with pytest.raises(PortsExhausted) as caught:
            reserve(3, **within(block[:3]))
        assert (caught.value.available, caught.value.holders) == (2, [])
        assert {*stack.enter_context(reserve(2, **within(block[:3])))} == {block[1], block[2]}


def test_ports_can_be_bound() -> None:
    with reserve(20) as ports, ExitStack() as stack:
        for port, kind in itertools.product(ports, (socket.SOCK_STREAM, socket.SOCK_DGRAM)):
            stack.enter_context(socket.socket(socket.AF_INET, kind)).bind(("", port))


# ---- in which order ----------------------------------------------------------------------------


def returned(first: int) -> list[Any]:
    ports = within(range(first, first + 5))
    held = [reserve(**ports) for _ in range(5)]
    given = [reservation.port for reservation in held]
    for number in (3, 1, 0, 4, 2):
        held[number].release()
    again = [reserve(**ports) for _ in range(5)]
    return [given, [reservation.port for reservation in again]]


def test_lately_returned_last(block: range, ledger: Path) -> None:
    """The one that has rested for the longest time comes first."""
    given, again = alone(ledger, returned, block[0], namespaces=False)
    assert given == [*block[:5]]
    assert again == [block[number] for number in (3, 1, 0, 4, 2)]


def test_lately_returned_by_other_processes(block: range, ledger: Path) -> None:
    """Whether they gave it back or died."""
    code = """
        held = portmanager.reserve(start=int(sys.argv[1]), end=int(sys.argv[1]) + 3)
        print(held.port, flush=True)
        sys.stdin.readline()
        held.release()
    """
    given = []
    for number in range(5):
        with another(code, block[0], PORTMANAGER_LEDGER=str(ledger)) as process:
            given.append(int(said_by(process)))
            if number % 2:
                process.communicate("")
    assert given == [*block[:4], block[0]]


def returned_of_all(ports: list[int]) -> list[Any]:
    set_aside_all_but(*ports)
    with reserve(3) as first:
        pass
    with reserve(3) as second:
        pass
    single = []
    for _ in range(6):
        with reserve() as port:
            single.append(port)
    with reserve(6) as everything:
        return [*map(sorted, ([*first, *second], single, everything))]


def test_lately_returned_of_all_ports(ledger: Path) -> None:
    ports = [*range(7000, 7012, 2)]
    assert alone(ledger, returned_of_all, ports) == [ports] * 3
