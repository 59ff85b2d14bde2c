"""No two living processes get one port, in a storm of a few seconds; and the storm would notice.

A storm ends when it has seen enough, however slow the machine is.

The long form, and the same with other libraries: benchmarks/double_handouts.py.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace

import isolated
import pytest
import torture
from torture import Adapter, Allocator, Handout, Oracle, Row
from torture_ours import Ours

ENOUGH = "--allocations=10000"
LONGEST = 60.0  # seconds, for one that does not see enough
FOREVER = 120.0  # longer than any storm takes to end


def storm(adapter: str, *options: str, **env: str) -> SimpleNamespace:
    """Run a storm in a process of its own, which may fork and kill."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [
            *(sys.executable, "-c", "import torture; torture.main()"),
            *(adapter, f"--seconds={LONGEST}", *options),
        ],
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **env},
        stdout=subprocess.PIPE,
        text=True,
        timeout=FOREVER,
        check=True,
    )
    report = SimpleNamespace(**json.loads(done.stdout))
    if not any(option.startswith("--findings") for option in options):
        assert report.allocations > 100, report
        assert report.starts >= 16, report
    return report


class TestPortmanager:
    def test_no_port_is_handed_out_twice(self) -> None:
        report = storm("torture_ours:Ours", "--allocations=15000")
        assert (report.doubles, report.findings) == (0, []), report
        assert min(report.kills, report.stops, report.binds) > 0, report
        assert (report.forks > 0) == Ours.forks, report

    def test_reservations_within_the_process_alone_are_not_enough(self) -> None:
        report = storm("torture_ours:Ours", ENOUGH, PORTMANAGER_LEDGER="process")
        assert report.doubles > 0, report


# ---- the harness itself: it must see what is wrong, and nothing else ---------------------------


class Sockets(Allocator):
    """Right by the kernel's own word: whoever has a port has it bound on an address that is for
    nothing else. That a holder is dead does not mean that its server's socket is closed."""

    def __init__(self, ports: range, rng: Random, mistakes: float = 0.0) -> None:
        super().__init__(rng)
        self.ports = ports
        self.mistakes = mistakes

    def acquire(self, name: str) -> list[Handout]:
        for port in self.random.sample(self.ports, 8):
            keeper = socket.socket()
            try:
                keeper.bind(("127.0.0.2", port))
                socket.create_server(("127.0.0.1", port)).close()
            except OSError:
                keeper.close()
                if self.random.random() >= self.mistakes:
                    continue
            return [Handout(port, keeper)]
        return []

    def release(self, batch: list[Handout]) -> None:
        for handout in batch:
            handout.token.close()


class Right(Adapter):
    name = "right"

    def allocator(self, ports: range, rng: Random) -> Allocator:
        return Sockets(ports, rng)


class RarelyWrong(Adapter):
    name = "rarely wrong"

    def allocator(self, ports: range, rng: Random) -> Allocator:
        return Sockets(ports, rng, mistakes=1 / 50)


class Colliding(Adapter):
    """Hands out whatever comes to its mind."""

    name = "colliding"

    def allocator(self, ports: range, rng: Random) -> Allocator:
        allocator = Allocator(rng)
        allocator.acquire = lambda name: [Handout(rng.choice(ports), name)]  # type: ignore[method-assign]
        return allocator


class Dying(Right):
    """Ends in a way that nobody expects, or finds something wrong."""

    name = "dying"

    def start(self, complain: Callable[[str], None]) -> None:
        if Random().random() < 0.2:
            os.kill(os.getpid(), signal.SIGTERM)
        assert Random().random() < 0.8, "deliberately"


