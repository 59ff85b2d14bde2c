"""portmanager in the storms of torture.py: managers, reservations, forks and garbage."""

import asyncio
import gc
import importlib
import logging
import os
import sysconfig
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from torture import MOST_HELD, Adapter, Allocator, Handout


class Token(NamedTuple):
    """What a port of ours is released by."""

    manager: int
    service: str


SHARED, RESERVED = 0, -1  # for a token's manager: the process's, none


class Ours(Adapter):
    """portmanager, its managers and its reservations."""

    name = "portmanager"
    module, package = "portmanager", "portmanager"
    everywhere = True
    # A child that is forked beside threads may inherit a lock of theirs that CPython 3.13 without
    # the GIL does not make anew (that of stop-the-world), and waits for it for ever.
    forks = not sysconfig.get_config_var("Py_GIL_DISABLED")

    @contextmanager
    def running(self, ports: range, folder: Path) -> Iterator[None]:
        # Its own network has its own file, which would be left behind.
        os.environ.setdefault("PORTMANAGER_LEDGER", str(folder / "ledger"))
        try:
            yield
        finally:
            if os.environ["PORTMANAGER_LEDGER"] == str(folder / "ledger"):
                del os.environ["PORTMANAGER_LEDGER"]

    def start(self, complain: Callable[[str], None]) -> None:
        self.complain = complain
        # In each process anew, nothing is inherited from the supervisor.
        self.portmanager: Any = importlib.import_module("portmanager")
        self.reserve: Any = getattr(self.portmanager, "reserve", None)
        # A class whose instances may refer to themselves, for the garbage collector.
        self.cyclic = type("Cyclic", (self.portmanager.PortManager,), {})
        self.shared = self.portmanager.PortManager(
            self.portmanager.PortManagerConfig(max_retries=0)
        )
        logger = logging.getLogger("portmanager")
        logger.handlers, logger.propagate = [Complaining(complain)], False
        gc.freeze()  # collections are part of it, and shall be quick

    def allocator(self, ports: range, rng: Random) -> Allocator:
        return OurAllocator(self, ports, rng)

    def never_came_back(self, ports: range) -> Iterator[str]:
        manager = self.portmanager.PortManager(
            self.portmanager.PortManagerConfig(max_retries=20, retry_delay=0.1)
        )
        for port in ports:
            manager.port_configs["last"] = self.portmanager.PortConfig("last", port)
            allocation = asyncio.run(manager.allocate_port("last"))
            if allocation.status != "allocated":
                yield str(allocation.message)
            manager.release_port("last")


