"""Looking whether something listens: wait_for_port and get_port_status, which only ever look.

What needs a process of its own is an ordinary function whose name begins with an underscore.
"""

import asyncio
import errno
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import isolated
import pytest
from comparing import error_of, finish

from portmanager import PortAllocation, PortConfig, PortManager

FOREVER = 60.0  # seconds: longer than anything here takes, to fail instead of hanging
ALIAS = "127.0.20.4"
ANYWHERE = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="loopback aliases, netlink, /proc")


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no ::1 on this machine")


@contextmanager
def listening(
    host: str, port: int = 0, *, v6only: bool | None = None, options: tuple[int, ...] = ()
) -> Iterator[int]:
    """A plain listener, without SO_REUSEADDR; gives its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server:
        if v6only is not None:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        for option in options:
            server.setsockopt(socket.SOL_SOCKET, option, 1)
        server.bind((host, port))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def manager(make_manager: Callable[..., Any]) -> Any:
    return make_manager()


@pytest.fixture
def ours() -> Iterator[Any]:
    """A manager of the extension, where the twin has nothing to say."""
    manager = PortManager()
    manager.port_configs.clear()
    yield manager
    manager.release_all_ports()


def allocated(port: int) -> PortAllocation:
    return PortAllocation("api", port, port, "allocated")


def look(manager: Any, port: int, host: str) -> Any:
    """One look, host names included."""
    return asyncio.run(manager.wait_for_port(port, timeout=0, host=host))


# What is seen from where

# Where something listens: as `listening` takes it.
LISTENERS: dict[str, dict[str, Any]] = {
    "127.0.0.1": {"host": "127.0.0.1"},
    "0.0.0.0": {"host": "0.0.0.0"},
    "alias": {"host": ALIAS},
    "::1": {"host": "::1"},
    ":: dual": {"host": "::", "v6only": False},
    ":: v6only": {"host": "::", "v6only": True},
    "mapped": {"host": "::ffff:127.0.0.1", "v6only": False},
    "SO_REUSEPORT": {"host": "127.0.0.1", "options": (socket.SO_REUSEPORT,)},
    "SO_REUSEADDR": {"host": "127.0.0.1", "options": (socket.SO_REUSEADDR,)},
}
# Which of them a client on a host reaches.
ON_LOOPBACK_4 = {"127.0.0.1", "0.0.0.0", ":: dual", "mapped", "SO_REUSEPORT", "SO_REUSEADDR"}
ON_LOOPBACK_6 = {"::1", ":: dual", ":: v6only"}
REACHED = {
    "127.0.0.1": ON_LOOPBACK_4,
    "::1": ON_LOOPBACK_6,
    "[::1]": ON_LOOPBACK_6,
    "0.0.0.0": ON_LOOPBACK_4,
    "::": ON_LOOPBACK_6,
    "": ON_LOOPBACK_4 | ON_LOOPBACK_6,
    ALIAS: {"0.0.0.0", ":: dual", "alias"},
    "::ffff:127.0.0.1": ON_LOOPBACK_4,
}


def can_connect(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client:
        return client.connect_ex((host.strip("[]"), port)) == 0


@linux_only
@needs_ipv6
@pytest.mark.parametrize("host", REACHED)
@pytest.mark.parametrize("listener", LISTENERS)
def test_up_is_what_a_client_on_the_host_reaches(ours: Any, listener: str, host: str) -> None:
    expected = listener in REACHED[host]
    with listening(**LISTENERS[listener]) as port:
        if host:
            assert can_connect(host, port) is expected  # what the table above says is so
        assert finish(ours.wait_for_port(port, timeout=0, host=host)) is expected
    assert finish(ours.wait_for_port(port, timeout=0, host=host)) is False


@linux_only
@needs_ipv6
@pytest.mark.parametrize("listener", LISTENERS)
def test_localhost_is_either_family(ours: Any, listener: str) -> None:
    addresses = {info[4][0] for info in socket.getaddrinfo("localhost", None)}
    expected = any(listener in REACHED[str(address)] for address in addresses)
    with listening(**LISTENERS[listener]) as port:
        assert look(ours, port, "localhost") is expected


@linux_only
def test_a_listener_that_is_bound_to_an_interface(ours: Any) -> None:
    with socket.socket() as server:
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        except PermissionError:
            pytest.skip("SO_BINDTODEVICE needs a privilege here")
        server.bind(("127.0.0.1", 0))
        server.listen()
        host, port = server.getsockname()
        assert can_connect(host, port)
        assert finish(ours.wait_for_port(port, timeout=0)) is True


@needs_ipv6
@pytest.mark.parametrize("family", ANYWHERE)
def test_several_listeners_behind_so_reuseport(ours: Any, family: int) -> None:
    host = ANYWHERE[socket.AddressFamily(family)]
    client = "::1" if ":" in host else "127.0.0.1"
    options = (socket.SO_REUSEPORT,)
    with listening(host, options=options) as port:
        with listening(host, port, options=options):
            assert finish(ours.wait_for_port(port, timeout=0, host=client)) is True
        assert finish(ours.wait_for_port(port, timeout=0, host=client)) is True


def test_a_socket_that_is_bound_is_not_up(ours: Any) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        assert finish(ours.wait_for_port(port, timeout=0)) is False
        server.listen()
        assert finish(ours.wait_for_port(port, timeout=0)) is True


def test_connections_without_a_listener_are_not_up(ours: Any) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = server.getsockname()[1]
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        stack.enter_context(server.accept()[0])
        server.close()
        assert finish(ours.wait_for_port(port, timeout=0)) is False
        assert finish(ours.wait_for_port(client.getsockname()[1], timeout=0)) is False


@pytest.mark.parametrize(
    "host",
    ["nowhere.invalid", "192.0.2.1", "x" * 10_000, "a..b", "fe80::1%nowhere", "[", "[]", " "],
)
def test_what_is_no_host_of_this_machine_is_never_up(ours: Any, busy_port: int, host: str) -> None:
    assert look(ours, busy_port, host) is False


@pytest.mark.parametrize(
    ("host", "error"),
    [
        (None, "TypeError: host must be a str, not None"),
        (b"127.0.0.1", "TypeError: host must be a str, not b'127.0.0.1'"),
        ("a\0b", "ValueError: host must be text without null characters, not 'a\\x00b'"),
    ],
)
def test_what_is_no_host_at_all(ours: Any, host: Any, error: str) -> None:
    assert error_of(finish, ours.wait_for_port(1, timeout=0, host=host)) == error


# Arguments


@pytest.mark.parametrize("port", [0, -1, 65536, 10**100])
def test_a_port_out_of_range(ours: Any, port: int) -> None:
    text = error_of(finish, ours.wait_for_port(port, timeout=0))
    assert text.startswith("ValueError: ")
    assert str(port) in text


@pytest.mark.parametrize("port", ["5050", 5050.0, None, b"1"])
def test_a_port_that_is_no_integer(ours: Any, port: Any) -> None:
    text = error_of(finish, ours.wait_for_port(port, timeout=0))
    assert text.startswith("TypeError: ")
    assert repr(port) in text


def test_a_port_may_be_anything_with_an_index(ours: Any, busy_port: int) -> None:
    class Port:
        def __index__(self) -> int:
            return busy_port

    assert finish(ours.wait_for_port(Port(), timeout=0)) is True


@pytest.mark.parametrize("name", ["timeout", "check_interval"])
def test_not_a_number(ours: Any, name: str) -> None:
    text = error_of(finish, ours.wait_for_port(1, **{name: float("nan")}))
    assert text.startswith(f"ValueError: {name} ")


@pytest.mark.parametrize("name", ["timeout", "check_interval"])
@pytest.mark.parametrize("value", ["1", None, 1j])
def test_no_number_of_seconds(ours: Any, name: str, value: Any) -> None:
    text = error_of(finish, ours.wait_for_port(1, **{name: value}))
    assert text.startswith(f"TypeError: {name} ")


@pytest.mark.parametrize("timeout", [0, 0.0, -0.0, -1, -1e308, float("-inf"), -(10**400)])
def test_a_timeout_of_nothing_looks_once(
    ours: Any, free_port: int, busy_port: int, timeout: float
) -> None:
    # `finish` does without an event loop, so nothing can have been waited for.
    assert finish(ours.wait_for_port(busy_port, timeout)) is True
    assert finish(ours.wait_for_port(free_port, timeout)) is False


LONG = [1e308, float("inf"), 10**400, 2**63]


@pytest.mark.parametrize("timeout", LONG)
@pytest.mark.parametrize("interval", [0, -5, 1e-300, float("-inf"), *LONG])
async def test_any_number_of_seconds(
    ours: Any, free_port: int, timeout: float, interval: float
) -> None:
    waiting = asyncio.create_task(ours.wait_for_port(free_port, timeout, interval))
    await asyncio.sleep(0)
    with listening("127.0.0.1", free_port):
        assert await asyncio.wait_for(waiting, FOREVER) is True


@pytest.mark.parametrize("interval", [0, -1, 0.002])
async def test_false_at_the_timeout_and_not_before(
    manager: Any, free_port: int, interval: float
) -> None:
    began = time.monotonic()
    assert await manager.wait_for_port(free_port, timeout=0.05, check_interval=interval) is False
    assert time.monotonic() - began >= 0.05


async def test_the_time_begins_with_the_wait(ours: Any, free_port: int) -> None:
    # Not when the coroutine is made, and even less at import.
    coroutine = ours.wait_for_port(free_port, timeout=0.05)
    time.sleep(0.06)
    waiting = asyncio.create_task(coroutine)
    await asyncio.sleep(0)
    with listening("127.0.0.1", free_port):
        assert await waiting is True


def test_a_short_interval_is_no_busy_loop(ours: Any, free_port: int) -> None:
    looks = 0

    async def is_port_available(port: int) -> bool:
        nonlocal looks
        looks += 1
        return True

    ours.is_port_available = is_port_available
    assert asyncio.run(ours.wait_for_port(free_port, timeout=0.05, check_interval=0)) is False
    assert 2 <= looks <= 60


def test_early_looks_come_sooner_than_the_interval(ours: Any, free_port: int) -> None:
    # With an interval of an hour, a service that comes at once is seen all the same.
    async def main() -> Any:
        waiting = asyncio.create_task(ours.wait_for_port(free_port, 3600, check_interval=3600))
        await asyncio.sleep(0.02)
        with listening("127.0.0.1", free_port):
            return await asyncio.wait_for(waiting, FOREVER)

    assert asyncio.run(main()) is True


# Cancellation, threads, loops


async def test_cancelling_a_wait(ours: Any, free_port: int) -> None:
    kept = asyncio.create_task(ours.wait_for_port(free_port, FOREVER))
    waiting = asyncio.create_task(ours.wait_for_port(free_port, FOREVER))
    await asyncio.sleep(0.005)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(ours.wait_for_port(free_port, FOREVER), 0.005)
    assert not kept.done()
    with listening("127.0.0.1", free_port):
        assert await kept is True


async def test_cancelling_while_a_name_is_looked_up(ours: Any, free_port: int) -> None:
    waiting = asyncio.create_task(ours.wait_for_port(free_port, FOREVER, host="localhost"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_several_threads_with_loops_of_their_own(ours: Any, free_port: int) -> None:
    together = threading.Barrier(9)

    async def wait(host: str) -> Any:
        waiting = asyncio.create_task(ours.wait_for_port(free_port, FOREVER, host=host))
        await asyncio.sleep(0)
        together.wait(FOREVER)
        return await waiting

    with ThreadPoolExecutor(8) as pool:
        hosts = ["127.0.0.1", "localhost", "", "0.0.0.0"] * 2
        waits = [pool.submit(asyncio.run, wait(host)) for host in hosts]
        together.wait(FOREVER)
        with listening("127.0.0.1", free_port):
            assert [wait.result(FOREVER) for wait in waits] == [True] * 8


def test_a_name_is_looked_up_off_the_loop(
    ours: Any, busy_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> tuple[Any, list[Any]]:
        loop = asyncio.get_running_loop()
        lent: list[Any] = []
        real = loop.run_in_executor

        def run_in_executor(executor: Any, function: Any, *arguments: Any) -> Any:
            lent.append(arguments)
            return real(executor, function, *arguments)

        monkeypatch.setattr(loop, "run_in_executor", run_in_executor)
        await ours.wait_for_port(busy_port, timeout=0)
        assert lent == []  # literals need no lookup
        return await ours.wait_for_port(busy_port, timeout=0, host="localhost"), lent

    assert asyncio.run(main()) == (True, [("localhost",)])


def test_while_another_thread_is_importing_asyncio() -> None:
    # A loop other than asyncio's, or none, while asyncio is half imported.
    code = """
    import sys
    import portmanager

    manager = portmanager.PortManager()
    answers = []

    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "asyncio.base_events":
                sys.meta_path.remove(self)
                try:
                    manager.wait_for_port(1, timeout=0, host="localhost").send(None)
                except StopIteration as stop:
                    answers.append(stop.value)

    sys.meta_path.insert(0, Finder())
    import asyncio
    print(answers)
    """
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=FOREVER,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[False]\n", "")


# Passive


PASSIVE = """
import asyncio, sys
from portmanager import PortAllocation, PortConfig, PortManager

