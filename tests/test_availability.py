"""is_port_available: which sockets count for which host, and what is no port or no host."""

import asyncio
import enum
import errno
import logging
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest
from comparing import error_of, finish

V4, V6 = socket.AF_INET, socket.AF_INET6
HOSTS = ("127.0.0.1", "127.0.20.4", "0.0.0.0", "::1", "[::1]", "::", "[::]", "", "localhost")


@pytest.fixture
def manager(native: SimpleNamespace) -> Any:
    """A manager of the extension."""
    return native.PortManager()


@pytest.fixture
def debug_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, from debug level on."""
    caplog.set_level(logging.DEBUG, "portmanager")
    return caplog


def hold(
    stack: ExitStack, port: int, host: str, *, listen: bool = True, options: tuple[Any, ...] = ()
) -> None:
    """Bind a socket until the stack closes."""
    family = V6 if ":" in host else V4
    holder = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    for option in options:
        holder.setsockopt(option[0], option[1], 1)
    if family == V6 and (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) not in options:
        holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    holder.bind((host, port))
    if listen:
        holder.listen()


V6ONLY = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
REUSEADDR = (socket.SOL_SOCKET, socket.SO_REUSEADDR)
REUSEPORT = (socket.SOL_SOCKET, socket.SO_REUSEPORT)
# Who has the port, and for which hosts it is still free.
HOLDERS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "127.0.0.1": ({"host": "127.0.0.1"}, {"127.0.20.4", "::1", "[::1]"}),
    "alias": ({"host": "127.0.20.4"}, {"127.0.0.1", "::1", "[::1]"}),
    "another alias": ({"host": "127.0.10.10"}, {"127.0.0.1", "127.0.20.4", "::1", "[::1]"}),
    "0.0.0.0": ({"host": "0.0.0.0"}, {"::1", "[::1]"}),
    "::": ({"host": "::"}, set()),
    ":: v6only": ({"host": "::", "options": (V6ONLY,)}, {"127.0.0.1", "127.0.20.4", "0.0.0.0"}),
    "::1": ({"host": "::1"}, {"127.0.0.1", "127.0.20.4", "0.0.0.0"}),
    "reuseaddr": (
        {"host": "127.0.0.1", "options": (REUSEADDR,)},
        {"127.0.20.4", "::1", "[::1]"},
    ),
    "reuseport": (
        {"host": "127.0.0.1", "options": (REUSEPORT,)},
        {"127.0.20.4", "::1", "[::1]"},
    ),
    "bound": ({"host": "127.0.0.1", "listen": False}, {"127.0.20.4", "::1", "[::1]"}),
    "bound reuseaddr": (
        {"host": "127.0.0.1", "listen": False, "options": (REUSEADDR,)},
        set(HOSTS),
    ),
}


@pytest.fixture(scope="module")
def has_ipv6() -> bool:
    """Can ::1 be bound here?"""
    with suppress(OSError), socket.socket(V6, socket.SOCK_STREAM) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.parametrize("host", HOSTS)
def test_free(manager: Any, free_port: int, has_ipv6: bool, host: str) -> None:
    answer = finish(manager.is_port_available(free_port, host))
    assert answer is (has_ipv6 or host not in {"::1", "[::1]"})


@pytest.mark.parametrize("holder", HOLDERS)
def test_only_the_address_and_the_wildcards_count(
    manager: Any, free_port: int, has_ipv6: bool, holder: str
) -> None:
    where, free_for = HOLDERS[holder]
    if not has_ipv6 and ":" in where["host"]:
        pytest.skip("this machine has no IPv6")
    expected = {host: host in free_for and (has_ipv6 or "::1" not in host) for host in HOSTS}
    # A name stands for all of its addresses.
    expected["localhost"] = all(
        expected.get(str(address[0]), True)
        for *_, address in socket.getaddrinfo("localhost", 1, type=socket.SOCK_STREAM)
    )
    with ExitStack() as stack:
        hold(stack, free_port, **where)
        answers = {host: finish(manager.is_port_available(free_port, host)) for host in HOSTS}
    assert answers == expected
    assert finish(manager.is_port_available(free_port)) is True


def close_first(server: socket.socket) -> None:
    """Leave a connection of the server in TIME_WAIT on its port."""
    with socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        accepted.close()
        assert client.recv(1) == b""


def test_time_wait_does_not_count(manager: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        close_first(server)
    with pytest.raises(OSError, match="in use"), socket.socket() as strict:
        strict.bind(("127.0.0.1", port))
    assert finish(manager.is_port_available(port)) is True


def test_says_nothing_about_reservations(native: SimpleNamespace, free_port: int) -> None:
    manager = native.PortManager()
    manager.port_configs["api"] = native.PortConfig("api", free_port)
    assert finish(manager.allocate_port("api")).allocated_port == free_port
    assert finish(manager.is_port_available(free_port)) is True
    assert finish(native.PortManager().is_port_available(free_port)) is True


@pytest.mark.parametrize("host", ["127.0.0.1", "", "localhost"])
def test_leaves_nothing_behind(manager: Any, free_port: int, busy_port: int, host: str) -> None:
    for port in (free_port, busy_port):
        finish(manager.is_port_available(port, host))
    before = set(os.listdir("/proc/self/fd"))
    for port in (free_port, busy_port) * 10:
        finish(manager.is_port_available(port, host))
    assert set(os.listdir("/proc/self/fd")) == before
    with socket.socket() as strict:
        strict.bind(("127.0.0.1", free_port))


async def test_within_an_event_loop(manager: Any, free_port: int, busy_port: int) -> None:
    for host in ("127.0.0.1", "127.0.20.4", "", "localhost"):
        assert await manager.is_port_available(free_port, host=host) is True
    assert await manager.is_port_available(port=busy_port, host="localhost") is False


# ---- why not ------------------------------------------------------------------------------


def test_says_why_not(manager: Any, busy_port: int, debug_log: pytest.LogCaptureFixture) -> None:
    assert finish(manager.is_port_available(busy_port)) is False
    (record,) = debug_log.records
    assert (record.name, record.levelno) == ("portmanager", logging.DEBUG)
    assert record.getMessage().startswith("[PortManager] ")
    assert str(busy_port) in record.getMessage()
    assert "in use" in record.getMessage()


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "no address of this machine"),  # kept for documentation: nobody's
        ("2001:db8::1", "no address of this machine"),
        ("fe80::1%no-such-interface", "does not resolve"),
        ("a" * 10_000, "does not resolve"),
        ("ü" * 10_000, "does not resolve"),
        ("a." * 5_000, "does not resolve"),
        ("[" + ":" * 10_000 + "]", "does not resolve"),
        ("::%" + "1" * 10_000, "does not resolve"),
        ("..", "does not resolve"),
        ("ü..x", "does not resolve"),
    ],
)
def test_hosts_that_are_not_here(
    manager: Any, free_port: int, debug_log: pytest.LogCaptureFixture, host: str, reason: str
) -> None:
    assert finish(manager.is_port_available(free_port, host)) is False
    (record,) = debug_log.records
    assert record.levelno == logging.DEBUG
    assert reason in record.getMessage()
    assert host in record.getMessage()


def test_a_free_port_is_not_worth_a_line(
    manager: Any, free_port: int, debug_log: pytest.LogCaptureFixture
) -> None:
    assert finish(manager.is_port_available(free_port)) is True
    assert not debug_log.records


# ---- what is no host -----------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1\0", "\0", "local\0host", "\ud800", "a\udfffb"])
def test_text_that_is_no_host(manager: Any, free_port: int, host: str) -> None:
    with pytest.raises(ValueError, match=r"null|surrogates"):
        finish(manager.is_port_available(free_port, host))


@pytest.mark.parametrize("host", [None, b"127.0.0.1", 1, 1.5, ["127.0.0.1"], object()])
def test_hosts_that_are_no_text(manager: Any, free_port: int, host: Any) -> None:
    with pytest.raises(TypeError, match="host must be a str, not ") as error:
        finish(manager.is_port_available(free_port, host))
    assert repr(host) in str(error.value)


def test_a_subclass_of_str_is_a_host(manager: Any, free_port: int) -> None:
    class Host(str):
        """As of an enumeration."""

    class Hosts(str, enum.Enum):
        HERE = "127.0.0.1"

    for host in (Host("127.0.0.1"), Host("localhost"), Hosts.HERE):
        assert finish(manager.is_port_available(free_port, host)) is True


# ---- what is no port -----------------------------------------------------------------------


class Indexed:
    """An integer by its __index__ only."""

    def __init__(self, index: Callable[[], Any]) -> None:
        self.index = index

    def __index__(self) -> Any:
        return self.index()


@pytest.mark.parametrize("port", [-1, 65536, 65536 + 80, -65535, 2**31, 2**63, 2**64, -(2**64)])
def test_port_outside_the_range(manager: Any, port: int) -> None:
    coroutine = manager.is_port_available(port)  # the call itself raises nothing
    text = error_of(finish, coroutine)
    assert text == f"ValueError: port must be an integer in 0..65535, not {port}"
    with pytest.raises(ValueError, match=r"port must be an integer in 0\.\.65535, not "):
        finish(manager.is_port_available(Indexed(lambda: port)))


def test_port_of_many_digits(manager: Any) -> None:
    with pytest.raises(ValueError, match=r"port must be an integer in 0\.\.65535, not "):
        finish(manager.is_port_available(10**5000))


@pytest.mark.parametrize(
    "port",
    [80.0, float("nan"), float("inf"), None, "80", b"80", [80], (80,), Decimal(80), Fraction(80)],
)
def test_port_that_is_no_integer(manager: Any, port: Any) -> None:
    text = error_of(finish, manager.is_port_available(port))
    assert text == f"TypeError: port must be an integer in 0..65535, not {port!r}"


def test_anything_with_an_index_is_a_port(manager: Any, free_port: int, busy_port: int) -> None:
    class Ports(enum.IntEnum):
        FREE = free_port
        BUSY = busy_port

    for free, busy in ((Ports.FREE, Ports.BUSY), (Indexed(lambda: free_port),) * 2):
        assert finish(manager.is_port_available(free)) is True
        assert finish(manager.is_port_available(busy)) is (busy is not Ports.BUSY)
    # False is 0, any free port.
    assert finish(manager.is_port_available(False)) is True
    assert finish(manager.is_port_available(0)) is True


@pytest.mark.parametrize("error", [ValueError, OSError, RuntimeError, KeyboardInterrupt])
def test_index_that_raises(manager: Any, error: type[BaseException]) -> None:
    def index() -> int:
        raise error("from the index")

    with pytest.raises(error, match="from the index"):
        finish(manager.is_port_available(Indexed(index)))


@pytest.mark.parametrize("value", ["80", 80.0, None])
def test_index_that_is_no_integer(manager: Any, value: Any) -> None:
    with pytest.raises(TypeError, match="port must be an integer"):
        finish(manager.is_port_available(Indexed(lambda: value)))


def test_index_that_uses_the_manager(manager: Any, free_port: int, busy_port: int) -> None:
    answers = []

    def index() -> int:
        answers.append(finish(manager.is_port_available(busy_port)))
        answers.append(finish(manager.find_available_port(free_port, free_port)))
        manager.__init__()
        return free_port

    assert finish(manager.is_port_available(Indexed(index))) is True
    assert answers == [False, free_port]


async def test_port_is_read_once(manager: Any, free_port: int, busy_port: int) -> None:
    """Also where a name is looked up meanwhile."""
    ports = [free_port, busy_port]
    assert await manager.is_port_available(Indexed(lambda: ports.pop(0)), "localhost") is True
    assert ports == [busy_port]


async def test_cancelled_while_a_name_is_looked_up(
    manager: Any, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "run_in_executor", lambda *_: loop.create_future())
    for method in (manager.is_port_available, manager.find_available_port, manager.wait_for_port):
        task = asyncio.create_task(method(Indexed(lambda: free_port), host="some.name"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_lookup_that_fails(
    manager: Any, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(*_: Any) -> Any:
        raise RuntimeError("no threads any more")

    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", closed)
    with pytest.raises(RuntimeError, match="no threads"):
        await manager.is_port_available(free_port, "some.name")
    assert await manager.is_port_available(free_port) is True


@pytest.fixture
def unrepresentable() -> Any:
    """An object whose repr fails."""

    class Unrepresentable:
        def __repr__(self) -> str:
            raise OSError(errno.EIO, "no repr")

    return Unrepresentable()


def test_value_that_cannot_be_named(manager: Any, unrepresentable: Any) -> None:
    with pytest.raises(TypeError, match="<Unrepresentable object>"):
        finish(manager.is_port_available(unrepresentable))
    with pytest.raises(TypeError, match="<Unrepresentable object>"):
        finish(manager.is_port_available(80, unrepresentable))
