"""The file that reservations are shared by: where it is, and what is done where it is spoilt."""

import contextlib
import ctypes
import errno
import functools
import itertools
import json
import logging
import os
import resource
import shutil
import struct
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import isolated
import logs
import pytest

from portmanager import PortConfig, PortManager, PortManagerConfig, reserve, reserved_ports

# Every test has a network of its own, so these are nobody's.
PORT = 7000
RANGE = (PORT, PORT + 9)
PAGE = 4096
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
ALONE = "[PortManager] Ports are reserved within this process alone: "

# ---- in a /tmp of its own -------------------------------------------------------------------


def in_a_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a forked child, which starts without a ledger."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer = {"answer": function(*arguments)}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with open(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        text = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(text) if status == 0 else {"error": f"exit {status}"}


def own_tmp(options: str = "mode=1777") -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", "/tmp"], check=True)


def unshare(namespace: int) -> None:
    assert ctypes.CDLL(None).unshare(namespace) == 0


def in_own_tmp(name: str, *arguments: Any) -> Any:
    unshare(CLONE_NEWNS)
    own_tmp()
    return globals()[name](*arguments)


def each(name: str, cases: list[list[Any]]) -> list[Any]:
    return [in_a_child(in_own_tmp, name, *case) for case in cases]


@functools.cache
def run_all(function: Callable[..., Any], cases: tuple[tuple[Any, ...], ...]) -> list[Any]:
    """One fresh process forks them all, for that takes a fraction of the time."""
    env = {"PORTMANAGER_LEDGER": ""}
    answers: list[Any] = isolated.run(each, function.__name__, cases, namespaces=True, env=env)
    return answers


def run(
    function: Callable[..., Any], *arguments: Any, among: tuple[tuple[Any, ...], ...] = ()
) -> Any:
    """What a function of this file returns in a process that has network and /tmp to itself."""
    cases = among or (arguments,)
    outcome = run_all(function, cases)[cases.index(arguments)]
    assert "answer" in outcome, outcome["error"]
    return outcome["answer"]


class Log(logs.Log):
    """Collects warnings, and nothing that is worse."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno == logging.WARNING:
            self.texts.append(record.getMessage())


class Managers:
    """One for each service, which was given the first free port from PORT on."""

    def __init__(self, *services: str) -> None:
        self.managers = [PortManager(PortManagerConfig(max_retries=0)) for _ in services]
        self.ports = []
        for manager, service in zip(self.managers, services, strict=True):
            manager.port_configs[service] = PortConfig(service, PORT, RANGE)
            try:
                manager.allocate_port(service).send(None)
            except StopIteration as stop:
                self.ports.append(stop.value.allocated_port)


@contextlib.contextmanager
def another(network: bool = False, env: dict[str, str] | None = None) -> Iterator[int]:
    """Another process that does the same; it holds its port until the end of a `with`.

    By fork alone, since /tmp may be where the interpreter is.
    """
    (reading, writing), (ending, end) = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            os.close(end)
            if env is not None:
                os.environ.clear()
                os.environ.update(env)
            if network:
                unshare(CLONE_NEWNET)
            mine = Managers("another")
            os.write(writing, str(mine.ports[0]).encode())
            os.read(ending, 1)
        os._exit(0)
    os.close(writing)
    os.close(ending)
    yield int(os.read(reading, 10))
    os.close(end)
    os.close(reading)
    os.waitpid(pid, 0)


def port_of_another() -> int:
    with another() as port:
        return port


def folder() -> Path:
    return Path(f"/tmp/portmanager-{os.geteuid()}")


def file() -> Path:
    return folder() / f"ports-{Path('/proc/self/ns/net').stat().st_ino}"


# ---- its place ------------------------------------------------------------------------------


def place(umask: int) -> list[Any]:
    os.umask(umask)
    log, mine = Log(), Managers("api")
    modes = [f"{path.stat().st_mode & 0o7777:o}" for path in (folder(), file())]
    return [mine.ports, port_of_another(), modes, os.listdir(folder()) == [file().name], log.texts]


@pytest.mark.parametrize("umask", [0, 0o777])
def test_place(umask: int) -> None:
    """It is the user's alone, and there is nothing but it."""
    assert run(place, umask) == [[PORT], PORT + 1, ["700", "600"], True, []]