class Complaining(logging.Handler):
    """What portmanager warns of is a finding, but for a range that is used up.

    It would say, for example, that ports are reserved within one process alone.
    """

    def __init__(self, complain: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.complain = complain

    def emit(self, record: logging.LogRecord) -> None:
        if "no alternatives" not in (message := record.getMessage()):
            self.complain(message)


def finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run what never waits, by hand: quicker than an event loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


class OurAllocator(Allocator):
    """Managers of the thread's own, the one that all threads share, and reservations."""

    def __init__(self, ours: Ours, ports: range, rng: Random) -> None:
        super().__init__(rng)
        self.ours = ours
        self.ports = ports
        self.managers: dict[int, Any] = {SHARED: ours.shared}
        self.last = SHARED
        self.reservations: dict[str, Any] = {}
        self.loop: asyncio.AbstractEventLoop | None = None

    def acquire(self, name: str) -> list[Handout]:
        if self.ours.reserve and self.random.random() < 0.1:
            return self.reserve(name)
        chosen = self.choose_manager()
        manager = self.managers[chosen]
        some = self.some_ports()
        default = self.random.choice((some[0], self.random.choice(some)))
        config = self.ours.portmanager.PortConfig(name, default, (some[0], some[-1]))
        manager.port_configs[name] = config
        allocation = self.run(manager, manager.allocate_port(name))
        if allocation.status != "allocated":
            assert allocation.status == "in_use", allocation
            del manager.port_configs[name]
            return []
        port = allocation.allocated_port
        assert port in some, (port, config)
        assert manager.get_port(name) == port
        return [Handout(port, Token(chosen, name))]

    def reserve(self, name: str) -> list[Handout]:
        some = self.some_ports()
        count = self.random.randint(1, MOST_HELD)
        try:
            reservation = self.ours.reserve(count, start=some[0], end=some[-1])
        except self.ours.portmanager.PortsExhausted:
            return []
        ports = list(reservation.ports)
        assert len(set(ports)) == count, ports
        assert set(ports) <= set(some), (ports, some)
        self.reservations[name] = reservation
        return [Handout(port, Token(RESERVED, name)) for port in ports]

    def some_ports(self) -> range:
        """All ports, or some of them."""
        if self.random.random() < 0.8:
            return self.ports
        first, last = sorted(self.random.sample(self.ports, 2))
        return range(first, last + 1)

    def choose_manager(self) -> int:
        """The shared one, one of the thread's own, or a new one."""
        own = [number for number in self.managers if number != SHARED]
        if self.random.random() < 0.3:
            return SHARED
        if own and (len(own) >= MOST_HELD or self.random.random() < 0.7):
            return self.random.choice(own)
        portmanager = self.ours.portmanager
        is_patient, is_cyclic = (self.random.random() < 0.1 for _ in range(2))
        options = portmanager.PortManagerConfig(None, True, 2 if is_patient else 0, 0.001)
        self.last += 1
        manager = (self.ours.cyclic if is_cyclic else portmanager.PortManager)(options)
        if is_cyclic:
            manager.itself = manager
        manager.port_configs = {}
        self.managers[self.last] = manager
        return self.last

    def run(self, manager: Any, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if not manager.config.max_retries:
            return finish(coroutine)
        self.loop = self.loop or asyncio.new_event_loop()
        return self.loop.run_until_complete(coroutine)

    def pick(self, held: list[Handout]) -> list[Handout]:
        """One; or all of a manager, which then is not needed any more; or all of a reservation."""
        token = self.random.choice(held).token
        has_only_one_end = token.manager == RESERVED
        if has_only_one_end or (token.manager != SHARED and self.random.random() < 0.5):
            key = token if has_only_one_end else token[:1]
            return [handout for handout in held if handout.token[: len(key)] == key]
        return [handout for handout in held if handout.token == token]

    def release(self, batch: list[Handout]) -> None:
        number, service = batch[0].token
        if number == RESERVED:
            self.reservations.pop(service).release()
            return
        manager = self.managers[number]
        if number == SHARED or len(batch) < len(manager.get_allocated_ports()):
            manager.release_port(service)
            del manager.port_configs[service]
            return
        del self.managers[number]
        end = self.random.randrange(4)
        if end == 0:
            manager.release_all_ports()
        elif end == 1:
            finish(manager.cleanup())
        is_garbage = isinstance(manager, self.ours.cyclic)
        del manager  # with its ports, if it still has any
        if is_garbage and end == 2:
            gc.collect()

    def look_around(self, held: list[Handout]) -> None:
        manager = self.ours.shared
        finish(manager.is_port_available(self.random.choice(self.ports)))
        found = finish(manager.find_available_port(self.ports[0], self.ports[-1]))
        assert found is None or found in self.ports, found
        # Others may take and give back whatever it is; what this thread holds, it holds.
        assert found not in {handout.port for handout in held}, found

    # In a forked child. Other threads of the parent are not there, their ports are theirs too.

    def heir(self) -> Allocator:
        ours = Ours()
        ours.start(self.ours.complain)
        if self.random.random() < 0.5:
            ours.shared = self.ours.shared
        return OurAllocator(ours, self.ports, self.random)

    def check_inherited(self, held: list[Handout]) -> None:
        for port, (number, service) in held:
            if number == RESERVED:
                assert port in self.reservations[service].ports
            else:
                assert self.managers[number].get_port(service) == port, (port, service)

    def misuse_inherited(self, held: list[Handout]) -> None:
        for _, (number, service) in held:
            if number == RESERVED:
                self.reservations[service].release()
            else:
                self.managers[number].release_port(service)
        for number in [number for number in self.managers if number != SHARED]:
            self.managers.pop(number).release_all_ports()
