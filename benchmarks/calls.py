"""Two builds of the package in one process, call by call, taking turns.

Prints, as JSON, how long each call of the first takes in calls of the second, one figure for each
turn. `pip install --target FOLDER` makes such folders, of two commits for example.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import common

# How many calls make a turn of about a millisecond.
COUNTS = {
    "await is_port_available": 200,
    "await allocate_port, release_port": 120,
    "await of what finishes at once": 4000,
    "get_port": 4000,
    "PortAllocation(...)": 1500,
}


def load(folder: str) -> Any:
    """Import the package from a folder, whatever other build of it is loaded already."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "portmanager"]:
        del sys.modules[name]
    sys.path.insert(0, folder)
    package = importlib.import_module("portmanager")
    sys.path.remove(folder)
    is_there = Path(str(package.__file__)).is_relative_to(folder)
    common.check(is_there, f"no portmanager in {folder}")
    return package


def timers(package: Any, port: int) -> dict[str, common.Timer]:
    """Each call that is compared."""
    manager, idle = package.PortManager(), package.PortManager()
    manager.port_configs = {"web": package.PortConfig("web", port)}
    idle.port_configs = {"web": package.PortConfig("web", 0)}

    async def probes(count: int) -> None:
        for _ in range(count):
            await idle.is_port_available(port)

    async def allocations(count: int) -> None:
        for _ in range(count):
            await manager.allocate_port("web")
            manager.release_port("web")

    async def awaits(count: int) -> None:
        for _ in range(count):
            await idle.find_available_port(2, 1)

    async def lookups(count: int) -> None:
        await idle.allocate_port("web")
        for _ in range(count):
            idle.get_port("web")

    async def constructions(count: int) -> None:
        make = package.PortAllocation
        for _ in range(count):
            make("web", port, port, "allocated", "Allocated default port")

    loops = (probes, allocations, awaits, lookups, constructions)
    return {name: common.timed_task(loop) for name, loop in zip(COUNTS, loops, strict=True)}


def compare(first_folder: str, second_folder: str, rounds: int) -> dict[str, list[float]]:
    """Get each call's ratios of the first build over the second, one for each turn."""
    port = common.free_port()
    first, second = (timers(load(folder), port) for folder in (first_folder, second_folder))
    ratios = {}
    for name, count in COUNTS.items():
        pair = {"first": first[name], "second": second[name]}
        times = common.side_by_side(pair, count, rounds)
        ratios[name] = [a / b for a, b in zip(times["first"], times["second"], strict=True)]
    return ratios


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", help="a folder that portmanager is installed in")
    parser.add_argument("second", help="another one")
    parser.add_argument("--rounds", type=int, default=60, help="turns of each (60)")
    arguments = parser.parse_args()
    print(json.dumps(compare(arguments.first, arguments.second, arguments.rounds)))