ENVIRONMENTS: tuple[dict[str, str], ...] = (
    {},
    {"HOME": "/tmp/elsewhere", "USER": "nobody", "LOGNAME": "nobody"},
    {"TMPDIR": "/tmp/elsewhere", "TEMP": "/tmp/elsewhere", "TMP": "/tmp/elsewhere"},
    {"XDG_RUNTIME_DIR": "/tmp/elsewhere", "XDG_CACHE_HOME": "/tmp/elsewhere"},
)


def environments() -> list[Any]:
    Path("/tmp/elsewhere").mkdir(mode=0o700)
    os.chdir("/tmp/elsewhere")
    mine = Managers("api")
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(another(env=env)) for env in ENVIRONMENTS]
    return [mine.ports + others, sorted(os.listdir("/tmp"))]


def test_environment_does_not_matter() -> None:
    """One user has one ledger: under cron, su, a CI job, with another's variables."""
    ports, made = run(environments)
    assert ports == [*range(PORT, PORT + 5)]
    assert made == ["elsewhere", f"portmanager-{os.geteuid()}"]


def two_networks() -> list[Any]:
    mine = Managers("api")
    with another(network=True) as port:
        held = [held.port for held in reserved_ports()]
        return [mine.ports, port, held, len(os.listdir(folder()))]


def test_two_networks_have_two_ledgers() -> None:
    assert run(two_networks) == [[PORT], PORT, [PORT], 2]


def unprivileged() -> list[Any]:
    before = port_of_another()  # makes root's ledger
    isolated.become_unprivileged()
    log, mine = Log(), Managers("api", "web")
    ours = folder().stat().st_uid == os.geteuid()
    return [before, mine.ports, port_of_another(), ours, log.texts]


def test_unprivileged_user() -> None:
    assert run(unprivileged) == [PORT, [PORT, PORT + 1], PORT + 2, True, []]


# ---- where it cannot be used ----------------------------------------------------------------


def good_file() -> None:
    assert port_of_another() == PORT


def bad_folder(mode: int = 0o700, owner: int = -1) -> None:
    folder().mkdir()
    folder().chmod(mode)
    os.chown(folder(), owner, owner)


def link_as_folder() -> None:
    bad_folder()
    folder().rename("/tmp/elsewhere")
    folder().symlink_to("/tmp/elsewhere")


def link_as_file() -> None:
    good_file()
    file().rename("/tmp/elsewhere")
    file().symlink_to("/tmp/elsewhere")


def foreign_file() -> None:
    good_file()
    os.chown(file(), isolated.NOBODY, isolated.NOBODY)


def special_file(make: Callable[[Path], object]) -> None:
    bad_folder()
    make(file())


def cut(size: int) -> None:
    """A negative size is counted from the end."""
    good_file()
    os.truncate(file(), size if size >= 0 else file().stat().st_size + size)


def lengthen() -> None:
    good_file()
    os.truncate(file(), file().stat().st_size + 1)


def overwrite(number: int, at: int) -> None:
    good_file()
    with file().open("r+b") as opened:
        opened.seek(at)
        opened.write(struct.pack("=I", number))


def garbage() -> None:
    good_file()
    file().write_bytes(os.urandom(file().stat().st_size))


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))


def no_tmp() -> None:
    os.chroot("/tmp")


