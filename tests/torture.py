"""Storms of processes that take ports, and an oracle that knows when two hold the same one.

A storm is a number of processes with several threads each that take, hold and give back the ports
of a small range, while a supervisor kills, stops and restarts them. Whoever hands out the ports is
an `Adapter`: ours is in torture_ours.py, its rivals are in benchmarks/double_handouts.py, and
test_torture.py has some that are right or wrong on purpose.

The oracle knows nothing of how ports are handed out. It is memory that all the processes share,
with a row for each thread; `Row.hold` says why no double hand-out escapes it and none is made up.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import fcntl
import importlib
import importlib.util
import itertools
import json
import mmap
import os
import random
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

PORTS = 65536
CRASHED = 70  # the exit code of a process that found something wrong with itself


# ---- who hands out ports --------------------------------------------------------------------


class Handout(NamedTuple):
    """A port that was handed out, and what its allocator knows it by."""

    port: int
    token: Any


class Allocator:
    """One thread's way to ports."""

    def __init__(self, rng: Random) -> None:
        self.random = rng

    def acquire(self, name: str) -> list[Handout]:
        """Get a port, or several at once, under a name that nobody has had; [] if there is none."""
        raise NotImplementedError

    def pick(self, held: list[Handout]) -> list[Handout]:
        """Choose what is to be given back next: one, or all that have to go together."""
        return [self.random.choice(held)]

    def release(self, batch: list[Handout]) -> None:
        """Give back what `pick` chose."""

    def look_around(self, held: list[Handout]) -> None:
        """Make calls that take no port."""

    def heir(self) -> "Allocator":
        """Make the allocator of a forked child, in the child."""
        raise NotImplementedError

    def check_inherited(self, held: list[Handout]) -> None:
        """In a forked child: is what the parent holds still known?"""

    def misuse_inherited(self, held: list[Handout]) -> None:
        """In a forked child: give back what is the parent's, which must not do anything."""


class Adapter:
    """Somebody who hands out ports."""

    name = ""
    module: str | None = None  # what has to be installed
    package = ""  # and how pip calls it
    everywhere = False  # can a server have the port on whatever address?
    forks = False  # is it worth trying what forked children do?

    def missing(self) -> str | None:
        """Tell how to install what is not there."""
        if self.module is None or importlib.util.find_spec(self.module):
            return None
        return f"{sys.executable} -m pip install {self.package}"

    def running(self, ports: range, folder: Path) -> AbstractContextManager[object]:
        """Before the first process and until the last one has ended, in the supervisor."""
        return nullcontext()

    def start(self, complain: Callable[[str], None]) -> None:
        """At the start of each process, before its threads."""

    def allocator(self, ports: range, rng: Random) -> Allocator:
        """For each thread."""
        raise NotImplementedError

    def never_came_back(self, ports: range) -> Iterator[str]:
        """After the storm, in a process of its own: complain of ports that are not free again."""
        yield from ()


# ---- the oracle -----------------------------------------------------------------------------

# Of a row's header.
PID, STARTED, BEGIN, HANDOUTS, MISSES, BINDS, FAILED_BINDS, FORKS = range(8)
HEADER = 8  # words
PF_EXITING = 0x4


class Life(NamedTuple):
    """What /proc/PID/stat says of a process."""

    started: int
    ended: bool


def parse_stat(stat: bytes) -> Life:
    # The name, in parentheses, may have anything in it.
    fields = stat.rpartition(b") ")[2].split()
    state, flags, started = fields[0], int(fields[6]), int(fields[19])
    # A dying process gives up its locks and sockets, and others may have its ports, before it
    # shows as a zombie. It has the flag before that: every thread that goes sets it first, and
    # what the threads share is given up by the last.
    return Life(started, state in {b"Z", b"X"} or bool(flags & PF_EXITING))


def look_up(pid: int) -> Life | None:
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return None


class Rival(NamedTuple):
    """Somebody else's hand-out of the same port."""

    row: int
    serial: int
    pid: int


