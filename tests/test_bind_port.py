"""bind_port(): an allocation, and a socket that listens on it at once."""

import asyncio
import errno
import inspect
import os
import resource
import socket
import struct
import threading
import typing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import isolated
import pytest
from comparing import finish

from portmanager import PortAllocation, PortConfig, PortManager, PortManagerConfig

# A network that is gone in a moment leaves no ledger behind.
ALONE = {"PORTMANAGER_LEDGER": "process"}


@pytest.fixture(scope="module")
def implementation(native: SimpleNamespace) -> SimpleNamespace:
    """The extension alone."""
    return native


@pytest.fixture
def manager(make_manager: Any, free_port: int) -> PortManager:
    """A manager for one service."""
    manager: PortManager = make_manager(PortConfig("api", free_port))
    return manager


def descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")


def reaches(port: int, *hosts: str) -> list[bool]:
    """Does a client reach the port at each host?"""
    answers = []
    for host in hosts:
        try:
            socket.create_connection((host, port), timeout=10).close()
        except OSError:
            answers.append(False)
        else:
            answers.append(True)
    return answers


def backlog_of(listener: socket.socket) -> int:
    """What the kernel took as the backlog: tcpi_sacked, which a listener has it in."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    return int(struct.unpack("=I", info[28:])[0])


# ---- the socket -------------------------------------------------------------------------------


def test_socket(manager: PortManager, free_port: int) -> None:
    with finish(manager.bind_port("api")) as listener:
        assert type(listener) is socket.socket
        assert listener.getsockname() == ("127.0.0.1", free_port)
        assert (listener.family, listener.type) == (socket.AF_INET, socket.SOCK_STREAM)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert not listener.get_inheritable()
        assert listener.gettimeout() is None
        with socket.create_connection(("127.0.0.1", free_port)) as client:
            with listener.accept()[0] as accepted:
                accepted.sendall(b"hello")
            assert client.recv(10) == b"hello"
        (status,) = finish(manager.get_port_status())
        assert (status.port, status.in_use, status.pid) == (free_port, True, os.getpid())


HOSTS = {
    "127.0.0.1": ("127.0.0.1", [True, False, False]),
    "127.0.20.4": ("127.0.20.4", [False, True, False]),
    "0.0.0.0": ("0.0.0.0", [True, True, False]),
    "::ffff:127.0.0.1": ("127.0.0.1", [True, False, False]),
    "::1": ("::1", [False, False, True]),
    "[::1]": ("::1", [False, False, True]),
    "": ("::", [True, True, True]),
}


@pytest.mark.parametrize("host", HOSTS)
async def test_hosts(manager: PortManager, free_port: int, host: str) -> None:
    name, reached = HOSTS[host]
    with await manager.bind_port("api", host) as listener:
        assert listener.getsockname()[:2] == (name, free_port)
        assert listener.family == (socket.AF_INET6 if ":" in name else socket.AF_INET)
        assert reaches(free_port, "127.0.0.1", "127.0.20.4", "::1") == reached


@pytest.mark.parametrize("loop", [True, False])
def test_localhost(manager: PortManager, free_port: int, loop: bool) -> None:
    """Looked up in another thread where there is a loop to wait on."""
    coroutine = manager.bind_port("api", host="localhost")
    with asyncio.run(coroutine) if loop else finish(coroutine) as listener:
        assert listener.getsockname()[0] in {"127.0.0.1", "::1"}
        assert reaches(free_port, "localhost") == [True]


def everywhere(case: str, error: int) -> list[Any]:
    if case == "separate":
        isolated.set_sysctl("net/ipv6/bindv6only", "1")
    elif case == "disabled":
        isolated.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1")
    elif case == "refused":
        isolated.refuse_sockets(socket.AF_INET6, error)
    manager = PortManager()
    manager.port_configs["api"] = PortConfig("api", 7000)
    with finish(manager.bind_port("api", "")) as listener:
        return [listener.getsockname()[0], reaches(7000, "127.0.0.1", "127.0.20.4", "::1")]


@isolated.needs_seccomp
@pytest.mark.parametrize(
    ("case", "names", "ipv6"),
    [
        ("separate", ["::"], True),
        ("disabled", ["::", "0.0.0.0"], False),
        ("refused", ["0.0.0.0"], False),
    ],
)
def test_everywhere(case: str, names: list[str], ipv6: bool) -> None:
    """Whatever the machine has of IPv6."""
    name, reached = isolated.run(everywhere, case, errno.EAFNOSUPPORT, namespaces=True, env=ALONE)
    assert name in names
    assert reached == [True, True, ipv6]


def names(hosts: list[str]) -> list[Any]:
    text = "127.0.0.1 localhost\n192.0.2.1 mixed foreign\n127.0.20.4 mixed\n"
    isolated.replace_file("/etc/hosts", text)
    manager = PortManager()
    manager.port_configs["api"] = PortConfig("api", 7000)
    answers = []
    for host in hosts:
        try:
            with asyncio.run(manager.bind_port("api", host)) as listener:
                answers.append([0, listener.getsockname()[0]])
        except OSError as error:
            answers.append([error.errno, str(error)])
    return [answers, manager.get_allocated_ports()]


def test_names() -> None:
    """The first address that is ours."""
    hosts = ["mixed", "foreign", "192.0.2.1", "2001:db8::1", "unknown.invalid", "x" * 10000]
    (mixed, *refused), allocated = isolated.run(names, hosts, namespaces=True, env=ALONE)
    assert mixed == [0, "127.0.20.4"]
    for host, (number, text) in zip(hosts[1:], refused, strict=True):
        assert host[:50] in text
        if "x" not in host:
            assert number == errno.EADDRNOTAVAIL
            assert "7000" in text
    assert "address" in refused[-2][1]
    assert allocated == {"api": 7000}


@pytest.mark.parametrize(
    ("host", "error"),
    [
        *((value, TypeError) for value in (None, 1, b"127.0.0.1", ("127.0.0.1", 80))),
        *((value, ValueError) for value in ("\0", "local\0host", "\ud800")),
    ],
)
def test_bad_hosts(manager: PortManager, host: Any, error: type[Exception]) -> None:
    """Said before a port is allocated."""
    with pytest.raises(error):
        finish(manager.bind_port("api", host))
    assert manager.allocated_ports == {}


@pytest.mark.parametrize("backlog", [1, 7, 128, 10**6, 10**30, 0, -1])
def test_backlog(manager: PortManager, backlog: int) -> None:
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())
    with finish(manager.bind_port("api", backlog=backlog)) as listener:
        assert backlog_of(listener) == max(0, min(backlog, most))
    with finish(manager.bind_port("api")) as listener:
        assert backlog_of(listener) == min(128, most)


@pytest.mark.parametrize("backlog", [None, 1.0, "1"])
def test_bad_backlogs(manager: PortManager, backlog: Any) -> None:
    with pytest.raises(TypeError, match="backlog"):
        finish(manager.bind_port("api", "127.0.0.1", backlog))
    assert manager.allocated_ports == {}


# ---- the allocation ---------------------------------------------------------------------------


def test_allocation_is_kept(manager: PortManager, make_manager: Any, free_port: int) -> None:
    """Until it is released: closing the socket does not, and a release does not close it."""
    allocation = finish(manager.allocate_port("api"))
    listener = finish(manager.bind_port("api"))
    assert manager.allocated_ports == {"api": allocation}
    assert manager.allocated_ports["api"] is allocation
    listener.close()
    assert manager.get_port("api") == free_port
    other = make_manager(PortConfig("other", free_port))
    assert finish(other.allocate_port("other")).status == "in_use"
    with finish(manager.bind_port("api")) as listener:
        manager.release_port("api")
        assert reaches(free_port, "127.0.0.1") == [True]
        assert manager.get_allocated_ports() == {}
    assert finish(other.allocate_port("other")).status == "allocated"


def test_twice(manager: PortManager, free_port: int) -> None:
    with finish(manager.bind_port("api")):
        with pytest.raises(OSError, match=str(free_port)) as caught:
            finish(manager.bind_port("api"))
        assert caught.value.errno == errno.EADDRINUSE
        assert manager.get_port("api") == free_port
        with finish(manager.bind_port("api", "::1")):  # beside it, for those who want both
            assert reaches(free_port, "127.0.0.1", "::1") == [True, True]
    finish(manager.bind_port("api")).close()


def test_server_that_was_restarted(manager: PortManager, free_port: int) -> None:
    """Its connections are in TIME_WAIT."""
    for _ in range(2):
        with (
            finish(manager.bind_port("api")) as listener,
            socket.create_connection(("127.0.0.1", free_port)) as client,
        ):
            listener.accept()[0].close()
            assert client.recv(1) == b""
        manager.release_port("api")
    with pytest.raises(OSError, match="in use"), socket.socket() as plain:
        plain.bind(("127.0.0.1", free_port))


def test_alternative(make_manager: Any, port_block: Callable[[int], int]) -> None:
    first = port_block(2)
    manager = make_manager(PortConfig("api", first, (first, first + 1)))
    with (
        socket.create_server(("127.0.20.4", first)),  # whatever address it has
        finish(manager.bind_port("api")) as listener,
    ):
        assert listener.getsockname()[1] == manager.get_port("api") == first + 1


@pytest.mark.parametrize(
    ("config", "number", "part"),
    [
        (None, errno.EINVAL, "No port configuration found for service: api"),
        (PortConfig("api", 70000), errno.EINVAL, "default_port"),
        (PortConfig("api", 7000, (2, 1)), errno.EINVAL, "range"),
        ("busy", errno.EADDRINUSE, "in use and no alternatives available"),
    ],
)
def test_no_port(make_manager: Any, busy_port: int, config: Any, number: int, part: str) -> None:
    """The error has the allocation's own message."""
    manager = make_manager()
    if config:
        manager.port_configs["api"] = PortConfig("api", busy_port) if config == "busy" else config
    with pytest.raises(OSError, match=part) as caught:
        finish(manager.bind_port("api"))
    assert caught.value.errno == number
    assert caught.value.strerror == manager.allocated_ports["api"].message
    assert manager.get_port("api") is None