ELSEWHERE = "PORTMANAGER_LEDGER"  # names another file
SPOILT: dict[str, tuple[Callable[[], object], str]] = {
    "a link in the folder's place": (link_as_folder, "remove it"),
    "a file in the folder's place": (lambda: folder().touch(), "remove it"),
    "somebody else's folder": (lambda: bad_folder(owner=isolated.NOBODY), "remove it"),
    "others may write the folder": (lambda: bad_folder(0o777), "chmod 700"),
    "others may read the folder": (lambda: bad_folder(0o750), "chmod 700"),
    "a sticky folder": (lambda: bad_folder(0o1700), "chmod 700"),
    "a link in the file's place": (link_as_file, "remove it"),
    "somebody else's file": (foreign_file, "remove it"),
    "a pipe": (lambda: special_file(os.mkfifo), "remove it"),
    "a folder in the file's place": (lambda: special_file(os.mkdir), "remove it"),
    "nothing in it": (lambda: cut(0), "remove it"),
    "half a header": (lambda: cut(20), "remove it"),
    "cut short": (lambda: cut(PAGE), "remove it"),
    "cut by a byte": (lambda: cut(-1), "remove it"),
    "longer by a byte": (lengthen, "remove it"),
    "garbage": (garbage, "remove it"),
    "another version": (lambda: overwrite(99, at=16), "same version"),
    "another layout": (lambda: overwrite(4096, at=20), "remove it"),
    "a full disk": (lambda: own_tmp("size=1m,mode=1777"), ELSEWHERE),
    "a limit of file sizes": (small_files, ELSEWHERE),
    "a read-only /tmp": (lambda: own_tmp("ro"), ELSEWHERE),
    "no /tmp": (no_tmp, ELSEWHERE),
}


def spoilt(how: str) -> list[Any]:
    SPOILT[how][0]()
    log, mine = Log(), Managers("api", "web")
    with reserve(2, start=RANGE[0], end=RANGE[1]) as more:
        held = [held.port for held in reserved_ports()]
    return [mine.ports, more, held, log.texts]


@pytest.mark.parametrize("how", SPOILT)
def test_spoilt(how: str) -> None:
    """Said once, with the path and what to do; ports are then reserved within the process."""
    if how.startswith("somebody") and os.geteuid():
        pytest.skip("root alone can give files away")
    ports, more, held, (text,) = run(spoilt, how, among=tuple((how,) for how in SPOILT))
    assert (ports, more) == ([PORT, PORT + 1], [PORT + 2, PORT + 3])
    assert held == ports + more
    assert text.startswith(ALONE)
    assert f"/tmp/portmanager-{os.geteuid()}" in text
    assert SPOILT[how][1] in text


def repaired() -> list[Any]:
    bad_folder(0o777)
    log, mine = Log(), Managers("api")
    apart = port_of_another()
    for mode in (0o770, 0o700):
        time.sleep(1.01)  # so long a ledger that could not be used is not tried again
        reserved_ports()
        folder().chmod(mode)
    time.sleep(1.01)
    reserved_ports()
    return [mine.ports, apart, port_of_another(), log.texts]


def test_spoilt_and_repaired() -> None:
    """What is held meanwhile is shared as soon as the ledger can be used."""
    ports, apart, together, texts = run(repaired)
    assert (ports, apart, together) == ([PORT], PORT, PORT + 1)
    assert ["mode 0777" in texts[0], "mode 0770" in texts[1], len(texts)] == [True, True, 2]


def in_a_container() -> list[Any]:
    for name in ("lower", "upper", "work", "merged"):
        Path("/tmp", name).mkdir()
    options = "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work"
    done = subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", "/tmp"], check=False)
    log, mine = Log(), Managers("api", "web")
    return [done.returncode, mine.ports, port_of_another(), log.texts]


def test_in_a_container() -> None:
    """Whose /tmp is of the image, on overlayfs, as that of Docker and Podman is."""
    status, ports, another, texts = run(in_a_container)
    if status:
        pytest.skip("overlayfs cannot be mounted here")
    assert (ports, another, texts) == ([PORT, PORT + 1], PORT + 2, [])


# ---- while it is in use -----------------------------------------------------------------------


def replace() -> None:
    """By another good ledger, which was another network's."""
    with another(network=True):
        (good,) = (path for path in folder().iterdir() if path != file())
        good.rename(file())


def replace_after_use() -> None:
    """By one that another process has used already."""
    file().unlink()
    good_file()