class Oracle:
    """Who holds which port: memory that forked processes share.

    A row for each thread: a header, and a cell for each port with the number of the row's hand-out
    while it is held, else 0. A row goes on counting when another process takes it over, and its
    header says where that process began: what is left of the one before is older. So no cells of
    the dead need to be cleared, but a row must not be taken over before its process is reaped.
    """

    def __init__(self, rows: int, path: Path) -> None:
        self.rows = rows
        self.path = path
        # Append: so many processes write.
        self.findings = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        words = (rows + 1) * HEADER  # one more, for `stopping`
        memory = memoryview(mmap.mmap(-1, words * 8 + rows * PORTS * 4))
        self.words = memory[: words * 8].cast("Q")
        # By port, then by row: all who may hold a port are side by side.
        self.cells = memory[words * 8 :].cast("I")

    @property
    def stopping(self) -> bool:
        return bool(self.words[self.rows * HEADER])

    def stop(self) -> None:
        self.words[self.rows * HEADER] = 1

    def header(self, row: int, field: int) -> int:
        return self.words[row * HEADER + field]

    def total(self, field: int) -> int:
        return sum(self.header(row, field) for row in range(self.rows))

    def holders(self, port: int) -> list[int]:
        """Each row's cell of a port."""
        return self.cells[port * self.rows : (port + 1) * self.rows].tolist()

    def living(self, row: int, serial: int) -> Rival | None:
        """Who had a cell set when it was looked at, if that process lives even now."""
        # Read in this order and written in the opposite one: whoever sees a new process's pid also
        # sees where it began, and does not take its predecessor's hand-outs for its own.
        pid = self.header(row, PID)
        started, begin = self.header(row, STARTED), self.header(row, BEGIN)
        if not pid or serial < begin:
            return None
        life = look_up(pid)
        is_it = life is not None and life.started == started and not life.ended
        return Rival(row, serial, pid) if is_it else None

    def found(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def close(self) -> None:
        os.close(self.findings)

    def bury(self, pid: int) -> None:
        """A process was reaped: its rows are nobody's. Nobody needs to ask for it any more."""
        for row in range(self.rows):
            if self.header(row, PID) == pid:
                self.words[row * HEADER + PID] = 0

    def complain(self, text: str) -> None:
        self.report("complaint", text=text)

    def report(self, kind: str, **what: object) -> None:
        """Append to the findings, in one write, which a kill does not tear."""
        line = json.dumps({"kind": kind, "at": time.monotonic(), **what})
        os.write(self.findings, line.encode() + b"\n")


class Row:
    """A thread's row of the oracle. Whoever had it before must have been reaped."""

    def __init__(self, oracle: Oracle, index: int) -> None:
        self.oracle = oracle
        self.index = index
        self.pid = os.getpid()
        self._fence = threading.Lock()
        self._fence.acquire()
        life = look_up(self.pid)
        assert life is not None
        self._set(BEGIN, self.count(HANDOUTS) + 1)
        self._set(STARTED, life.started)
        self._set(PID, self.pid)

    def count(self, field: int) -> int:
        return self.oracle.header(self.index, field)

    def add(self, field: int) -> int:
        number = self.count(field) + 1
        self._set(field, number)
        return number

    def _set(self, field: int, value: int) -> None:
        self.oracle.words[self.index * HEADER + field] = value

    @property
    def next_name(self) -> str:
        """The name that nobody has had, for the next hand-out."""
        return name(self.index, self.count(HANDOUTS) + 1)

    def hold(self, port: int) -> None:
        """A port was handed out: to be called at once. Finds who else holds it.

        The cell is set after the port was handed out and cleared before it is given back, so what
        the oracle takes for a hold is a part of it, and two that overlap are a double hand-out.
        Each sets its own cell and then looks at the others': of two, at least the later one sees
        the other. (Dekker's pattern: it needs a full fence between the two.) What was seen set is
        the hold of a process that lived then if it lives now.
        """
        serial = self.add(HANDOUTS)
        self.oracle.cells[port * self.oracle.rows + self.index] = serial
        # The fence: a release and, after it, an acquisition, which no processor swaps or lets a
        # load pass; on x86 each is one already.
        self._fence.release()
        self._fence.acquire()
        cells = self.oracle.holders(port)
        if cells.count(0) < len(cells) - 1:
            self._judge(port, serial, cells)

    def give_up(self, port: int) -> None:
        """A port is about to be given back."""
        self.oracle.cells[port * self.oracle.rows + self.index] = 0

    def _judge(self, port: int, serial: int, cells: list[int]) -> None:
        others = [(row, cell) for row, cell in enumerate(cells) if cell and row != self.index]
        rivals = [rival for other in others if (rival := self.oracle.living(*other))]
        # A thread may run on for a moment when the process is dying already, and others have its
        # ports: rightly.
        if rivals and self.oracle.living(self.index, serial):
            me = Rival(self.index, serial, self.pid)
            self.oracle.report("double", port=port, me=me, rivals=rivals)


def name(row: int, serial: int) -> str:
    """The service that a hand-out was for; of several at once, the first."""
    return f"torture-{row}-{serial}"


# ---- a thread in the storm ------------------------------------------------------------------

MOST_HELD = 3
LONGEST_HOLD = 0.002  # seconds


class Chance:
    """How often a turn has something special in it."""

    LISTEN = 1 / 16
    LOOK_AROUND = 1 / 20
    KEEP = 1 / 4  # gives nothing back
    FORK = 1 / 100
    KILL_CHILD = 1 / 20
    EXIT = 1 / 5000  # without a word, holding what it holds


@dataclasses.dataclass
class Storm:
    """What all the processes of a storm know."""

    adapter: Adapter
    oracle: Oracle
    ports: range
    threads: int
    addresses: list[tuple[socket.AddressFamily, str]]


class Taker:
    """What one thread does, turn by turn."""

    def __init__(self, storm: Storm, row: int, allocator: Allocator) -> None:
        self.storm = storm
        self.allocator = allocator
        self.random = allocator.random
        self.row = Row(storm.oracle, row)
        self.held: list[Handout] = []
        # Ports of those that had no listener yet. One that had may live on in a forked child, and
        # would be in the way of another.
        self.untouched: set[int] = set()

    def turn(self) -> None:
        if len(self.held) < self.random.randint(1, MOST_HELD):
            self.take()
        with self.maybe_listening():
            if self.random.random() < 0.5:
                time.sleep(self.random.uniform(0, LONGEST_HOLD))
        if self.random.random() < Chance.LOOK_AROUND:
            self.allocator.look_around(self.held)
        if self.held and self.random.random() >= Chance.KEEP:
            self.give_back()

    def take(self) -> None:
        handouts = self.allocator.acquire(self.row.next_name)
        for handout in handouts:
            self.row.hold(handout.port)
            self.untouched.add(handout.port)
        self.held += handouts
        if not handouts:
            self.row.add(MISSES)
            time.sleep(self.random.uniform(0, LONGEST_HOLD))

    def give_back(self) -> None:
        batch = self.allocator.pick(self.held)
        self.held = [handout for handout in self.held if handout not in batch]
        for handout in batch:
            self.row.give_up(handout.port)
            self.untouched.discard(handout.port)
        self.allocator.release(batch)

    def settle(self) -> None:
        while self.held:
            self.give_back()

    def maybe_listening(self) -> AbstractContextManager[object]:
        if not self.untouched or self.random.random() >= Chance.LISTEN:
            return nullcontext()
        return self.listen(self.untouched.pop()) or nullcontext()

    def listen(self, port: int) -> socket.socket | None:
        """Do what a port is for; it is a finding if that fails."""
        family, host = self.random.choice(self.storm.addresses)
        self.row.add(BINDS)
        server = socket.socket(family)
        try:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
            server.listen(1)
        except OSError as error:
            server.close()
            where = f"{host or '0.0.0.0'}: {error}"
            # Asking the kernel takes long.
            sockets = sockets_on(port) if self.row.add(FAILED_BINDS) < 3 else []
            self.storm.oracle.report("bind failed", port=port, where=where, sockets=sockets)
            return None
        return server


class Parent(Taker):
    """A thread that has a forked child now and then. The child has a row of its own."""

    def __init__(self, storm: Storm, row: int, child_row: int, allocator: Allocator) -> None:
        super().__init__(storm, row, allocator)
        self.child_row = child_row
        self.child = 0

    def run(self) -> None:
        while not self.storm.oracle.stopping:
            self.turn()
            if self.child:
                self.look_after_child(os.WNOHANG)
            elif self.storm.adapter.forks and self.random.random() < Chance.FORK:
                self.fork()
            if self.random.random() < Chance.EXIT:
                os._exit(0)
        self.settle()
        if self.child:
            self.look_after_child(0)

    def fork(self) -> None:
        seed = self.random.random()
        self.row.add(FORKS)
        self.child = os.fork()
        if self.child == 0:
            guarded(self.storm.oracle, lambda: self.be_child(Random(seed)))

    def look_after_child(self, options: int) -> None:
        if self.random.random() < Chance.KILL_CHILD:
            os.kill(self.child, signal.SIGKILL)  # not reaped, so it is still the child's number
        pid, status = os.waitpid(self.child, options)
        if pid:
            self.child = 0
            self.storm.oracle.bury(pid)
            complain_of_end(self.storm.oracle, "a forked child", status)

    def be_child(self, rng: Random) -> None:
        """Live a short life; the parent's ports stay the parent's whatever happens here."""
        self.random.setstate(rng.getstate())
        inherited = self.allocator
        inherited.check_inherited(self.held)
        taker = Taker(self.storm, self.child_row, inherited.heir())
        for _ in range(self.random.randrange(10)):
            taker.turn()
        inherited.misuse_inherited(self.held)
        for _ in range(self.random.randrange(10)):
            taker.turn()
        end = self.random.randrange(3)
        if end == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        elif end == 1:
            # From here: what is held is not to be released on the way out, as objects are.
            os._exit(0)
        taker.settle()


def sockets_on(port: int) -> list[str]:
    """The kernel's lines about a port: local address, state, user and inode."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(f":{port:04X}"):
                found.append(" ".join((table, fields[1], fields[3], fields[7], fields[9])))
    return found


# ---- a process in the storm -----------------------------------------------------------------


def guarded(oracle: Oracle, work: Callable[[], None]) -> None:
    """Do a forked process's work and end it; nothing of its parent's goes on in it."""
    code = CRASHED
    try:
        work()
        code = 0
    except BaseException:
        oracle.report("crash", pid=os.getpid(), traceback=traceback.format_exc())
    finally:
        os._exit(code)


def be_worker(storm: Storm, slot: int, seed: str) -> None:
    """Run a process's threads until the storm ends. Each has a row, and one for its children."""
    storm.adapter.start(storm.oracle.complain)
    first = slot * storm.threads * 2

    def run(number: int) -> None:
        allocator = storm.adapter.allocator(storm.ports, Random(f"{seed}/{number}"))
        row = first + 2 * number
        Parent(storm, row, row + 1, allocator).run()

    def run_or_crash(number: int) -> None:
        try:
            run(number)
        except BaseException:
            storm.oracle.report("crash", pid=os.getpid(), traceback=traceback.format_exc())
            os._exit(CRASHED)

    threads = [threading.Thread(target=run_or_crash, args=(n,)) for n in range(storm.threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def complain_of_end(oracle: Oracle, who: str, status: int, expected: int = signal.SIGKILL) -> None:
    """A process may end by itself or by an expected signal, nothing else."""
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != expected:
        oracle.report("crash", traceback=f"{who} died of signal {os.WTERMSIG(status)}")
    # A process that found something wrong has said so.
    elif os.WIFEXITED(status) and os.WEXITSTATUS(status) not in {0, CRASHED}:
        oracle.report("crash", traceback=f"{who} exited with {os.WEXITSTATUS(status)}")


# ---- the supervisor -------------------------------------------------------------------------

TICK = 0.004  # seconds
BETWEEN_BLOWS = 0.02  # on average
LONGEST_STOP = 0.3
STALLED = 20.0  # without any hand-out
END = 30.0  # for all processes to end by themselves


@dataclasses.dataclass
class Slot:
    """The place of a process: its process group has its children in it."""

    number: int
    pid: int = 0  # and of the group; 0: nobody is left of it
    killed: bool = False
    stopped_until: float = 0.0


class Supervisor:
    """Starts the processes, kills and stops them, and starts others in their place."""

    def __init__(self, storm: Storm, processes: int, seed: int) -> None:
        self.storm = storm
        self.seed = seed
        self.random = Random(seed)
        self.slots = [Slot(number) for number in range(processes)]
        self.starts = self.kills = self.stops = 0

    def run(self, options: "Options") -> float:
        """Let it storm as long as the options say; returns how long it was."""
        start = progress = time.monotonic()
        handed_out = 0
        try:
            while (now := time.monotonic()) - start < options.seconds:
                self.look_after_all(now)
                if self.random.random() < TICK / BETWEEN_BLOWS:
                    self.strike(self.random.choice(self.slots), now)
                before, handed_out = handed_out, self.storm.oracle.total(HANDOUTS)
                progress = now if handed_out > before else progress
                if now - progress > STALLED:
                    self.storm.oracle.report("stall", seconds=STALLED)
                    break
                if handed_out >= options.allocations or self.has_found(options.findings):
                    break
                time.sleep(TICK)
            took = time.monotonic() - start
            self.end()
        finally:
            self.kill_all()
        return took

    def has_found(self, findings: int) -> bool:
        """Is it enough? A finding has far more bytes than one."""
        size = os.fstat(self.storm.oracle.findings).st_size
        return 0 < findings <= size and findings <= len(self.storm.oracle.found())

    def look_after_all(self, now: float) -> None:
        for slot in self.slots:
            if slot.stopped_until and slot.stopped_until <= now:
                self.resume(slot)
            if slot.pid:
                self.reap(slot)
            if not slot.pid:
                self.start(slot)

    def start(self, slot: Slot) -> None:
        self.starts += 1
        seed = f"{self.seed}/{self.starts}"
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            die_with(parent)
            os.nice(5)  # or the supervisor would strike less often
            guarded(self.storm.oracle, lambda: be_worker(self.storm, slot.number, seed))
        # Both do it, whoever is first: neither may go on before it is done.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        slot.pid, slot.killed, slot.stopped_until = pid, False, 0.0

    def reap(self, slot: Slot) -> None:
        """Reap what has ended. The place is free when all of the group, also orphans, is reaped."""
        try:
            while True:
                pid, status = os.waitpid(-slot.pid, os.WNOHANG)
                if not pid:
                    return
                self.storm.oracle.bury(pid)
                is_fine = pid != slot.pid or slot.killed
                expected = signal.SIGKILL if is_fine else 0
                complain_of_end(self.storm.oracle, "a process", status, expected)
        except ChildProcessError:
            slot.pid = 0

    def strike(self, slot: Slot, now: float) -> None:
        if not slot.pid:
            return
        blow = self.random.random()
        if blow < 0.4:
            self.stops += 1
            self.signal(slot, signal.SIGSTOP)
            slot.stopped_until = now + self.random.uniform(0, LONGEST_STOP)
        else:
            self.kills += 1
            slot.killed = True
            self.signal(slot, signal.SIGKILL, group=blow < 0.6)

    def signal(self, slot: Slot, number: signal.Signals, group: bool = False) -> None:
        # The number is the process's, or its group's, until `reap` has seen the end of both. The
        # process itself may have been reaped while an orphan of it is still there.
        with contextlib.suppress(ProcessLookupError):
            if group or os.getpgid(slot.pid) == slot.pid:
                (os.killpg if group else os.kill)(slot.pid, number)

    def resume(self, slot: Slot) -> None:
        slot.stopped_until = 0.0
        if slot.pid:
            self.signal(slot, signal.SIGCONT)

    def end(self) -> None:
        """All give back what they hold and end by themselves."""
        self.storm.oracle.stop()
        for slot in self.slots:
            self.resume(slot)
        deadline = time.monotonic() + END
        while any(slot.pid for slot in self.slots):
            for slot in self.slots:
                if slot.pid:
                    self.reap(slot)
            if time.monotonic() > deadline:
                number = sum(bool(slot.pid) for slot in self.slots)
                self.storm.oracle.report("hang", processes=number)
                return
            time.sleep(TICK)

    def kill_all(self) -> None:
        for slot in self.slots:
            if slot.pid:
                slot.killed = True
                self.signal(slot, signal.SIGKILL, group=True)
        for slot in self.slots:
            while slot.pid:
                self.reap(slot)
                time.sleep(TICK)


def call(name: str, *arguments: int) -> None:
    """Call a function of the C library that Python does not have."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        raise OSError(ctypes.get_errno(), name)


def adopt_orphans() -> None:
    """Become the parent of forked children whose parents were killed, to know when they end."""
    set_child_subreaper = 36
    call("prctl", set_child_subreaper, 1, 0, 0, 0)


def die_with(parent: int) -> None:
    """Be killed when the supervisor is, even while stopped."""
    set_pdeathsig = 1
    call("prctl", set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def leave_network() -> None:
    """Have a network to itself, where that is allowed: the ports that others try are not ours, and
    what is left of one storm, connections in TIME_WAIT above all, is not in the way of the next."""
    clone_newnet, siocsifflags, up_and_running = 0x40000000, 0x8914, 0x41
    try:
        call("unshare", clone_newnet)
    except OSError:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, siocsifflags, struct.pack("16sH14x", b"lo", up_and_running))


# ---- a storm, from its options to its report -------------------------------------------------


def option(default: float, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": f"{text} ({default})"})


@dataclasses.dataclass
class Options:
    """How long a storm lasts, and how hard it is."""

    allocations: int = option(1_000_000, "hand-outs after which a storm is over")
    seconds: float = option(3600.0, "seconds after which it is over in any case")
    findings: int = option(0, "stop after so many findings, for whoever looks for a mistake; 0: no")
    processes: int = option(16, "processes")
    threads: int = option(4, "threads of each")
    range: int = option(48, "ports that they fight for")
    seed: int = dataclasses.field(
        default_factory=lambda: random.randrange(1 << 32),
        metadata={"help": "what the chances are drawn from (another each time; it is printed)"},
    )

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        for field in dataclasses.fields(cls):
            kind = float if field.name == "seconds" else int
            parser.add_argument(f"--{field.name}", type=kind, help=field.metadata["help"])

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Options":
        given = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})


@dataclasses.dataclass
class Report:
    """What came of a storm."""

    name: str
    options: Options
    first_port: int
    seconds: float
    allocations: int
    misses: int
    binds: int
    forks: int
    starts: int
    kills: int
    stops: int
    doubles: int
    findings: list[dict[str, Any]]  # all but double hand-outs after the tenth

    @property
    def bind_failures(self) -> int:
        return sum(finding["kind"] == "bind failed" for finding in self.findings)

    @property
    def others(self) -> list[dict[str, Any]]:
        """Crashes, hangs and ports that never came back."""
        usual = {"double", "bind failed"}
        return [finding for finding in self.findings if finding["kind"] not in usual]


def count_doubles(findings: Iterable[dict[str, Any]]) -> int:
    """Count hand-outs of held ports.

    Two at the same instant may both see the other: that is one double hand-out, not two.
    """
    seen: set[frozenset[tuple[int, int]]] = set()
    count = 0
    for finding in findings:
        if finding["kind"] == "double":
            me, *rivals = [(row, serial) for row, serial, _ in (finding["me"], *finding["rivals"])]
            pairs = {frozenset((me, rival)) for rival in rivals}
            count += not pairs <= seen
            seen |= pairs
    return count


def describe(finding: dict[str, Any]) -> str:
    """Say what was found, in a line or a traceback."""
    if finding["kind"] == "double":
        me, *rivals = [Rival(*each) for each in (finding["me"], *finding["rivals"])]
        others = ", ".join(f"{rival.pid} for {name(*rival[:2])}" for rival in rivals)
        return f"port {finding['port']}: process {me.pid} got it for {name(*me[:2])}, has {others}"
    return ", ".join(str(value) for key, value in finding.items() if key not in {"kind", "at"})


def storm(adapter: Adapter, options: Options) -> Report:
    """Run a storm. To be called where there is one thread, since it forks."""
    # A process with threads forks: that is what is tried here.
    warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
    adopt_orphans()
    leave_network()
    addresses = local_addresses() if adapter.everywhere else local_addresses()[:1]
    ports = free_ports(options.range)
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        oracle = Oracle(2 * options.processes * options.threads, folder / "findings")
        setting = Storm(adapter, oracle, ports, options.threads, addresses)
        supervisor = Supervisor(setting, options.processes, options.seed)
        with closing(oracle), adapter.running(ports, folder):
            seconds = supervisor.run(options)
            look_for_lost(setting)
        findings = oracle.found()
    doubles = [finding for finding in findings if finding["kind"] == "double"]
    return Report(
        name=adapter.name,
        options=options,
        first_port=ports.start,
        seconds=seconds,
        allocations=oracle.total(HANDOUTS),
        misses=oracle.total(MISSES),
        binds=oracle.total(BINDS),
        forks=oracle.total(FORKS),
        starts=supervisor.starts,
        kills=supervisor.kills,
        stops=supervisor.stops,
        doubles=count_doubles(doubles),
        findings=doubles[:10] + [found for found in findings if found["kind"] != "double"],
    )


def look_for_lost(storm: Storm) -> None:
    def look() -> None:
        storm.adapter.start(storm.oracle.complain)
        # A few will do; each takes its time.
        for complaint in itertools.islice(storm.adapter.never_came_back(storm.ports), 3):
            storm.oracle.report("lost", complaint=complaint)

    pid = os.fork()
    if pid == 0:
        guarded(storm.oracle, look)
    _, status = os.waitpid(pid, 0)
    complain_of_end(storm.oracle, "the last process", status, 0)


def local_addresses() -> list[tuple[socket.AddressFamily, str]]:
    """Where a server may listen; 127.0.0.1 is the first."""
    addresses = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "")]
    for host in ("::1", "::"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
            probe.bind((host, 0))
            addresses.append((socket.AF_INET6, host))
    return addresses


def free_ports(count: int) -> range:
    """Find ports in a row that are free, where the kernel gives none to anybody by itself."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    blocks = [range(start, start + count) for start in range(11_000, PORTS - count)]
    outside = [block for block in blocks if block[-1] < first or block[0] > last]
    for block in random.sample(outside or blocks, 1000):
        if all_free(block):
            return block
    raise SystemExit(f"this machine has no {count} free ports in a row")


def all_free(ports: range) -> bool:
    with ExitStack() as stack:
        for port in ports:
            for family, host in local_addresses():
                if host in {"", "::1"}:
                    probe = stack.enter_context(socket.socket(family))
                    try:
                        probe.bind((host, port))
                    except OSError:
                        return False
    return True


# ---- one storm as a program, for tests -------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description="Run one storm and print its report as JSON.")
    parser.add_argument("adapter", help="where its class is, MODULE:CLASS")
    Options.add_to(parser)
    arguments = parser.parse_args()
    module, _, cls = arguments.adapter.partition(":")
    adapter = getattr(importlib.import_module(module), cls)()
    report = storm(adapter, Options.of(arguments))
    extra = {"bind_failures": report.bind_failures, "others": report.others}
    print(json.dumps(dataclasses.asdict(report) | extra))
