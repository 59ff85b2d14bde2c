"""Ports that somebody has: sockets of any kind, other services, managers, threads, processes."""

import asyncio
import gc
import os
import platform
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import isolated
import pytest
from comparing import finish

from portmanager import PortConfig, PortManager, PortManagerConfig

V4, V6 = socket.AF_INET, socket.AF_INET6
V6ONLY = (socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
REUSEADDR = (socket.SOL_SOCKET, socket.SO_REUSEADDR)
REUSEPORT = (socket.SOL_SOCKET, socket.SO_REUSEPORT)
tells_bound = pytest.mark.skipif(
    tuple(map(int, platform.release().split(".")[:2])) < (6, 8),
    reason="the kernel tells of such sockets from 6.8 on",
)


@pytest.fixture(scope="module")
def implementation(native: SimpleNamespace) -> SimpleNamespace:
    """The extension alone."""
    return native


@pytest.fixture
def first(port_block: Callable[[int], int]) -> int:
    """The first of four free ports."""
    return port_block(4)


@pytest.fixture
def api(native: SimpleNamespace, first: int) -> Any:
    """A configuration with an alternative."""
    return native.PortConfig("api", first, (first, first + 1))


@pytest.fixture
def no_gc() -> Iterator[None]:
    """Nothing is collected but by a call of gc.collect()."""
    gc.disable()
    yield
    gc.enable()


def allocated(manager: Any, name: str = "api") -> int:
    return int(finish(manager.allocate_port(name)).allocated_port)


# ---- sockets --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "options"),
    [
        ("127.0.0.1", ()),
        ("127.0.20.4", ()),
        ("127.255.255.254", ()),
        ("0.0.0.0", ()),
        ("::1", ()),
        ("::", ()),
        ("::", (V6ONLY,)),
        ("::ffff:127.0.0.1", ()),
        ("127.0.0.1", (REUSEADDR,)),
        ("127.0.20.4", (REUSEADDR,)),
        ("::1", (REUSEADDR, V6ONLY)),
        ("127.0.0.1", (REUSEPORT,)),
        ("::1", (REUSEPORT,)),
        ("0.0.0.0", (REUSEADDR, REUSEPORT)),
    ],
)
@pytest.mark.parametrize("listens", [True, pytest.param(False, marks=tells_bound)])
def test_any_socket_counts(
    make_manager: Any, api: Any, host: str, options: tuple[Any, ...], listens: bool
) -> None:
    manager, port = make_manager(api), api.default_port
    with socket.socket(V6 if ":" in host else V4) as holder:
        for option in options:
            holder.setsockopt(option[0], option[1], 1)
        try:
            holder.bind((host, port))
        except OSError:
            pytest.skip("this machine has no IPv6")
        if listens:
            holder.listen()
        assert allocated(manager) == port + 1
        # Whatever address its service binds, without any option, it succeeds.
        for family, address in ((V4, "127.0.0.1"), (V4, "0.0.0.0"), (V6, "::1"), (V6, "::")):
            if family == V4 or socket.has_ipv6:
                with socket.socket(family) as service:
                    service.bind((address, port + 1))
        manager.release_all_ports()
    assert allocated(manager) == port


def test_an_outgoing_connection_counts(make_manager: Any, native: Any, busy_port: int) -> None:
    with socket.create_connection(("127.0.0.1", busy_port)) as client:
        port = client.getsockname()[1]
        manager = make_manager(native.PortConfig("api", port))
        assert finish(manager.allocate_port("api")).status == "in_use"