class TestStorms:
    def test_who_is_right_is_found_right(self) -> None:
        report = storm("test_torture:Right", ENOUGH)
        assert (report.doubles, report.findings) == (0, []), report
        assert min(report.kills, report.stops, report.binds) > 0, report

    @pytest.mark.parametrize("adapter", ["Colliding", "RarelyWrong"])
    def test_ports_that_collide_are_noticed(self, adapter: str) -> None:
        report = storm(f"test_torture:{adapter}", ENOUGH)
        assert 0 < report.doubles < report.allocations, report
        finding = report.findings[0]
        assert finding["kind"] == "double"
        (_, _, pid), (_, _, other) = finding["me"], finding["rivals"][0]
        assert 0 not in {pid, other}, finding

    def test_processes_that_end_unexpectedly_are_noticed(self) -> None:
        report = storm("test_torture:Dying", "--findings=20")
        crashes = [other["traceback"] for other in report.others if other["kind"] == "crash"]
        assert any("AssertionError: deliberately" in crash for crash in crashes), report
        assert "a process died of signal 15" in crashes, report

    def test_one_finding_can_be_enough(self) -> None:
        report = storm("test_torture:Colliding", "--findings=1")
        assert report.seconds < LONGEST, report


# What follows runs in a process of its own, since it forks.


def child(work: Callable[[], None]) -> int:
    """Fork a process that has done its work when this returns, and then waits to be killed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            work()
            os.write(write, b"done")
            signal.pause()
        os._exit(1)
    os.close(write)
    assert os.read(read, 4) == b"done"
    os.close(read)
    return pid


def new_findings_while_a_holder_dies() -> list[int]:
    """How often a port was found to be held by another process, which..."""
    port = 5000
    with tempfile.TemporaryDirectory() as folder:
        oracle = Oracle(2, Path(folder, "findings"))
        row = Row(oracle, 0)
        counts = []

        def take() -> None:
            before = len(oracle.found())
            row.hold(port)
            row.give_up(port)
            counts.append(len(oracle.found()) - before)

        take()  # ...is not there yet
        pid = child(lambda: Row(oracle, 1).hold(port))
        take()  # lives
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        take()  # is stopped
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        take()  # is a zombie
        os.waitpid(pid, 0)
        take()  # is gone
        pid = child(lambda: Row(oracle, 1).hold(port + 1))
        take()  # is gone, and another one in its place lives, and holds another port
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        oracle.close()
    return counts


def new_findings_of_the_dead() -> list[int]:
    """What a process finds that is taken for dead, and one that is taken for alive again."""
    port = 5000
    with tempfile.TemporaryDirectory() as folder:
        oracle = Oracle(2, Path(folder, "findings"))
        row = Row(oracle, 0)
        pid = child(lambda: Row(oracle, 1).hold(port))
        counts = []
        started = oracle.header(0, torture.STARTED)
        for wrong in (1, 0):
            oracle.words[torture.STARTED] = started + wrong
            row.hold(port)
            counts.append(len(oracle.found()))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        oracle.close()
    return counts


class TestOracle:
    def test_only_the_living_hold_ports(self) -> None:
        assert isolated.run(new_findings_while_a_holder_dies) == [0, 1, 1, 0, 0, 0]

    def test_the_dying_find_nothing(self) -> None:
        assert isolated.run(new_findings_of_the_dead) == [0, 1]

    @pytest.mark.parametrize(
        ("state", "flags", "ended"),
        [
            ("R", 0x400000, False),
            ("T", 0x400000, False),
            ("R", 0x400004, True),  # exits, and has given up its locks already, perhaps
            ("Z", 0x400000, True),
            ("X", 0x400000, True),
        ],
    )
    def test_the_end_of_a_process(self, state: str, flags: int, ended: bool) -> None:
        stat = f"1 (a) Z) {state} 4 5 6 7 8 {flags} 10 11 12 13 14 15 16 17 18 19 20 21 777 23"
        assert torture.parse_stat(stat.encode()) == torture.Life(777, ended)

    def test_itself(self) -> None:
        life = torture.look_up(os.getpid())
        assert life is not None
        assert not life.ended
        assert torture.look_up(1 << 22) is None  # above any pid

    def test_two_that_see_each_other_are_one_double_handout(self) -> None:
        def found(me: int, *rivals: int) -> dict[str, object]:
            return {"kind": "double", "me": (me, 1, 9), "rivals": [(row, 1, 9) for row in rivals]}

        assert torture.count_doubles([found(1, 2), found(2, 1)]) == 1
        assert torture.count_doubles([found(1, 2), found(3, 1, 2)]) == 2
        assert torture.count_doubles([found(1, 2, 3), found(2, 1, 3), found(3, 1, 2)]) == 2
        assert torture.count_doubles([{"kind": "bind failed"}]) == 0
