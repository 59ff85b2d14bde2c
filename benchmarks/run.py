"""Run every benchmark and print one table in markdown, for the README.

Takes some minutes. Progress, and what the table leaves out, goes to the standard error.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import common

HERE = Path(__file__).resolve().parent
PROGRAMS = (
    "bench_probe.py",
    "bench_allocate.py",
    "bench_ledger.py",
    "bench_find.py",
    "bench_busy_thread.py",
    "bench_import.py",
)


def rows(program: str, *options: str) -> Iterator[str]:
    """Run one benchmark and get its rows of the table."""
    common.note(f"--- {program}")
    command = [sys.executable, str(HERE / program), "--rows", *options]
    yield from subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()


def all_rows(pythons: list[str]) -> Iterator[str]:
    for program in PROGRAMS:
        yield from rows(program)
    for python in pythons:
        yield from rows("bench_abi.py", "--python", python)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--abi-python",
        action="append",
        metavar="PYTHON",
        help="a Python to compare the abi3 build with its own on; may be repeated (this one)",
    )
    common.print_table(all_rows(parser.parse_args().abi_python or [sys.executable]))