def test_nothing_leaks(manager: PortManager, make_manager: Any, busy_port: int) -> None:
    busy = make_manager(PortConfig("api", busy_port))
    finish(manager.bind_port("api")).close()
    before = descriptors()
    for _ in range(20):
        for failing in (
            manager.bind_port("api", "192.0.2.1"),
            manager.bind_port("api", "2001:db8::1"),
            manager.bind_port("api", "x" * 300),
            manager.bind_port("missing"),
            busy.bind_port("api"),
        ):
            with pytest.raises(OSError, match=r"\w"):
                finish(failing)
    assert descriptors() == before
    with mock.patch("socket.socket", side_effect=KeyError), pytest.raises(KeyError):
        finish(manager.bind_port("api"))
    assert descriptors() == before
    finish(manager.bind_port("api")).close()


def out_of_descriptors(port: int, left: int) -> list[Any]:
    manager = PortManager(PortManagerConfig(max_retries=0))
    manager.port_configs["api"] = PortConfig("api", port)
    limits, before = resource.getrlimit(resource.RLIMIT_NOFILE), len(descriptors())
    isolated.use_up_descriptors(left)
    try:
        finish(manager.bind_port("api")).close()
        text = ""
    except OSError as error:
        text = str(error)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    finish(manager.bind_port("api")).close()
    # The ledger has one, which is there from its first use on.
    return [text, len(descriptors()) - before]


