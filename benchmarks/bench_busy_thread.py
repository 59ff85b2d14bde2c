"""20,000 probes beside a thread that computes, over the same 20,000 without it.

Two threads that share one interpreter fairly take twice as long. Whoever gives the GIL up within
a probe queues for it again, for as long as the other thread's turn lasts: the switch interval.

Measured in processor time of the process, which neighbours disturb least: it is the elapsed time
of an idle machine, but for the moments when both threads run at once, which only a thread that
gives the GIL up has: they count twice and add less than 1x.
"""

import argparse
import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import common

import portmanager


async def probe(manager: Any, port: int, count: int) -> int:
    """Probe so many times; the nanoseconds of processor time that the process takes meanwhile."""
    start = time.process_time_ns()
    for _ in range(count):
        await manager.is_port_available(port)
    return time.process_time_ns() - start


@contextmanager
def computing_thread() -> Iterator[None]:
    stop = False

    def compute() -> None:
        number = 0
        while not stop:
            number += 1

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        stop = True
        thread.join()


@contextmanager
def switch_interval(seconds: float) -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def slowdowns(manager: Any, port: int, seconds: float, count: int, rounds: int) -> list[float]:
    """Measure without and beside the thread, in turns."""
    figures = []
    for _ in range(rounds):
        idle = asyncio.run(probe(manager, port, count))
        with switch_interval(seconds), computing_thread():
            figures.append(asyncio.run(probe(manager, port, count)) / idle)
    return figures


def measure(arguments: argparse.Namespace) -> Iterator[common.Row]:
    port = common.free_port()
    count, rounds = arguments.count, arguments.rounds
    # Few switches happen in one turn of ours, it might even have the GIL all the time: so many
    # turns in a row make one figure.
    many = arguments.repeats * count
    ours, twins = portmanager.PortManager(), common.twin().PortManager()
    default = sys.getswitchinterval()
    for seconds, text, target in ((0.2, "", "at most 2x"), (default, ", the default", "")):
        our_figures = slowdowns(ours, port, seconds, many, rounds)
        twin_figures = slowdowns(twins, port, seconds, count, rounds)
        yield (
            f"{count:,} probes beside a computing thread, switch interval {seconds:g} s{text}",
            "without the thread",
            str(common.Ratios(f"portmanager, {seconds:g} s", our_figures)),
            str(common.Ratios(f"twin, {seconds:g} s", twin_figures)),
            target,
        )


if __name__ == "__main__":
    common.main(
        __doc__,
        measure,
        count=(20000, "probes in a row"),
        repeats=(10, "how many times as many of portmanager's, for enough switches"),
        rounds=(5, "turns of each"),
    )
