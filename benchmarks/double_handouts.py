"""How often do two living processes get one port? portmanager and its rivals in the same storm.

A storm is processes with several threads each that take, hold and give back ports while they are
killed, stopped and restarted; tests/torture.py is the harness, with an oracle that knows nothing of
how ports are handed out. Ours also forks. Rivals that take a range get the same small one as ours;
the others choose among all ports. Prints a table in markdown; what else is seen goes to the
standard error. The exit code is 1 if ours hands one port out twice, or one that cannot be bound, or
loses one.

The rivals are not needed otherwise. What is not installed is reported as not run:

    pip install portpicker port-for portend ephemeral-port-reserve port-allocator
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import common

sys.path.insert(0, str(common.ROOT / "tests"))

import torture
from torture import Adapter, Allocator, Handout, Options, Report
from torture_ours import Ours

HEADER = ("Handed out by", "ports", "per second", "handed out twice", "share", "failed binds")

SHOWN = 20  # findings of a storm

# Takes a port under a name, and gives it back.
Take = Callable[[str], int]
GiveBack = Callable[[int, str], object]


# ---- the rivals -----------------------------------------------------------------------------


class RivalAllocator(Allocator):
    """Two functions of a rival's; an error of one of the given kinds is a port that was not got."""

    def __init__(
        self,
        rng: Random,
        take: Take,
        give_back: GiveBack = lambda port, name: None,
        errors: tuple[type[Exception], ...] = (OSError,),
    ) -> None:
        super().__init__(rng)
        self.take = take
        self.give_back = give_back
        self.errors = errors

    def acquire(self, name: str) -> list[Handout]:
        try:
            return [Handout(self.take(name), name)]
        except self.errors:
            return []

    def release(self, batch: list[Handout]) -> None:
        for port, name in batch:
            with contextlib.suppress(*self.errors):
                self.give_back(port, name)


class Rival(Adapter):
    """A rival; its module is imported once, in the supervisor."""

    library: Any = None

    @contextmanager
    def running(self, ports: range, folder: Path) -> Iterator[None]:
        if self.module is not None:
            self.library = importlib.import_module(self.module)
        yield


class Bind0(Rival):
    """What many test suites do by hand."""

    name = "bind to port 0, close"

    def allocator(self, ports: range, rng: Random) -> Allocator:
        def take(name: str) -> int:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                return int(probe.getsockname()[1])

        return RivalAllocator(rng, take)


class Portend(Rival):
    """Also a bind to port 0; the rest of the library waits for servers."""

    name = "portend"
    module = package = "portend"

    def allocator(self, ports: range, rng: Random) -> Allocator:
        return RivalAllocator(rng, lambda name: self.library.find_available_local_port())


class EphemeralPortReserve(Rival):
    """Leaves the port in TIME_WAIT, so that the kernel gives it to nobody for a minute."""

    name = "ephemeral-port-reserve"
    module, package = "ephemeral_port_reserve", "ephemeral-port-reserve"

    def allocator(self, ports: range, rng: Random) -> Allocator:
        return RivalAllocator(rng, lambda name: self.library.reserve())


class Portpicker(Rival):
    """portpicker by itself."""

    name = "portpicker"
    module = package = "portpicker"

    def allocator(self, ports: range, rng: Random) -> Allocator:
        return RivalAllocator(
            rng,
            lambda name: self.library.pick_unused_port(),
            lambda port, name: self.library.return_port(port),
            (self.library.NoFreePortFoundError,),
        )


class Portserver(Portpicker):
    """portpicker with its server, which has its 10,000 ports.

    A process that gives a port back keeps it for itself, so a small range would be used up.
    """

    name = "portpicker, portserver"

    @contextmanager
    def running(self, ports: range, folder: Path) -> Iterator[None]:
        address = f"@{folder.name}"
        server = subprocess.Popen(
            [
                sys.executable,
                str(Path(sys.executable).with_name("portserver.py")),
                f"--portserver_address={address}",
            ],
            stderr=subprocess.DEVNULL,
            # There is one thread yet.
            preexec_fn=functools.partial(torture.die_with, os.getpid()),  # noqa: PLW1509
        )
        try:
            wait_for(address, server)
            os.environ["PORTSERVER_ADDRESS"] = address
            with super().running(ports, folder):
                yield
        finally:
            os.environ.pop("PORTSERVER_ADDRESS", None)
            server.terminate()
            server.wait()


def wait_for(address: str, server: "subprocess.Popen[bytes]") -> None:
    """Wait until something listens on an abstract address."""
    while True:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.connect(address.replace("@", "\0"))
            return
        common.check(server.poll() is None, "portserver.py does not start")
        time.sleep(0.02)


class PortFor(Rival):
    """port-for's choice of a range's ports."""

    name = "port-for"
    module, package = "port_for", "port-for"

    def allocator(self, ports: range, rng: Random) -> Allocator:
        def take(name: str) -> int:
            return int(self.library.get_port((ports[0], ports[-1])))

        return RivalAllocator(rng, take, errors=(self.library.PortForException,))


