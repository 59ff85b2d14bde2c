"""is_port_available and find_available_port where the answer takes a machine of its own:
names, scopes, no IPv6, no rights, no descriptors."""

import asyncio
import errno
import logging
import os
import resource
import socket
from pathlib import Path
from typing import Any

import isolated
import pytest
from comparing import finish

from portmanager import PortManager

HOSTS_FILE = """
127.0.0.1 localhost
::1 localhost
127.0.0.1 two
127.0.20.4 two
127.0.0.1 partly
192.0.2.1 partly
127.0.0.1 either
::1 either
192.0.2.1 elsewhere
2001:db8::1 elsewhere
127.0.0.1 xn--bcher-kva.example
127.0.0.1 UPPER.example
"""


def use_names(*nameservers: str) -> None:
    """Resolve names from HOSTS_FILE, then from the name servers."""
    isolated.replace_file("/etc/hosts", HOSTS_FILE)
    isolated.replace_file("/etc/nsswitch.conf", "hosts: files dns\n")
    lines = [f"nameserver {server}\n" for server in nameservers]
    isolated.replace_file("/etc/resolv.conf", "".join(lines) + "options timeout:20 attempts:1\n")


class Reasons(logging.Handler):
    """Collects what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        logger = logging.getLogger("portmanager")
        logger.setLevel(logging.DEBUG)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.levelname} {record.getMessage()}")


def ask(hosts: list[str], listener: str | None = None) -> dict[str, bool]:
    """Which hosts say that a port is free, with something that listens on one address."""
    manager = PortManager()
    family = socket.AF_INET6 if ":" in (listener or "") else socket.AF_INET
    with socket.socket(family) as server:
        server.bind((listener or "127.0.0.1", 0))
        port = server.getsockname()[1]
        if listener:
            server.listen()
        else:
            server.close()
        return {host: finish(manager.is_port_available(port, host)) for host in hosts}


# ---- names --------------------------------------------------------------------------------

NAMES = ["two", "partly", "either", "localhost", "elsewhere", "bücher.example", "upper.EXAMPLE"]


def names_with_a_listener(listener: str | None) -> list[str]:
    use_names("127.0.0.9")  # nobody there
    return [host for host, free in ask(NAMES, listener).items() if free]


@pytest.mark.parametrize(
    ("listener", "free"),
    [
        (None, {*NAMES} - {"elsewhere"}),
        ("127.0.0.1", set()),
        ("127.0.20.4", {*NAMES} - {"elsewhere", "two"}),
        ("::1", {*NAMES} - {"elsewhere", "either", "localhost"}),
    ],
)
def test_each_address_of_a_name_that_is_ours_counts(listener: str | None, free: set[str]) -> None:
    assert set(isolated.run(names_with_a_listener, listener, namespaces=True)) == free


NO_NAMES = [
    "no-such-host.invalid",
    "bücher.invalid",
    "[127.0.0.1",
    "::1]",
    "[]",
    "[two]",
    "127.0.0.1.",
    " ",
    " 127.0.0.1",
    "127.0.0.1\n",
    "%",
    "%lo",
    ".",
    "fe80::1%",
    "::1%lo%lo",
    "\u2170/..",
]


def reasons_for_names(hosts: list[str]) -> list[Any]:
    use_names("127.0.0.9")
    log = Reasons()
    answers = ask(hosts)
    return list(zip(answers.values(), log.texts, strict=True))


def test_names_that_are_nobodys() -> None:
    answers = isolated.run(reasons_for_names, NO_NAMES, namespaces=True)
    for host, (answer, text) in zip(NO_NAMES, answers, strict=True):
        assert answer is False, host
        assert text.startswith("DEBUG [PortManager] Port ")
        assert f"{host}: " in text
        assert "does not resolve" in text


def test_a_name_of_another_machine() -> None:
    ((answer, text),) = isolated.run(reasons_for_names, ["elsewhere"], namespaces=True)
    assert answer is False
    assert "elsewhere: the host has no address of this machine" in text


def find_by_name() -> list[Any]:
    use_names("127.0.0.9")
    manager = PortManager()
    with socket.create_server(("127.0.20.4", 0)) as server:
        port = server.getsockname()[1]
        return [
            finish(manager.find_available_port(port, port + 1, host=host)) == found
            for host, found in {
                "two": port + 1,
                "localhost": port,
                "bücher.example": port,
                "elsewhere": None,
                "no-such-host.invalid": None,
            }.items()
        ]


def test_finding_on_a_name() -> None:
    assert isolated.run(find_by_name, namespaces=True) == [True] * 5


# ---- a resolver that does not answer ---------------------------------------------------------


async def others_go_on(method: str) -> list[Any]:
    """Call a method with a name; its query is answered by a task of the same loop."""
    use_names("127.0.0.9")
    call = getattr(PortManager(), method)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.9", 53))
        server.setblocking(False)
        asked = asyncio.Event()
        asyncio.get_running_loop().add_reader(server, asked.set)
        first = asyncio.create_task(call(50000, host="slow.example"))
        await asked.wait()  # by the resolver, which now waits
        cancelled = asyncio.create_task(call(50000, host="slower.example"))
        literal = await PortManager().is_port_available(50000)
        await asyncio.sleep(0.01)
        state = [first.done(), cancelled.cancel(), literal]
        await asyncio.gather(cancelled, return_exceptions=True)

        def answer() -> None:
            query, address = server.recvfrom(512)
            server.sendto(query[:2] + b"\x81\x83" + query[4:], address)  # no such name

        asyncio.get_running_loop().add_reader(server, answer)
        return [*state, await first, cancelled.cancelled()]


@pytest.mark.parametrize(
    ("method", "result"), [("is_port_available", False), ("find_available_port", None)]
)
def test_a_lookup_does_not_block_the_loop(method: str, result: Any) -> None:
    answers = isolated.run(others_go_on, method, namespaces=True)
    assert answers == [False, True, True, result, True]


# ---- scopes -------------------------------------------------------------------------------

SCOPED = ["fe80::1%lo", "[fe80::1%lo]", "fe80::1%1", "fe80::2%lo", "fe80::1", "::1", "127.0.0.1"]


def free_scopes(listener: str | None) -> list[str]:
    isolated.add_loopback_address("fe80::1")
    if listener:
        listener = socket.getaddrinfo(listener, 0)[0][4][0]  # type: ignore[assignment]
    manager = PortManager()
    with socket.socket(socket.AF_INET6) as server:
        server.bind((listener, 0, 0, 1) if listener == "fe80::1" else ("::1", 0))
        port = server.getsockname()[1]
        if listener:
            server.listen()
        else:
            server.close()
        return [host for host in SCOPED if finish(manager.is_port_available(port, host))]


@pytest.mark.parametrize(
    ("listener", "free"),
    [
        (None, [*SCOPED[:3], *SCOPED[5:]]),
        ("fe80::1%lo", SCOPED[5:]),
        ("::1", [*SCOPED[:3], SCOPED[-1]]),
    ],
)
def test_addresses_with_a_scope(listener: str | None, free: list[str]) -> None:
    assert isolated.run(free_scopes, listener, namespaces=True) == free


# ---- no IPv6 ------------------------------------------------------------------------------

WITHOUT_IPV6 = {"127.0.0.1": True, "": True, "0.0.0.0": True, "localhost": True, "::1": False}


def ask_without_ipv6(how: str, listener: str | None) -> list[Any]:
    if how == "disabled":
        isolated.set_sysctl("net/ipv6/conf/all/disable_ipv6", "1")
    else:
        isolated.refuse_sockets(socket.AF_INET6, errno.EAFNOSUPPORT)
    use_names("127.0.0.9")  # names ::1 for localhost all the same
    log = Reasons()
    answers = ask(list(WITHOUT_IPV6), listener)
    return [answers, log.texts]


@pytest.mark.parametrize(
    "how", ["disabled", pytest.param("no sockets", marks=isolated.needs_seccomp)]
)
def test_without_ipv6(how: str) -> None:
    answers, texts = isolated.run(ask_without_ipv6, how, None, namespaces=True)
    assert answers == WITHOUT_IPV6
    assert ["::1: the host has no address" in text for text in texts] == [True]
    answers, _ = isolated.run(ask_without_ipv6, how, "127.0.0.1", namespaces=True)
    assert answers == dict.fromkeys(WITHOUT_IPV6, False)


# ---- neither free nor busy ------------------------------------------------------------------


def privileged_ports() -> list[Any]:
    start = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    isolated.become_unprivileged()
    if start < 2:
        return []
    with socket.socket() as plain:
        try:
            plain.bind(("127.0.0.1", start - 1))
        except PermissionError:
            pass
        else:
            return []
    log, manager = Reasons(), PortManager()
    answers = [finish(manager.is_port_available(start - 1, host)) for host in ("127.0.0.1", "")]
    return [start, answers, log.texts, finish(manager.find_available_port(start - 2, start))]


def test_privileged_ports() -> None:
    outcome = isolated.run(privileged_ports, namespaces=os.geteuid() == 0)
    if not outcome:
        pytest.skip("no port needs a privilege here")
    start, answers, texts, found = outcome
    assert answers == [False, False]
    assert len(texts) == 2
    for text in texts:
        assert text.startswith("DEBUG [PortManager] Port ")
        assert str(start - 1) in text
        assert "privilege" in text
    assert found == start


METHODS = ("is_port_available", "find_available_port")


def error_number(coroutine: Any) -> list[Any]:
    try:
        return [finish(coroutine), ""]
    except OSError as error:
        return [error.errno, str(error)]


def out_of_descriptors(host: str) -> list[list[Any]]:
    manager = PortManager()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    isolated.use_up_descriptors(0)
    answers = [error_number(getattr(manager, method)(50000, host=host)) for method in METHODS]
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    return [*answers, [finish(manager.is_port_available(0, host)), ""]]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "", "localhost"])
def test_out_of_descriptors(host: str) -> None:
    *answers, afterwards = isolated.run(out_of_descriptors, host)
    for number, text in answers:
        assert number == errno.EMFILE
        assert os.strerror(errno.EMFILE) in text
    assert afterwards == [True, ""] or host == "::1"


def out_of(family: int, error: int, host: str) -> list[list[Any]]:
    manager = PortManager()
    isolated.refuse_sockets(family, error)
    return [error_number(getattr(manager, method)(50000, host=host)) for method in METHODS]


@isolated.needs_seccomp
@pytest.mark.parametrize("error", [errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
@pytest.mark.parametrize(
    ("family", "host"),
    [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "")],
)
def test_out_of_memory(family: int, host: str, error: int) -> None:
    for number, text in isolated.run(out_of, family, error, host):
        assert number == error
        assert os.strerror(error) in text