@pytest.mark.parametrize("left", range(5))
def test_out_of_descriptors(free_port: int, left: int) -> None:
    text, more = isolated.run(out_of_descriptors, free_port, left)
    assert more == 1
    assert not text or os.strerror(errno.EMFILE) in text
    assert text or left


# ---- overrides --------------------------------------------------------------------------------


async def test_override(manager: PortManager, port_block: Callable[[int], int]) -> None:
    port = port_block(1)
    asked: list[str] = []

    async def allocate_port(service_name: str) -> PortAllocation:
        asked.append(service_name)
        await asyncio.sleep(0)
        return PortAllocation(service_name, 1, port, "allocated")

    manager.allocate_port = allocate_port  # type: ignore[method-assign]
    with await manager.bind_port("web") as listener:
        assert listener.getsockname()[1] == port
    assert asked == ["web"]
    assert manager.allocated_ports == {}


def test_override_of_a_subclass(make_manager: Any, free_port: int) -> None:
    class Sub(PortManager):
        async def allocate_port(self, service_name: str) -> PortAllocation:
            return await super().allocate_port(service_name.lower())

        async def bind_port(
            self, service_name: str, host: str = "::1", backlog: int = 7
        ) -> socket.socket:
            return await super().bind_port(service_name, host, backlog)

    manager = make_manager(PortConfig("api", free_port), cls=Sub)
    with finish(manager.bind_port("API")) as listener:
        assert listener.getsockname()[:2] == ("::1", free_port)
        assert backlog_of(listener) == 7
    assert manager.get_port("api") == free_port


def test_override_that_refuses(manager: PortManager) -> None:
    answers = [
        PortAllocation("api", 1, 0, "in_use", "busy, I say"),
        PortAllocation("api", 1, 0, "error", "broken, I say"),
        KeyError("from the override"),
    ]
    with mock.patch.object(PortManager, "allocate_port", side_effect=answers):
        for number in (errno.EADDRINUSE, errno.EINVAL):
            with pytest.raises(OSError, match="I say") as caught:
                finish(manager.bind_port("api"))
            assert caught.value.errno == number
        with pytest.raises(KeyError, match="from the override"):
            finish(manager.bind_port("api"))


