"""What reservations cost: claim and release over the bare probe, reserve(100) over its probes."""

import argparse
import contextlib
import ctypes
import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import common

import portmanager

CORE = common.ROOT / "csrc" / "core"
HELD = (10, 10_000)
SEVERAL = 100

# Another process of this user, which holds ports until its standard input closes.
HOLDER = """
import sys, portmanager
held = portmanager.reserve(int(sys.argv[1]), start=1024, end=65535)
print(len(held.ports), flush=True)
sys.stdin.read()
held.release()
"""


@functools.cache
def core() -> ctypes.PyDLL:
    """Compile the core and ledger.c, and load them; calls keep the GIL."""
    elsewhere = ("_macos", "_windows", "_posix")
    sources = [file for file in CORE.glob("*.c") if not file.stem.endswith(elsewhere)]
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/ledger.so"
        options = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC", "-pthread"]
        include = f"-I{CORE.parent}"
        source = Path(__file__).with_name("ledger.c")
        subprocess.run(
            [os.environ.get("CC", "cc"), *options, include, "-o", library, source, *sources],
            check=True,
        )
        loaded = ctypes.PyDLL(library)
    for name in ("probe_alone", "probe_claimed", "probe_strictly"):
        getattr(loaded, name).restype = ctypes.c_bool
    return loaded


@contextlib.contextmanager
def held_elsewhere(count: int) -> Iterator[None]:
    """So many ports are held by another process."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        common.check(holder.stdout.readline().strip() == str(count), "the holder failed")
        yield
        holder.stdin.close()


def claiming(arguments: argparse.Namespace) -> str:
    port = common.free_port()
    with portmanager.reserve(start=port, end=port):
        pass  # nobody of this machine holds it
    ratios = common.compare(
        {
            "probe": common.timed(lambda count: common.check(core().probe_alone(port, count))),
            "claimed": common.timed(lambda count: common.check(core().probe_claimed(port, count))),
        },
        base="probe",
        count=arguments.count,
        rounds=arguments.rounds,
    )
    return str(ratios["claimed"])


def reserve_several(count: int) -> None:
    for _ in range(count):
        portmanager.reserve(SEVERAL).release()


def reserving(arguments: argparse.Namespace) -> str:
    def probe(count: int) -> None:
        for _ in range(count):
            common.check(core().probe_strictly(20000, SEVERAL))

    ratios = common.compare(
        {"probes": common.timed(probe), "reserve": common.timed(reserve_several)},
        base="probes",
        count=2,
        rounds=arguments.rounds,
    )
    return str(ratios["reserve"])


def measure(arguments: argparse.Namespace) -> Iterator[common.Row]:
    what = "claim, probe and release a port"
    yield (what, "the probe alone, in C", claiming(arguments), "", "at most 1.1x")
    for count in HELD:
        with held_elsewhere(count):
            figure = claiming(arguments)
        yield (f"the same, {count:,} ports held", "the probe alone, in C", figure, "", "the same")
    yield (
        f"`portmanager.reserve({SEVERAL})`, released",
        f"{SEVERAL} probes by TCP and UDP in C",
        reserving(arguments),
        "",
        "at most 1.2x",
    )


if __name__ == "__main__":
    common.main(__doc__, measure, count=(300, "claims in a row"), rounds=(200, "turns of each"))
