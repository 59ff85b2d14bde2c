"""Who holds what, and for how long: reserved_ports(), releases, deaths, forks, and many at once."""

import contextlib
import copy
import dataclasses
import gc
import inspect
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import typing
import weakref
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from reserving import another, is_held, said_by, within

from portmanager import (
    PortConfig,
    PortManager,
    PortManagerConfig,
    PortReservation,
    PortStatus,
    reserve,
    reserved_ports,
)

FOREVER = 60.0  # seconds: longer than anything here takes, to fail instead of hanging


def allocate(*configs: PortConfig) -> PortManager:
    manager = PortManager(PortManagerConfig(max_retries=0))
    manager.port_configs = {config.service: config for config in configs}
    for config in configs:
        with contextlib.suppress(StopIteration):
            manager.allocate_port(config.service).send(None)
    return manager


def entries(*ports: int) -> list[PortReservation]:
    return [entry for entry in reserved_ports() if entry.port in ports]


def tell(process: "subprocess.Popen[str]") -> None:
    """Let a process go on that reads a line."""
    assert process.stdin
    process.stdin.write("\n")
    process.stdin.flush()


# ---- the record -------------------------------------------------------------------------------

SINCE = datetime(2026, 1, 2, 3, 4, 5, 678)
VALUES = (7000, "api", 4321, SINCE)


@dataclass
class Model:
    port: int
    service: str | None
    pid: int | None
    since: datetime


def test_record_is_a_dataclass() -> None:
    record, model = PortReservation(*VALUES), Model(*VALUES)
    assert repr(record) == repr(model).replace("Model", "PortReservation")
    assert dataclasses.is_dataclass(PortReservation)
    assert [(f.name, f.default) for f in dataclasses.fields(record)] == [
        (f.name, f.default) for f in dataclasses.fields(model)
    ]
    assert dataclasses.asdict(record) == dataclasses.asdict(model) == vars(record)
    assert dataclasses.astuple(record) == VALUES
    assert dataclasses.replace(record, port=7001) == PortReservation(7001, *VALUES[1:])
    assert PortReservation.__match_args__ == Model.__match_args__
    assert str(inspect.signature(PortReservation)) == str(inspect.signature(Model))
    assert typing.get_type_hints(PortReservation) == typing.get_type_hints(Model)
    assert PortReservation.__module__ == "portmanager"


def test_record_compares_by_fields() -> None:
    record = PortReservation(*VALUES)
    assert record == PortReservation(port=7000, service="api", pid=4321, since=SINCE)
    for index in range(4):
        values: list[Any] = [*VALUES]
        values[index] = None
        assert record != PortReservation(*values)
    assert record != Model(*VALUES)
    assert record.__eq__(PortStatus(*VALUES[:2], True)) is NotImplemented
    with pytest.raises(TypeError, match="unhashable"):
        hash(record)


