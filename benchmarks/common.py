"""What the benchmarks share: measuring side by side, the rival, the bare system calls, the table.

Machines are noisy, and neighbours come and go. So whatever is compared takes turns of a few
milliseconds, each turn gives a ratio, and the median of many ratios counts. What never waits is
measured in processor time of its thread, which neighbours disturb least.
"""

import argparse
import asyncio
import ctypes
import functools
import importlib
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent

Row = tuple[str, str, str, str, str]
HEADER: Row = ("Measured", "compared with", "portmanager", "pure Python", "target")

# Runs something so many times and returns the nanoseconds of processor time that it took.
Timer = Callable[[int], int]


# ---- measuring ------------------------------------------------------------------------------


class Ratios:
    """How much longer than its base something took, turn by turn."""

    def __init__(self, name: str, ratios: list[float]) -> None:
        quarter, self.median, three_quarters = statistics.quantiles(ratios, n=4)
        self.noise = (three_quarters - quarter) / 2 / self.median
        note(
            f"{name}: {self.median:.3f}x, {len(ratios)} turns from "
            f"{min(ratios):.2f}x to {max(ratios):.2f}x"
        )

    def __str__(self) -> str:
        digits = 2 if self.median < 10 else 0
        return f"{self.median:.{digits}f}x ±{self.noise:.0%}".replace("%", " %")


def side_by_side(timers: Mapping[str, Timer], count: int, rounds: int) -> dict[str, list[int]]:
    """Let timers take turns, in another order each round; what is first may find a cold cache."""
    times: dict[str, list[int]] = {name: [] for name in timers}
    order = list(timers)
    for timer in timers.values():
        timer(count)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            times[name].append(timers[name](count))
    return times


def compare(timers: Mapping[str, Timer], base: str, count: int, rounds: int) -> dict[str, Ratios]:
    """Measure timers side by side and divide by the one that is named."""
    times = side_by_side(timers, count, rounds)
    ratios = {
        name: [time / of_base for time, of_base in zip(times[name], times[base], strict=True)]
        for name in timers
        if name != base
    }
    for name in ratios:
        each = {of: min(times[of]) / count / 1000 for of in (name, base)}
        note(
            f"{name}: at least {each[name]:.2f} us, {base} {each[base]:.2f} us, "
            f"{each[name] / each[base]:.3f}x"
        )
    return {name: Ratios(name, figures) for name, figures in ratios.items()}


def timed(call: Callable[[int], object]) -> Timer:
    """Time what does something so many times by itself."""

    def run(count: int) -> int:
        start = time.thread_time_ns()
        call(count)
        return time.thread_time_ns() - start

    return run


def timed_task(loop: Callable[[int], Awaitable[object]]) -> Timer:
    """Time what awaits something so many times; the event loop is there before the clock starts."""

    async def run(count: int) -> int:
        start = time.thread_time_ns()
        await loop(count)
        return time.thread_time_ns() - start

    return lambda count: asyncio.run(run(count))


# ---- what is compared -----------------------------------------------------------------------


@functools.cache
def twin() -> ModuleType:
    """Import the documented service in pure Python."""
    sys.path.insert(0, str(ROOT / "tests"))
    return importlib.import_module("twin")


@functools.cache
def syscalls() -> ctypes.PyDLL:
    """Compile syscalls.c and load it; calls keep the GIL, as ours do."""
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/syscalls.so"
        source = ROOT / "benchmarks" / "syscalls.c"
        command = [os.environ.get("CC", "cc"), "-O2", "-shared", "-fPIC", "-o", library]
        subprocess.run([*command, source], check=True)
        loaded = ctypes.PyDLL(library)
    for name in ("probe_loopback", "probe_everywhere", "walk_busy"):
        getattr(loaded, name).restype = ctypes.c_bool
    return loaded


def check(answer: object, complaint: str = "somebody else uses the port, try again") -> None:
    """Refuse to measure what does not give the answer that is expected."""
    if not answer:
        raise SystemExit(complaint)


def free_port() -> int:
    """Find a port that is free now and that no outgoing connection takes."""
    for port in random.sample(range(20000, 32000), 1000):
        with socket.socket(socket.AF_INET6) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            try:
                probe.bind(("::", port))
            except OSError:
                continue
            return port
    raise SystemExit("no port is free")


# ---- programs and their output --------------------------------------------------------------


def note(text: str) -> None:
    """Say something to whoever watches; the table alone goes to the standard output."""
    print(text, file=sys.stderr, flush=True)


def line(row: Iterable[str]) -> str:
    """Lay one row of the table out."""
    return f"| {' | '.join(row)} |"


def print_table(rows: Iterable[str]) -> None:
    """Print rows under a header and the machine's name."""
    print(line(HEADER), line("-" * len(title) for title in HEADER), *rows, sep="\n")
    print(f"\n{machine()}.")


def machine() -> str:
    """Name the machine: processor, kernel, Python."""
    models = [
        text for text in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in text
    ]
    model = models[0].partition(": ")[2] if models else platform.machine()
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, "
        f"CPython {platform.python_version()}"
    )


def main(
    description: str | None,
    measure: Callable[[argparse.Namespace], Iterable[Row]],
    **options: tuple[int, str],
) -> None:
    """Run one benchmark as a program. Options: name=(default, help)."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--python", help="another Python to run this with, which has portmanager")
    chosen, others = first.parse_known_args()
    if chosen.python:
        os.execv(chosen.python, [chosen.python, sys.argv[0], *others])

    parser = argparse.ArgumentParser(description=description, parents=[first])
    parser.add_argument("--rows", action="store_true", help="print no header and no machine")
    for name, (default, text) in options.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    arguments = parser.parse_args()
    rows = [line(row) for row in measure(arguments)]
    if arguments.rows:
        print(*rows, sep="\n")
    else:
        print_table(rows)
