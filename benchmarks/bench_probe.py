"""`await is_port_available` of a free port, over the system calls that it makes."""

import argparse
from collections.abc import Iterator
from typing import Any

import common

import portmanager


def probing(manager: Any, port: int) -> common.Timer:
    async def loop(count: int) -> None:
        for _ in range(count):
            await manager.is_port_available(port)

    return common.timed_task(loop)


def measure(arguments: argparse.Namespace) -> Iterator[common.Row]:
    port = common.free_port()
    bare = common.syscalls().probe_loopback
    ratios = common.compare(
        {
            "system calls": common.timed(lambda count: common.check(bare(port, count))),
            "portmanager": probing(portmanager.PortManager(), port),
            "twin": probing(common.twin().PortManager(), port),
        },
        base="system calls",
        count=arguments.count,
        rounds=arguments.rounds,
    )
    yield (
        "`await is_port_available`",
        "its system calls in C",
        str(ratios["portmanager"]),
        str(ratios["twin"]),
        "at most 1.1x",
    )


if __name__ == "__main__":
    common.main(__doc__, measure, count=(500, "probes in a row"), rounds=(300, "turns of each"))