@pytest.mark.parametrize("family", [V4, V6])
def test_time_wait_does_not_count(make_manager: Any, native: Any, family: int) -> None:
    try:
        server = socket.create_server(("", 0), family=family)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        port = server.getsockname()[1]
        with socket.create_connection(("::1" if family == V6 else "127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            accepted.close()
            assert client.recv(1) == b""
    with pytest.raises(OSError, match="in use"), socket.socket(family) as strict:
        strict.bind(("", port))
    manager = make_manager(native.PortConfig("api", port))
    assert finish(manager.allocate_port("api")).message == f"Allocated default port {port}"


def test_udp_does_not_count(make_manager: Any, api: Any) -> None:
    with socket.socket(V4, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", api.default_port))
        assert allocated(make_manager(api)) == api.default_port


def without_ipv6(how: str, host: str) -> list[Any]:
    if how == "disabled":
        isolated.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1")
    else:
        isolated.refuse_sockets(V6, 97)  # EAFNOSUPPORT
    manager = PortManager(PortManagerConfig(max_retries=0))
    manager.port_configs = {
        "api": PortConfig("api", 7000, (7000, 7002)),
        "any": PortConfig("any", 0),
    }
    with socket.create_server((host, 7000)), socket.socket() as bound:
        bound.setsockopt(*REUSEADDR, 1)
        bound.bind(("127.0.0.1", 7001))
        answers = [allocated(manager)]
    manager.release_all_ports()
    return [*answers, allocated(manager), allocated(manager, "any") >= 1024]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.20.4", "0.0.0.0"])
@pytest.mark.parametrize(
    "how", ["disabled", pytest.param("no sockets", marks=isolated.needs_seccomp)]
)
@tells_bound
def test_without_ipv6(how: str, host: str) -> None:
    assert isolated.run(without_ipv6, how, host, namespaces=True) == [7002, 7000, True]


def test_nothing_stays_bound_or_open(make_manager: Any, api: Any, busy_port: int) -> None:
    manager = make_manager(api, type(api)("busy", busy_port), type(api)("any", 0))
    names = ("api", "busy", "any")
    for name in names:
        finish(manager.allocate_port(name))
    before = set(os.listdir("/proc/self/fd"))
    manager.release_all_ports()
    ports = [allocated(manager, name) for name in names]
    assert set(os.listdir("/proc/self/fd")) == before
    with socket.socket() as strict:
        strict.bind(("0.0.0.0", ports[0]))


# ---- reservations ----------------------------------------------------------------------------


def test_two_services_of_a_manager(make_manager: Any, native: Any, first: int) -> None:
    names = ("a", "b", "c", "d", "e")
    manager = make_manager(*(native.PortConfig(name, first, (first, first + 3)) for name in names))
    ports = [allocated(manager, name) for name in names]
    assert ports == [first, first + 1, first + 2, first + 3, 0]
    manager.release_port("b")
    assert allocated(manager, "e") == first + 1


def test_two_managers(make_manager: Any, api: Any, first: int) -> None:
    one, two, three = (make_manager(api) for _ in range(3))
    assert [allocated(one), allocated(two), allocated(three)] == [first, first + 1, 0]
    one.release_port("api")
    assert [allocated(one), allocated(two), allocated(three)] == [first, first + 1, 0]
    two.release_all_ports()
    assert [allocated(three), allocated(two)] == [first + 1, 0]
    assert finish(one.cleanup()) is None
    assert allocated(two) == first


def test_a_manager_that_is_gone_has_no_port(make_manager: Any, native: Any, api: Any) -> None:
    lost = native.PortManager()
    lost.port_configs["api"] = api
    assert allocated(lost) == api.default_port
    del lost
    assert allocated(make_manager(api)) == api.default_port


@pytest.mark.parametrize("how", ["probe", "override", "search"])
@pytest.mark.usefixtures("no_gc")
def test_a_manager_that_is_garbage_has_no_port(
    make_manager: Any, native: Any, api: Any, how: str
) -> None:
    class Cyclic(PortManager):
        def __init__(self) -> None:
            super().__init__()
            self.itself = self
            self.port_configs["api"] = api

    async def free(*_: Any) -> Any:
        return True

    async def search(start_port: int, end_port: int) -> int:
        return start_port

    Cyclic().allocate_port("api").close()
    lost = Cyclic()
    assert allocated(lost) == api.default_port
    kept = Cyclic()
    assert allocated(kept) == api.default_port + 1
    del lost
    manager = make_manager(api)
    if how == "override":
        manager.is_port_available = free
    elif how == "search":
        manager.find_available_port = search
    assert allocated(manager) == api.default_port
    assert kept.get_port("api") == api.default_port + 1


@pytest.mark.usefixtures("no_gc")
def test_garbage_is_collected_once(
    make_manager: Any, native: Any, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = make_manager(*(native.PortConfig(str(n), first + n) for n in range(3)))
    for n in range(3):
        assert allocated(owner, str(n)) == first + n
    calls: list[tuple[Any, ...]] = []
    collect = gc.collect

    def note(*arguments: Any) -> int:
        calls.append(arguments)
        return collect(*arguments)

    monkeypatch.setattr(gc, "collect", note)
    manager = make_manager(native.PortConfig("api", first, (first, first + 3)))
    assert allocated(manager) == first + 3
    assert calls == [()]
    assert allocated(manager) == first + 3
    assert calls == [()]


@pytest.mark.usefixtures("no_gc")
def test_collecting_that_fails(
    make_manager: Any, native: Any, api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, manager = make_manager(api), make_manager(api)
    allocated(owner)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gc, "collect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finish(manager.allocate_port("api"))
        with pytest.raises(KeyboardInterrupt):
            finish(manager.find_available_port(api.default_port))
    assert manager.allocated_ports == {}
    assert allocated(manager) == api.default_port + 1


# ---- threads ----------------------------------------------------------------------------------


class Oracle:
    """Who has which port, told by those who have it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owners: dict[int, object] = {}
        self.mistakes: list[tuple[int, object, object]] = []
        self.count: Counter[str] = Counter()

    def hear(self, status: str) -> None:
        with self.lock:
            self.count[status] += 1

    def take(self, port: int, owner: object) -> None:
        with self.lock:
            before = self.owners.setdefault(port, owner)
            if before is not owner:
                self.mistakes.append((port, before, owner))

    def give_back(self, port: int) -> None:
        with self.lock:
            del self.owners[port]


def hammer(oracle: Oracle, managers: list[Any], seed: int, rounds: int) -> None:
    """Allocate, release and lose ports, telling the oracle, each service by one thread."""
    choose = random.Random(seed)
    for number in range(rounds):
        manager, name = choose.choice(managers), f"service {seed}.{number % 3}"
        allocation = finish(manager.allocate_port(name))
        oracle.hear(allocation.status)
        if allocation.status != "allocated":
            continue
        port = allocation.allocated_port
        oracle.take(port, (manager, name))
        oracle.give_back(port)  # before it is: afterwards another may be quicker
        if choose.random() < 0.5:
            manager.release_port(name)
        elif choose.random() < 0.5:
            del manager.allocated_ports[name]
            manager.get_port(name)
        else:
            oracle.take(port, (manager, name))
            assert finish(manager.allocate_port(name)) is allocation
            oracle.give_back(port)
            manager.release_port(name)


@pytest.mark.parametrize("default", ["one", "any"])
def test_threads_never_share_a_port(
    make_manager: Any, native: Any, port_block: Any, default: str
) -> None:
    threads, rounds = 8, 150
    first = port_block(6)
    names = [f"service {seed}.{number}" for seed in range(threads) for number in range(3)]
    port, ports = (first, (first, first + 5)) if default == "one" else (0, None)
    configs = [native.PortConfig(name, port, ports) for name in names]
    managers, oracle = [make_manager(*configs) for _ in range(3)], Oracle()
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            hammer(oracle, managers, seed, rounds)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    assert oracle.mistakes == []
    assert oracle.count["allocated"] > rounds
    assert sum(oracle.count.values()) == threads * rounds
    assert oracle.count["error"] == 0
    # Nothing was lost: one manager can have them all.
    if default == "one":
        ports_left = [allocated(managers[0], name) for name in names[:6]]
        assert ports_left == list(range(first, first + 6))


def test_loops_never_share_a_port(make_manager: Any, native: Any, port_block: Any) -> None:
    """The same with event loops, an override that takes its time, and retries."""
    first, threads = port_block(4), 6

    class Slow(PortManager):
        async def is_port_available(self, port: int, host: str = "127.0.0.1") -> bool:
            await asyncio.sleep(0)
            return True

    configs = [native.PortConfig(f"{n}", first, (first, first + 3)) for n in range(threads)]
    managers = [
        make_manager(*configs, cls=Slow, max_retries=10**6, retry_delay=0.0001) for _ in range(2)
    ]
    oracle, failures = Oracle(), []

    async def use(number: int) -> None:
        for turn in range(25):
            manager = managers[(turn + number) % 2]
            allocation = await manager.allocate_port(f"{number}")
            assert allocation.status == "allocated"
            oracle.take(allocation.allocated_port, (number, turn))
            await asyncio.sleep(0)
            oracle.give_back(allocation.allocated_port)
            manager.release_port(f"{number}")

    def work(number: int) -> None:
        try:
            asyncio.run(asyncio.wait_for(use(number), 30))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    assert oracle.mistakes == []


# ---- fork -------------------------------------------------------------------------------------


WAYS: dict[str, Callable[[Any], Any]] = {
    "release": lambda manager: manager.release_port("api"),
    "release all": lambda manager: manager.release_all_ports(),
    "cleanup": lambda manager: finish(manager.cleanup()),
    "clear": lambda manager: manager.allocated_ports.clear(),
    "replace": lambda manager: setattr(manager, "allocated_ports", {}),
    "collect": lambda manager: manager.__dict__.clear(),
    "exit": lambda manager: None,
}


def fork(first: int) -> dict[str, list[Any]]:
    """What a forked child sees, and what the parent has when the child is through."""
    outcomes = {}
    for how, forget in WAYS.items():
        manager = PortManager(PortManagerConfig(max_retries=0))
        manager.port_configs = {"api": PortConfig("api", first)}
        allocation = finish(manager.allocate_port("api"))
        pid = os.fork()
        if pid == 0:
            good = finish(manager.allocate_port("api")) is allocation
            good = good and manager.get_port("api") == first
            forget(manager)
            if how == "collect":
                del manager
                gc.collect()
            else:
                good = good and (manager.get_port("api") is None) == (how != "exit")
            os._exit(0 if good else 1)
        answers = [os.waitpid(pid, 0)[1], manager.get_port("api")]
        other = PortManager(PortManagerConfig(max_retries=0))
        other.port_configs = manager.port_configs
        answers += [finish(manager.allocate_port("api")) is allocation, allocated(other)]
        manager.release_port("api")
        outcomes[how] = [*answers, allocated(other)]
        other.release_all_ports()
    return outcomes


def test_a_forked_child_only_forgets(free_port: int) -> None:
    outcomes = isolated.run(fork, free_port)
    assert outcomes == {how: [0, free_port, True, 0, free_port] for how in WAYS}