def reuse_its_descriptor() -> None:
    """As whoever closes everything does, a daemon for one."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == str(file()):
                os.close(int(name))
                assert os.open(os.devnull, os.O_RDONLY) == int(name)


LOSE: dict[str, Callable[[], object]] = {
    "descriptor closed": reuse_its_descriptor,
    "removed": lambda: file().unlink(),
    "folder removed": lambda: shutil.rmtree(folder()),
    "renamed": lambda: file().rename(folder() / "old"),
    "folder renamed": lambda: folder().rename("/tmp/old"),
    "replaced": replace,
    "replaced by one in use": replace_after_use,
}


def lost(how: str) -> list[Any]:
    log, mine = Log(), Managers("api", "web")
    before = reserved_ports()
    LOSE[how]()
    same = reserved_ports() == before
    seen = port_of_another()
    mine.managers[0].release_all_ports()
    return [mine.ports, same, seen, port_of_another(), log.texts]


@pytest.mark.parametrize("how", LOSE)
def test_lost_in_use(how: str) -> None:
    """Another file is taken up at the next call, with all that is held."""
    outcome = run(lost, how, among=tuple((how,) for how in LOSE))
    assert outcome == [[PORT, PORT + 1], True, PORT + 2, PORT, []]


def late() -> list[Any]:
    log, mine = Log(), Managers("api", "web")
    file().unlink()
    with another() as port:  # before this process could notice
        held = [(held.port, held.pid == os.getpid()) for held in reserved_ports()]
        again = port_of_another()
    return [mine.ports, port, held, again, file().name in "".join(log.texts), log.texts]


def test_lost_and_handed_out_to_others() -> None:
    ports, other, held, again, is_named, (text,) = run(late)
    assert (ports, other, again) == ([PORT, PORT + 1], PORT, PORT + 2)
    assert held == [[PORT, True], [PORT + 1, True]]
    assert is_named
    assert "1 port" in text


SPOIL_IN_USE: dict[str, Callable[[], object]] = {
    "emptied": lambda: os.truncate(file(), 0),
    "cut within the slots": lambda: os.truncate(file(), PAGE + 100),
    "cut within the entries": lambda: os.truncate(file(), 50 * PAGE),
    "longer": lambda: os.truncate(file(), file().stat().st_size + PAGE),
    "overwritten": lambda: file().write_bytes(os.urandom(file().stat().st_size)),
    "cleared": lambda: file().write_bytes(bytes(file().stat().st_size)),
}
USES = ("ask", "release", "fork")


def spoilt_in_use(how: str, use: str) -> list[Any]:
    log, mine = Log(), Managers("api", "web")
    reservation = reserve(start=RANGE[0], end=RANGE[1])
    SPOIL_IN_USE[how]()
    if use == "release":
        reservation.release()
        mine.managers[0].release_all_ports()
    elif use == "fork":
        good_file()  # alone, too
    held = [held.port for held in reserved_ports()]
    more = Managers("more").ports
    reservation.release()
    return [mine.ports, held, more, log.texts]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("how", SPOIL_IN_USE)
def test_spoilt_in_use(how: str, use: str) -> None:
    """No crash; one warning; what is held stays held within the process."""
    cases = tuple(itertools.product(SPOIL_IN_USE, USES))
    ports, held, more, (text,) = run(spoilt_in_use, how, use, among=cases)
    assert ports == [PORT, PORT + 1]
    assert held == ([PORT + 1] if use == "release" else [PORT, PORT + 1, PORT + 2])
    assert more == ([PORT] if use == "release" else [PORT + 3])
    assert text.startswith(ALONE)
    assert f"/tmp/portmanager-{os.geteuid()}" in text
    assert "remove it" in text


# ---- PORTMANAGER_LEDGER ---------------------------------------------------------------------


def named(path: str) -> list[Any]:
    Path("/tmp/real").mkdir(mode=0o755)
    Path("/tmp/link").symlink_to("real")
    os.chdir("/tmp/real")
    others = port_of_another()
    os.environ["PORTMANAGER_LEDGER"] = path
    log, mine = Log(), Managers("api", "web")
    held = [(held.port, held.pid == os.getpid()) for held in reserved_ports()]
    with another() as port:
        return [mine.ports, held, port, others, os.listdir("/tmp/real"), log.texts]


def test_ledger_of_the_process() -> None:
    """For suites that assert fixed ports while they run in parallel."""
    ports, held, other, _, files, texts = run(named, "process")
    assert (ports, other) == ([PORT, PORT + 1], PORT)
    assert held == [[port, True] for port in ports]
    assert (files, texts) == ([], [])


def test_named_ledger() -> None:
    ports, held, other, others, files, texts = run(named, "/tmp/real/ledger")
    assert (ports, other, others) == ([PORT, PORT + 1], PORT + 2, PORT)
    assert held == [[port, True] for port in ports]
    assert (files, texts) == (["ledger"], [])


NAMED_BADLY = {
    "relative": ("ledger", "absolute path"),
    "in the working folder": ("./ledger", "absolute path"),
    "no path": ("none", "absolute path"),
    "no name": ("/tmp/real/", "absolute path"),
    "too long a path": ("/tmp" + "/real" * 1000, "absolute path"),
    "through a link": ("/tmp/link/ledger", "real path"),
    "through a link behind": ("/tmp/../tmp/link/ledger", "real path"),
    "through no folder": ("/dev/null/ledger", "real path"),
    "a device": ("/dev/null", "remove it"),
    "a folder": ("/tmp/real", "remove it"),
    "a link": ("/tmp/link", "remove it"),
    "in a missing folder": ("/tmp/missing/ledger", ELSEWHERE),
    "where no file can be": ("/proc/ledger", ELSEWHERE),
    "too long a name": ("/tmp/" + "long" * 70, ELSEWHERE),
}


def named_badly(how: str) -> list[Any]:
    return named(NAMED_BADLY[how][0])


@pytest.mark.parametrize("how", NAMED_BADLY)
def test_named_badly(how: str) -> None:
    outcome = run(named_badly, how, among=tuple((how,) for how in NAMED_BADLY))
    ports, held, other, _, files, (text,) = outcome
    path, remedy = NAMED_BADLY[how]
    assert (ports, other) == ([PORT, PORT + 1], PORT)
    assert held == [[port, True] for port in ports]
    assert files == []
    assert text.startswith(ALONE)
    assert path[:200] in text
    assert remedy in text


# ---- what a process runs out of ---------------------------------------------------------------


def out_of_descriptors(left: int) -> list[Any]:
    log = Log()
    manager = PortManager(PortManagerConfig(max_retries=5))  # running out is no reason to wait
    manager.port_configs["api"] = PortConfig("api", PORT)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    isolated.use_up_descriptors(left)
    answers = []
    for limit in (None, limits):
        if limit:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        try:
            manager.allocate_port("api").send(None)
        except StopIteration as stop:
            answers.append([stop.value.status, stop.value.message])
    return [answers, port_of_another(), log.texts]


@pytest.mark.parametrize("left", range(6))
def test_out_of_descriptors(left: int) -> None:
    """At first use: the answer is not known, which is not to say that the ledger is bad."""
    (first, second), another, texts = run(
        out_of_descriptors, left, among=tuple((left,) for left in range(6))
    )
    assert left >= 2 or first[0] == "error"
    assert (os.strerror(errno.EMFILE) in first[1]) == (first[0] == "error")
    assert second == ["allocated", f"Allocated default port {PORT}"]
    assert another == PORT + 1
    assert texts == []


def out_of_slots() -> list[Any]:
    good_file()
    # The same layout with a single slot: header, the page of the slots, an entry for each port.
    with file().open("r+b") as opened:
        ports, entry_size = struct.unpack("=II", opened.read(32)[24:])
        opened.seek(20)
        opened.write(struct.pack("=I", 1))
        opened.truncate(2 * PAGE + ports * entry_size)
    with another() as port:
        log, mine = Log(), Managers("api", "web")
    return [port, mine.ports, log.texts]


def test_out_of_slots() -> None:
    port, ports, (text,) = run(out_of_slots)
    assert (port, ports) == (PORT, [PORT, PORT + 1])
    assert text.startswith(ALONE)
    assert f"/tmp/portmanager-{os.geteuid()}" in text
    assert "slot" in text
    assert "remove it" in text
