"""`await find_available_port` past 1,000 busy ports, over as many failing binds in C."""

import argparse
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import common

import portmanager

PORTS = 1000


def listen_on_each(stack: ExitStack) -> int:
    """Listen on a range of consecutive loopback ports until the stack closes; its first port."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    first = port = 10000
    sockets: list[socket.socket] = []
    while len(sockets) < PORTS:
        common.check(port < 65536)
        try:
            sockets.append(socket.create_server(("127.0.0.1", port), backlog=1))
        except OSError:  # somebody's: another range, behind it
            for listener in sockets:
                listener.close()
            sockets.clear()
            first = port + 1
        port += 1
    for listener in sockets:
        stack.enter_context(listener)
    return first


def searching(manager: Any, first: int, last: int) -> common.Timer:
    async def loop(count: int) -> None:
        for _ in range(count):
            common.check(await manager.find_available_port(first, last) is None)

    return common.timed_task(loop)


def measure(arguments: argparse.Namespace) -> Iterator[common.Row]:
    with ExitStack() as stack:
        first = listen_on_each(stack)
        last = first + PORTS - 1
        bare = common.syscalls().walk_busy
        ratios = common.compare(
            {
                "system calls": common.timed(lambda count: common.check(bare(first, last, count))),
                "portmanager": searching(portmanager.PortManager(), first, last),
                "twin": searching(common.twin().PortManager(), first, last),
            },
            base="system calls",
            count=arguments.count,
            rounds=arguments.rounds,
        )
    yield (
        f"`await find_available_port` over {PORTS:,} busy ports",
        "as many failing binds of one socket in C",
        str(ratios["portmanager"]),
        str(ratios["twin"]),
        "at most 1.2x",
    )


if __name__ == "__main__":
    common.main(__doc__, measure, count=(3, "searches in a row"), rounds=(100, "turns of each"))