def test_record_is_mutable_and_copied() -> None:
    record = PortReservation(*VALUES)
    record.pid = None
    record.note = "mine"  # type: ignore[attr-defined]
    assert weakref.ref(record)() is record
    copies = [copy.copy(record), copy.deepcopy(record)]
    copies += [
        pickle.loads(pickle.dumps(record, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ]
    for copied in copies:
        assert type(copied) is PortReservation
        assert copied is not record
        assert vars(copied) == vars(record)


def test_record_has_subclasses() -> None:
    @dataclass
    class Sub(PortReservation):
        note: str = "none"

    sub: Any = Sub
    assert sub(*VALUES, "one").note == "one"
    assert repr(sub(*VALUES)).endswith(", note='none')")
    assert sub(*VALUES) != PortReservation(*VALUES)


# ---- the list -----------------------------------------------------------------------------------


def test_list(block: range) -> None:
    before = datetime.now() - timedelta(seconds=0.1)  # it is of a clock that is quick to read
    manager = allocate(PortConfig("api", block[4]), PortConfig("web", block[1]))
    with reserve(start=block[2], end=block[2]), reserve(name="mine", **within(block[5:6])):
        listed = entries(*block)
        again = entries(*block)
    after = datetime.now()
    assert [(entry.port, entry.service, entry.pid) for entry in listed] == [
        (block[1], "web", os.getpid()),
        (block[2], None, os.getpid()),
        (block[4], "api", os.getpid()),
        (block[5], "mine", os.getpid()),
    ]
    for entry in listed:
        assert type(entry) is PortReservation
        assert entry.since.tzinfo is None
        assert before <= entry.since <= after
    assert listed == again
    assert all(one is not other for one, other in zip(listed, again, strict=True))
    manager.release_port("web")
    assert entries(*block) == [listed[2]]
    manager.release_all_ports()
    assert entries(*block) == []


def test_list_of_other_processes(block: range) -> None:
    code = """
        manager = portmanager.PortManager(portmanager.PortManagerConfig(max_retries=0))
        port = int(sys.argv[1])
        manager.port_configs["api"] = portmanager.PortConfig("api", port)
        try:
            manager.allocate_port("api").send(None)
        except StopIteration:
            held = portmanager.reserve(2, start=port + 1, end=port + 2)
        print(portmanager.reserved_ports(), flush=True)
        sys.stdin.readline()
    """
    before = datetime.now() - timedelta(seconds=0.1)
    with another(code, block[0]) as process:
        own = said_by(process)
        listed = entries(*block)
        process.kill()
        process.wait(FOREVER)
        assert entries(*block) == []
    assert [(entry.port, entry.service, entry.pid) for entry in listed] == [
        (block[0], "api", process.pid),
        (block[1], None, process.pid),
        (block[2], None, process.pid),
    ]
    assert all(before <= entry.since <= datetime.now() for entry in listed)
    assert repr(listed)[1:-1] in own  # it sees itself as others do


LABELS: dict[str, set[str | None]] = {
    "": {"", None},
    "ẅëb 🔌": {"ẅëb 🔌"},
    "line\nbreak": {"line\nbreak"},
    "w" * 63: {"w" * 63},
    "w" * 64: {"w" * 60 + "…"},
    "w" * 10000: {"w" * 60 + "…"},
    "wë" * 32: {"wë" * 20 + "…"},
    "🔌" * 16: {"🔌" * 15 + "…"},
    "web\udcff": {"web\udcff", "web" + "\ufffd" * 3},
    "we\0b": {"we\0b", "we"},
}


@pytest.mark.parametrize("service", LABELS, ids=ascii)
def test_names_of_services(block: range, service: str) -> None:
    """As they are, or cut behind a whole character."""
    manager = allocate(PortConfig(service, block[0]))
    code = """
        names = {entry.port: entry.service for entry in portmanager.reserved_ports()}
        print(ascii(names[int(sys.argv[1])]), flush=True)
    """
    (entry,) = entries(block[0])
    with another(code, block[0]) as process:
        assert said_by(process) == ascii(entry.service)
    assert entry.service in LABELS[service]
    manager.release_all_ports()


def test_lent_port(block: range) -> None:
    """Its owner's, then its heir's."""
    code = """
        import subprocess
        manager = portmanager.PortManager()
        manager.port_configs["api"] = portmanager.PortConfig("api", int(sys.argv[1]))
        try:
            manager.allocate_port("api").send(None)
        except StopIteration as stop:
            print(os.getpid(), stop.value.allocated_port, flush=True)
        if len(sys.argv) == 3:
            subprocess.run([sys.executable, "-c", sys.argv[2], sys.argv[1]])
        sys.stdin.readline()
    """
    heirs = "import os, sys, portmanager\n" + textwrap.dedent(code)
    with another(code, block[0], heirs) as owner:
        assert said_by(owner) == f"{owner.pid} {block[0]}"
        heir, port = map(int, said_by(owner).split())
        (first,) = entries(block[0])
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait(FOREVER)
        (second,) = entries(block[0])
        assert is_held(block[0])
        os.kill(heir, signal.SIGKILL)
        deadline = time.monotonic() + FOREVER
        while entries(block[0]):  # it is not our child, so nobody tells when it is gone
            assert time.monotonic() < deadline
    assert (port, first.pid, second.pid) == (block[0], owner.pid, heir)
    assert (first.service, second.service) == ("api", "api")


# ---- how long ---------------------------------------------------------------------------------


def test_release(block: range) -> None:
    port = block[0]
    reservation = reserve(start=port, end=port)
    assert is_held(port)
    reservation.release()
    assert not is_held(port)
    with reserve(start=port, end=port):
        reservation.release()  # somebody else's by now
        with reservation:
            pass
        assert is_held(port)


def test_the_end_of_a_with(block: range) -> None:
    with pytest.raises(KeyError), reserve(7, **within(block)):
        raise KeyError
    with reserve(7, **within(block)) as ports:
        assert all(map(is_held, ports))


@pytest.mark.parametrize("count", [None, 1, 3])
def test_garbage(block: range, count: Any) -> None:
    reservation = reserve(count, **within(block[:3]))
    ports = reservation.ports
    with pytest.warns(ResourceWarning, match="unreleased") as warned:
        del reservation
    (warning,) = warned
    text = str(warning.message)
    assert f"{ports[0]}-{ports[-1]}" in text or str(ports[0]) in text
    assert not any(map(is_held, ports))


def test_garbage_that_is_not_collected_yet(block: range) -> None:
    """It is, before a port is refused."""
    gc.disable()
    try:
        cycle: list[Any] = [reserve(7, **within(block))]
        assert {*cycle[0].ports} == {*block}
        shown = repr(cycle[0])  # in the order in which they were given: a tired one comes last
        cycle.append(cycle)
        del cycle
        with pytest.warns(ResourceWarning, match=f"^unreleased {re.escape(shown)}$"):
            reservation = reserve(7, **within(block))
    finally:
        gc.enable()
    reservation.release()


@pytest.mark.parametrize("hook", ["", "sys.unraisablehook = lambda unraisable: None"])
def test_exit_is_an_end_too(hook: str) -> None:
    """A quiet one, also of what outlives the modules."""
    code = f"""
        import portmanager, sys
        {hook}
        kept, cycle = portmanager.reserve(), [portmanager.reserve(3)]
        cycle.append(cycle)
    """
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_copy_is_no_owner(block: range) -> None:
    reservation = reserve(start=block[0], end=block[0])
    with pytest.raises(TypeError):
        pickle.dumps(reservation)
    with contextlib.suppress(TypeError):
        copied = copy.copy(reservation)
        del copied
    assert is_held(block[0])
    reservation.release()


HOLD = """
    held = portmanager.reserve(start=int(sys.argv[1]), end=int(sys.argv[1]))
    print(held.port, flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("end", ["kill", "exit", "_exit", "exec"])
def test_the_end_of_a_process(block: range, end: str) -> None:
    endings = {
        "exit": "sys.exit()",
        "_exit": "os._exit(1)",
        "exec": "os.execvp('sh', ['sh', '-c', 'echo; read unused'])",
    }
    code = f"{textwrap.dedent(HOLD)}{endings.get(end, '')}"
    with another(code, block[0]) as process:
        assert said_by(process) == str(block[0])
        assert is_held(block[0])
        process.send_signal(signal.SIGSTOP)  # for an hour, as it may be
        assert is_held(block[0])
        process.send_signal(signal.SIGCONT)
        assert process.stdin
        if end == "kill":
            process.kill()
        else:
            process.stdin.write("\n")
            process.stdin.flush()
        if end == "exec":
            assert said_by(process) == ""
        else:
            process.wait(FOREVER)
        assert not is_held(block[0])


FORK = """
    port, mine = int(sys.argv[1]), portmanager.reserve(start=int(sys.argv[1]), end=int(sys.argv[1]))
    if not os.fork():
        {in_the_child}
        try:
            portmanager.reserve(start=port, end=port)
        except portmanager.PortsExhausted as error:
            print([holder.pid for holder in error.holders] == [os.getppid()], flush=True)
        sys.stdin.readline()
        sys.exit()
    {in_the_parent}
"""


@pytest.mark.parametrize("what", ["mine.release()", "del mine", "mine.__exit__(None, None, None)"])
def test_forked_child_has_a_copy(block: range, what: str) -> None:
    code = FORK.format(in_the_child=what, in_the_parent="os.wait(); print(mine.ports, flush=True)")
    with another(code + "    sys.stdin.readline()\n", block[0]) as process:
        assert said_by(process) == "True"
        assert is_held(block[0])
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        assert said_by(process) == f"({block[0]},)"
        assert is_held(block[0])


def test_forked_child_does_not_keep_it(block: range) -> None:
    code = FORK.format(in_the_child="pass", in_the_parent="sys.stdin.readline(); os._exit(0)")
    with another(code, block[0]) as process:
        assert said_by(process) == "True"
        assert is_held(block[0])
        process.kill()
        process.wait(FOREVER)
        assert not is_held(block[0])


# ---- many at once -------------------------------------------------------------------------------


def test_threads_at_once() -> None:
    """Whatever they ask by."""
    barrier = threading.Barrier(8)
    results: list[Any] = []

    def work() -> None:
        barrier.wait()
        manager = allocate(*(PortConfig(str(number), 0) for number in range(10)))
        held = [reserve(20), reserve(5, consecutive=True)]
        held += [reserve(1) for _ in range(10)]
        results.append((manager, held))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ports = [port for _, held in results for reservation in held for port in reservation.ports]
    ports += [port for manager, _ in results for port in manager.get_allocated_ports().values()]
    for manager, held in results:
        manager.release_all_ports()
        for reservation in held:
            reservation.release()
    assert len(ports) == len({*ports}) == 8 * 45


def test_processes_at_once() -> None:
    code = """
        from portmanager import PortConfig, PortManager, reserve
        print("ready", flush=True)
        sys.stdin.readline()
        manager, held = PortManager(), [reserve(20), reserve(5, consecutive=True)]
        for number in range(10):
            name = f"{os.getpid()} {number}"
            manager.port_configs[name] = PortConfig(name, 0)
            try:
                manager.allocate_port(name).send(None)
            except StopIteration:
                held.append(reserve(1))
        ports = [port for reservation in held for port in reservation.ports]
        print(*ports, *manager.get_allocated_ports().values(), flush=True)
        sys.stdin.readline()
    """
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(another(code)) for _ in range(8)]
        for step in (said_by, tell):
            for process in processes:
                step(process)
        ports = [port for process in processes for port in said_by(process).split()]
        listed = {str(entry.port): entry.pid for entry in reserved_ports()}
    assert len(ports) == len({*ports}) == 8 * 45
    assert [listed[port] for port in ports[::45]] == [process.pid for process in processes]