class PortStore(Rival):
    """port-for's file of who has which port, any port of those that it finds good."""

    name = "port-for, PortStore"
    module, package = "port_for", "port-for"

    @contextmanager
    def running(self, ports: range, folder: Path) -> Iterator[None]:
        self.path = folder / "port-for.conf"
        with super().running(ports, folder):
            yield

    def allocator(self, ports: range, rng: Random) -> Allocator:
        errors = importlib.import_module("configparser").Error
        store = self.library.PortStore(str(self.path))
        return RivalAllocator(
            rng,
            store.bind_port,
            lambda port, name: store.unbind_port(name),
            # Some read the file while others write it.
            (self.library.exceptions.PortForException, errors, ValueError),
        )


class PortAllocator(Rival):
    """port-allocator, whose file has the process of each port."""

    name = "port-allocator"
    module, package = "port_alloc", "port-allocator"

    @contextmanager
    def running(self, ports: range, folder: Path) -> Iterator[None]:
        os.environ["PORT_REGISTRY_PATH"] = str(folder / "ports.json")
        try:
            with super().running(ports, folder):
                yield
        finally:
            del os.environ["PORT_REGISTRY_PATH"]

    def allocator(self, ports: range, rng: Random) -> Allocator:
        def take(name: str) -> int:
            preferred = rng.choice((ports[0], rng.choice(ports)))  # as ours
            both = (ports[0], ports[-1])
            return int(self.library.allocate_port(name, preferred, both, pid=os.getpid()))

        def give_back(port: int, name: str) -> None:
            self.library.release_port(name)

        # RuntimeError: the range is used up.
        return RivalAllocator(rng, take, give_back, (RuntimeError, OSError))


RIVALS: tuple[type[Rival], ...] = (
    Portserver,
    Portpicker,
    Bind0,
    Portend,
    PortFor,
    PortStore,
    PortAllocator,
    EphemeralPortReserve,
)
ADAPTERS: tuple[type[Adapter], ...] = (Ours, *RIVALS)


# ---- the program ----------------------------------------------------------------------------


def row(report: Report) -> tuple[str, ...]:
    share = report.doubles / report.allocations if report.allocations else 0
    return (
        report.name,
        f"{report.allocations:,}",
        f"{report.allocations / report.seconds:,.0f}",
        f"{report.doubles:,}",
        f"{share:.2%}".replace("%", " %") if report.doubles else "0",
        f"{report.bind_failures:,} of {report.binds:,}",
    )


def tell(report: Report, full: bool) -> None:
    """Say what the table leaves out."""
    common.note(
        f"{report.name}: {report.allocations:,} ports in {report.seconds:.1f} s, "
        f"{report.misses:,} times none; {report.doubles:,} double hand-outs; "
        f"{report.starts} processes, {report.kills} kills, {report.stops} stops, "
        f"{report.forks} forks; seed {report.options.seed}"
    )
    findings = report.findings if full else report.others
    for finding in findings[:SHOWN]:
        common.note(f"  {finding['kind']}: {torture.describe(finding)}")
    if len(findings) > SHOWN:
        common.note(f"  and {len(findings) - SHOWN:,} more")


def is_fine(report: Report) -> bool:
    return not (report.doubles or report.findings)


def options_of(adapter: Adapter, arguments: argparse.Namespace) -> Options:
    options = Options.of(arguments)
    if isinstance(adapter, Ours):
        return options
    return dataclasses.replace(options, seconds=min(options.seconds, arguments.rival_seconds))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    Options.add_to(parser)
    parser.add_argument(
        "--rival-seconds", type=float, default=20.0, help="as --seconds, for each rival (20)"
    )
    names = [adapter.name for adapter in ADAPTERS]
    parser.add_argument(
        "--only", action="append", choices=names, help="run this one; may be repeated (all)"
    )
    arguments = parser.parse_args()
    options = Options.of(arguments)
    arguments.seed = options.seed  # one for all

    rows, code = [], 0
    for adapter in (cls() for cls in ADAPTERS if cls.name in (arguments.only or names)):
        is_ours = isinstance(adapter, Ours)
        if command := adapter.missing():
            rows.append((adapter.name, f"not run: `{command}`", *[""] * (len(HEADER) - 2)))
            continue
        common.note(f"--- {adapter.name}")
        report = torture.storm(adapter, options_of(adapter, arguments))
        tell(report, is_ours)
        rows.append(row(report))
        code |= is_ours and not is_fine(report)
    titles = (HEADER, ["-" * len(title) for title in HEADER])
    print(*map(common.line, (*titles, *rows)), sep="\n")
    print(f"\n{options.processes} processes of {options.threads} threads, ", end="")
    print(f"{options.range} ports. {common.machine()}.")
    sys.exit(code)


if __name__ == "__main__":
    main()