@pytest.mark.parametrize("port", [-1, 65536, 65536 + 7000, 10**30, "7000", None])
def test_port_that_is_none(manager: PortManager, port: Any) -> None:
    """As a caller or an override wrote it: never another one."""
    manager.allocated_ports["api"] = PortAllocation("api", 7000, port, "allocated")
    with pytest.raises((ValueError, TypeError, OSError)):
        finish(manager.bind_port("api")).close()


@pytest.mark.parametrize("port", [-1, 0, 65536, 65536 + 7000, 10**30, "7000", None, 7000.0])
def test_override_whose_port_is_none(manager: PortManager, port: Any) -> None:
    """Nor is any port the kernel likes listened on, which nobody holds."""
    answer = PortAllocation("api", 7000, port, "allocated")
    with (
        mock.patch.object(PortManager, "allocate_port", return_value=answer),
        pytest.raises((ValueError, TypeError, OSError)),
    ):
        finish(manager.bind_port("api")).close()


def test_taken_since_it_was_allocated(manager: PortManager, free_port: int) -> None:
    """By one who does not take part; the allocation stays, for that may pass."""
    allocation = finish(manager.allocate_port("api"))
    with socket.create_server(("127.0.0.1", free_port)):
        with pytest.raises(OSError, match=str(free_port)) as caught:
            finish(manager.bind_port("api"))
        assert caught.value.errno == errno.EADDRINUSE
    finish(manager.bind_port("api")).close()
    assert manager.allocated_ports["api"] is allocation


def test_probe_that_is_overridden(manager: PortManager) -> None:
    with (
        mock.patch.object(manager, "is_port_available", return_value=False) as probe,
        pytest.raises(OSError, match="in use"),
    ):
        finish(manager.bind_port("api"))
    assert probe.await_count == 1


# ---- as a coroutine -----------------------------------------------------------------------------


async def test_many_at_once(make_manager: Any) -> None:
    manager = make_manager(*(PortConfig(f"{number}", 0) for number in range(20)))
    listeners = await asyncio.gather(*(manager.bind_port(name) for name in manager.port_configs))
    assert [one.getsockname()[1] for one in listeners] == [*manager.get_allocated_ports().values()]
    results = await asyncio.gather(
        *(manager.bind_port("0", "::1") for _ in range(3)), return_exceptions=True
    )
    (more,) = (result for result in results if isinstance(result, socket.socket))
    for listener in (*listeners, more):
        listener.close()


async def test_cancelled_while_it_waits_for_a_port(make_manager: Any, busy_port: int) -> None:
    manager = make_manager(PortConfig("api", busy_port), max_retries=1000, retry_delay=0.01)
    before = descriptors()
    task = asyncio.create_task(manager.bind_port("api"))
    await asyncio.sleep(0.03)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert manager.get_port("api") is None
    assert descriptors() == before


async def test_cancelled_while_a_name_is_looked_up(manager: PortManager, free_port: int) -> None:
    """The allocation stays, as it does when the socket cannot be made."""
    gate = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        asyncio.get_running_loop().set_default_executor(executor)
        executor.submit(gate.wait)
        task = asyncio.create_task(manager.bind_port("api", "localhost"))
        await asyncio.sleep(0.01)
        assert not task.done()  # and the loop goes on
        before = descriptors()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.set()
    assert descriptors() == before
    assert manager.get_port("api") == free_port


def test_what_tools_see(manager: PortManager) -> None:
    method = PortManager.bind_port
    parameters = inspect.signature(method).parameters.values()
    assert [(p.name, p.default) for p in parameters] == [
        ("self", inspect.Parameter.empty),
        ("service_name", inspect.Parameter.empty),
        ("host", "127.0.0.1"),
        ("backlog", 128),
    ]
    hints = {"service_name": str, "host": str, "backlog": int, "return": socket.socket}
    assert typing.get_type_hints(method) == hints
    assert inspect.iscoroutinefunction(method)
    assert inspect.iscoroutinefunction(manager.bind_port)
    assert "SO_REUSEADDR" in (inspect.getdoc(method) or "")
    bind: Any = manager.bind_port
    with pytest.raises(TypeError, match=r"bind_port\(\) missing 1 required"):
        bind()
    with pytest.warns(RuntimeWarning, match=r"bind_port' was never awaited"):
        bind("api")
    assert manager.allocated_ports == {}


async def test_autospec() -> None:
    fake = mock.create_autospec(PortManager, instance=True)
    assert isinstance(fake.bind_port, mock.AsyncMock)
    fake.bind_port.return_value = "a socket"
    assert await fake.bind_port("api", host="::1") == "a socket"
    fake.bind_port.assert_awaited_once_with("api", host="::1")
    with pytest.raises(TypeError):
        await fake.bind_port("api", port=1)
