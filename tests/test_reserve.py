"""reserve(): which ports it gives, how long they are held, and what it says when there are none."""

import asyncio
import contextlib
import errno
import gc
import itertools
import logging
import operator
import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import isolated
import pytest

import portmanager
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


@pytest.fixture
def block(port_block: Callable[[int], int]) -> range:
    """Seven consecutive ports that nothing is bound to."""
    first = port_block(7)
    return range(first, first + 7)


def within(ports: range) -> dict[str, int]:
    return {"start": ports[0], "end": ports[-1]}


def is_held(port: int) -> bool:
    try:
        reserve(start=port, end=port).release()
    except PortsExhausted:
        return True
    return False


@contextlib.contextmanager
def another(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that runs code of ours; it is killed at the end, if it lives."""
    code = "import os, sys, portmanager\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said_by(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


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


def test_consecutive_without_count() -> None:
    with reserve(consecutive=True) as port:
        assert type(port) is int


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
        gc.collect()
    (warning,) = warned
    text = str(warning.message)
    assert f"{ports[0]}-{ports[-1]}" in text or str(ports[0]) in text
    assert not any(map(is_held, ports))


def test_garbage_that_is_not_collected_yet(block: range) -> None:
    """It is, before a port is refused."""
    gc.disable()
    try:
        cycle: list[Any] = [reserve(7, **within(block))]
        cycle.append(cycle)
        del cycle
        with pytest.warns(ResourceWarning, match=f"{block[0]}-{block[-1]}"):
            reservation = reserve(7, **within(block))
    finally:
        gc.enable()
    reservation.release()


def test_garbage_where_warnings_are_errors(block: range) -> None:
    code = """
        import gc
        start = int(sys.argv[1])
        sys.unraisablehook = lambda unraisable: print(unraisable.exc_type.__name__)
        portmanager.reserve(start=start, end=start)
        portmanager.reserve(start=start, end=start).release()
    """
    code = "import sys, portmanager\n" + textwrap.dedent(code)
    command = [sys.executable, "-W", "error", "-c", code, str(block[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("ResourceWarning\n", "")


def test_exit_is_an_end_too() -> None:
    code = """
        import portmanager
        kept = portmanager.reserve(3)
        cycle = [portmanager.reserve()]
        cycle.append(cycle)
    """
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


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
