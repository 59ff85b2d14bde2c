"""Allocating and releasing one service's port, over the system calls of the probe in it."""

import argparse
import asyncio
from collections.abc import Iterator
from typing import Any

import common

import portmanager


def allocating(package: Any, port: int) -> common.Timer:
    manager = package.PortManager()
    manager.port_configs = {"web": package.PortConfig("web", port)}

    async def loop(count: int) -> None:
        for _ in range(count):
            await manager.allocate_port("web")
            manager.release_port("web")

    async def is_fine() -> bool:
        is_fine = bool((await manager.allocate_port("web")).allocated_port == port)
        manager.release_port("web")
        return is_fine

    common.check(asyncio.run(is_fine()))
    return common.timed_task(loop)


def measure(arguments: argparse.Namespace) -> Iterator[common.Row]:
    port = common.free_port()
    bare = common.syscalls().probe_everywhere
    ratios = common.compare(
        {
            "system calls": common.timed(lambda count: common.check(bare(port, count))),
            "portmanager": allocating(portmanager, port),
            "twin": allocating(common.twin(), port),
        },
        base="system calls",
        count=arguments.count,
        rounds=arguments.rounds,
    )
    yield (
        "`await allocate_port`, `release_port`",
        "the system calls of one probe in C",
        str(ratios["portmanager"]),
        str(ratios["twin"]),
        "",
    )


if __name__ == "__main__":
    common.main(
        __doc__, measure, count=(500, "allocations in a row"), rounds=(300, "turns of each")
    )