async def main(port, free):
    manager = PortManager()
    manager.allocated_ports["up"] = PortAllocation("up", port, port, "allocated")
    manager.allocated_ports["down"] = PortAllocation("down", free, free, "allocated")
    hosts = "127.0.0.1", "::1", "", "0.0.0.0", "127.0.20.4", "localhost", "::"
    for host in hosts:
        await manager.wait_for_port(port, timeout=0.01, host=host)
        await manager.wait_for_port(free, timeout=0.01, check_interval=0, host=host)
    print([status.in_use for status in await manager.get_port_status()])
    if sys.argv[3:]:
        await manager.is_port_available(free)

asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""


def traced(tmp_path: Any, *arguments: object) -> list[str]:
    """Run PASSIVE under strace, and return its binds and connects of internet addresses."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    output = tmp_path / "trace"
    done = subprocess.run(
        [
            *(strace, "-f", "-e", "trace=bind,connect", "-o", output),
            *(sys.executable, "-c", PASSIVE, *map(str, arguments)),
        ],
        capture_output=True,
        text=True,
        timeout=FOREVER,
        check=False,
    )
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip(f"strace is not allowed here: {done.stderr.strip()}")
    assert (done.returncode, done.stdout) == (0, "[True, False]\n"), done.stderr
    ports = {f"htons({port})" for port in arguments}
    return [line for line in output.read_text().splitlines() if any(p in line for p in ports)]


def test_looking_neither_binds_nor_connects(tmp_path: Any, busy_port: int, free_port: int) -> None:
    assert traced(tmp_path, busy_port, free_port) == []
    (line,) = traced(tmp_path, busy_port, free_port, "probe")  # which is seen, then
    assert "bind(" in line


async def test_a_service_never_fails_to_bind_while_it_is_waited_for(
    ours: Any, free_port: int
) -> None:
    for _ in range(100):
        waits = [
            asyncio.create_task(ours.wait_for_port(free_port, FOREVER, check_interval=0))
            for _ in range(20)
        ]
        await asyncio.sleep(0.001)
        with listening("127.0.0.1", free_port):  # raises if a probe is in its way
            assert await asyncio.gather(*waits) == [True] * 20


def test_nor_while_threads_wait_for_it(ours: Any, free_port: int) -> None:
    over = threading.Event()
    looks = [0] * 2

    def keep_looking(index: int) -> None:
        while not over.is_set():
            finish(ours.wait_for_port(free_port, timeout=0))
            looks[index] += 1

    with ThreadPoolExecutor(2) as pool:
        workers = [pool.submit(keep_looking, index) for index in range(2)]
        try:
            for _ in range(100):
                with listening("127.0.0.1", free_port):
                    time.sleep(0)
        finally:
            over.set()
        for worker in workers:
            worker.result(FOREVER)
    assert all(looks)


def test_waiting_leaves_no_connection_in_the_service(ours: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        for host in ("127.0.0.1", "", "localhost"):
            assert look(ours, port, host) is True
        with pytest.raises(BlockingIOError):
            server.accept()


# Overrides


@pytest.mark.parametrize(("answer", "expected"), [(True, False), (False, True), (0, True)])
def test_an_override_is_believed(
    manager: Any, free_port: int, busy_port: int, answer: object, expected: bool
) -> None:
    async def is_port_available(port: int) -> object:
        return answer

    manager.is_port_available = is_port_available
    for port in (free_port, busy_port):
        assert asyncio.run(manager.wait_for_port(port, timeout=0)) is expected


async def test_an_override_is_asked_until_it_says_no(ours: Any, free_port: int) -> None:
    calls: list[tuple[Any, ...]] = []

    async def is_port_available(*arguments: Any) -> bool:
        calls.append(arguments)
        return len(calls) < 4

    ours.is_port_available = is_port_available
    assert await ours.wait_for_port(free_port, FOREVER, 0.001, host="::1") is True
    assert calls == [(free_port, "::1")] * 4


async def test_an_override_that_comes_while_waiting(ours: Any, free_port: int) -> None:
    async def is_port_available(port: int) -> bool:
        return False

    waiting = asyncio.create_task(ours.wait_for_port(free_port, 2.0, 0.001))
    await asyncio.sleep(0.005)
    ours.is_port_available = is_port_available
    assert await waiting is True


async def test_an_override_that_goes_while_waiting(ours: Any) -> None:
    # Then the kernel is looked at, passively: a bind would take the socket below for a listener.
    async def is_port_available(port: int) -> bool:
        return True

    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        ours.is_port_available = is_port_available
        waiting = asyncio.create_task(ours.wait_for_port(port, FOREVER, 0.001))
        await asyncio.sleep(0.005)
        del ours.is_port_available
        await asyncio.sleep(0.02)
        assert not waiting.done()
        bound.listen()
        assert await asyncio.wait_for(waiting, FOREVER) is True


async def test_an_override_that_fails(ours: Any, free_port: int) -> None:
    async def is_port_available(port: int) -> bool:
        raise ZeroDivisionError

    ours.is_port_available = is_port_available
    with pytest.raises(ZeroDivisionError):
        await ours.wait_for_port(free_port)


# get_port_status


async def test_status_of_each_allocated_port(ours: Any, port_block: Callable[[int], int]) -> None:
    before = datetime.now()
    first = port_block(3)
    for index in range(3):
        ours.port_configs[f"s{index}"] = PortConfig(f"s{index}", first + index)
        await ours.allocate_port(f"s{index}")
    await ours.allocate_port("unknown")
    after = datetime.now()
    with listening("127.0.0.1", first + 1):
        statuses = await ours.get_port_status()
    assert [(status.port, status.service, status.in_use) for status in statuses] == [
        (first, "s0", False),
        (first + 1, "s1", True),
        (first + 2, "s2", False),
    ]
    assert [status.pid for status in statuses] == [None, os.getpid(), None]
    for status in statuses:
        assert type(status.allocated_at) is datetime
        assert status.allocated_at.tzinfo is None
        assert before <= status.allocated_at <= after


async def test_the_time_of_an_allocation_stays(ours: Any, free_port: int) -> None:
    ours.port_configs["api"] = PortConfig("api", free_port)
    await ours.allocate_port("api")
    (first,) = await ours.get_port_status()
    await asyncio.sleep(0.002)
    await ours.allocate_port("api")
    (second,) = await ours.get_port_status()
    assert first.allocated_at == second.allocated_at
    ours.release_port("api")
    await asyncio.sleep(0.002)
    await ours.allocate_port("api")
    (third,) = await ours.get_port_status()
    assert first.allocated_at is not None
    assert third.allocated_at is not None
    assert third.allocated_at > first.allocated_at


@pytest.mark.parametrize("zone", ["Pacific/Chatham", "America/St_Johns"])
def test_the_time_is_local(zone: str) -> None:
    before = time.time()
    moment, after = isolated.run(_allocate_in_zone, env={"TZ": zone})
    # The environment's zone, not ours, is what that process calls local.
    assert before <= moment <= after


def _allocate_in_zone() -> tuple[float, float]:
    time.tzset()
    manager = PortManager()
    manager.port_configs["api"] = PortConfig("api", 0)
    finish(manager.allocate_port("api"))
    (status,) = finish(manager.get_port_status())
    return status.allocated_at.timestamp(), time.time()


@needs_ipv6
@pytest.mark.parametrize("listener", LISTENERS)
def test_in_use_is_any_local_address(ours: Any, free_port: int, listener: str) -> None:
    ours.port_configs["api"] = PortConfig("api", free_port)
    finish(ours.allocate_port("api"))
    with listening(port=free_port, **LISTENERS[listener]):
        (status,) = finish(ours.get_port_status())
        assert (status.in_use, status.pid) == (True, os.getpid())
    (status,) = finish(ours.get_port_status())
    assert (status.in_use, status.pid) == (False, None)


def test_the_pid_is_the_listener_s(ours: Any, free_port: int) -> None:
    code = """
    import socket, sys
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
        print("up", flush=True)
        sys.stdin.read()
    """
    ours.port_configs["api"] = PortConfig("api", free_port)
    finish(ours.allocate_port("api"))
    command = [sys.executable, "-c", textwrap.dedent(code), str(free_port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        (status,) = finish(ours.get_port_status())
        assert (status.in_use, status.pid) == (True, child.pid)
        child.communicate()
    (status,) = finish(ours.get_port_status())
    assert (status.in_use, status.pid) == (False, None)


def test_of_many_owners_the_pid_is_the_lowest(ours: Any, free_port: int) -> None:
    code = """
    import os, socket, sys
    with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
        wait, end = os.pipe()
        child = os.fork()
        if not child:
            os.close(end)
            os.read(wait, 1)
            os._exit(0)
        print("up", flush=True)
        sys.stdin.read()
    os.close(end)
    os.waitpid(child, 0)
    """
    ours.port_configs["api"] = PortConfig("api", free_port)
    finish(ours.allocate_port("api"))
    command = [sys.executable, "-c", textwrap.dedent(code), str(free_port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        (status,) = finish(ours.get_port_status())
        # The child's would be higher, unless pids have just begun anew.
        assert status.pid is not None
        assert status.pid <= child.pid
        child.communicate()


def test_status_of_what_a_caller_wrote(native: SimpleNamespace, busy_port: int) -> None:
    manager = native.PortManager()
    entry = native.PortAllocation("mine", busy_port, busy_port, "allocated")
    manager.allocated_ports["mine"] = entry
    manager.allocated_ports["odd"] = native.PortAllocation("odd", 0, 10**30, "allocated")
    manager.allocated_ports["not"] = native.PortAllocation("not", 0, busy_port, "in_use")
    mine, odd = finish(manager.get_port_status())
    pid = os.getpid()
    assert mine == native.PortStatus(busy_port, "mine", True, pid, None)
    assert odd == native.PortStatus(10**30, "odd", False, None, None)


def test_status_by_an_override(manager: Any, busy_port: int, implementation: Any) -> None:
    asked = []

    async def is_port_available(port: int) -> bool:
        asked.append(port)
        return port != 7

    manager.is_port_available = is_port_available
    for name, port in (("a", busy_port), ("b", 7)):
        manager.allocated_ports[name] = implementation.PortAllocation(name, port, port, "allocated")
    statuses = asyncio.run(manager.get_port_status())
    assert [status.in_use for status in statuses] == [False, True]
    assert asked == [busy_port, 7]


# Where the kernel does not tell


async def _answers(refuse: bool) -> list[Any]:
    """What is said of each listener from each host, and of their allocations."""
    if refuse:
        isolated.refuse_sockets(socket.AF_NETLINK, errno.EPERM)
        with pytest.raises(PermissionError):
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
    manager = PortManager()
    answers = []
    for name, listener in LISTENERS.items():
        with listening(**listener) as port:
            if name != ":: v6only":  # which /proc/net does not tell from a dual-stack one
                for host in [*REACHED, "localhost"]:
                    answers.append([name, host, await manager.wait_for_port(port, 0, host=host)])
            manager.allocated_ports["api"] = allocated(port)
            (status,) = await manager.get_port_status()
            answers.append([name, status.in_use, status.pid == os.getpid()])
        for host in REACHED:
            answers.append([name, host, await manager.wait_for_port(port, 0, host=host)])
        (status,) = await manager.get_port_status()
        answers.append([name, status.in_use, status.pid])
    return answers


@linux_only
@needs_ipv6
@isolated.needs_seccomp
def test_the_same_answers_without_netlink() -> None:
    with_netlink = isolated.run(_answers, False)
    assert len(with_netlink) > len(LISTENERS)
    assert isolated.run(_answers, True) == with_netlink


async def _wait_without_netlink() -> list[Any]:
    isolated.refuse_sockets(socket.AF_NETLINK, errno.EPERM)
    manager = PortManager()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        waiting = asyncio.create_task(manager.wait_for_port(port, FOREVER, 0.001))
        await asyncio.sleep(0.01)
        before = waiting.done()
        server.listen()
        return [before, await asyncio.wait_for(waiting, FOREVER)]


@linux_only
@isolated.needs_seccomp
def test_waiting_without_netlink() -> None:
    assert isolated.run(_wait_without_netlink) == [False, True]


async def _blind(timeout: float) -> list[Any]:
    """Wait with neither netlink nor /proc, while something listens."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/proc"], check=True)
    isolated.refuse_sockets(socket.AF_NETLINK, errno.EPERM)
    manager = PortManager()

    async def failure_of(awaitable: Awaitable[Any]) -> str:
        try:
            return repr(await awaitable)
        except OSError as error:
            return "OSError" if error.errno else "OSError without errno"

    with listening("127.0.0.1") as port:
        began = time.monotonic()
        waited = await failure_of(manager.wait_for_port(port, timeout, 0.001))
        took = time.monotonic() - began
        manager.allocated_ports["api"] = allocated(port)
        return [waited, took >= timeout, await failure_of(manager.get_port_status())]


@linux_only
@isolated.needs_seccomp
@pytest.mark.parametrize("timeout", [0, 0.05])
def test_when_nobody_tells_it_is_an_error_at_the_timeout(timeout: float) -> None:
    assert isolated.run(_blind, timeout, namespaces=True) == ["OSError", True, "OSError"]


async def _short_of_descriptors() -> list[Any]:
    """Wait while there is no descriptor left, then while there is one."""
    manager = PortManager()
    with listening("127.0.0.1") as port:
        isolated.use_up_descriptors(3)
        taken = [os.dup(0) for _ in range(3)]
        try:
            once: Any = await manager.wait_for_port(port, 0)
        except OSError as error:
            once = error.errno
        waiting = asyncio.create_task(manager.wait_for_port(port, FOREVER, 0.001))
        await asyncio.sleep(0.01)
        before = waiting.done()
        for fd in taken:
            os.close(fd)
        return [once, before, await asyncio.wait_for(waiting, FOREVER)]


def test_out_of_descriptors_for_a_while() -> None:
    # Not known is not "nothing listens": an error at the timeout, and waiting until then.
    assert isolated.run(_short_of_descriptors) == [errno.EMFILE, False, True]
