"""Ports without a manager: ``reserve()`` and ``reserved_ports()``.

The search and the holding are the extension's; here is what can be said in Python. Imported when
somebody asks for one of its names.
"""

import errno
import gc
import operator
import os
import sys
import warnings
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Generic, Literal, NoReturn, TypeVar, overload

from portmanager import _native
from portmanager._native import PortReservation

_FIRST_PORT = 1024  # where no start is given
_MAX_PORT = 65535
_NAMED = 8  # in a message
_INFO, _WARNING = 20, 30

T_co = TypeVar("T_co", int, tuple[int, ...], covariant=True)


class PortsExhausted(OSError):
    """There are not as many ports as were asked for; none of them is held.

    ``requested``: how many were asked for. ``available``: how many there were, in a row where
    consecutive ones were asked for. ``holders``: who holds the rest, as far as it is reserved.
    """

    requested: int
    available: int
    holders: list[PortReservation]


class Reservation(Generic[T_co]):
    """Ports that are held until ``release()``, the end of a ``with``, or that of the process.

    As a context manager it gives what was asked for: a port, or a tuple of them. Held ports are
    given back too when the object is garbage-collected, with a ResourceWarning.
    """

    ports: tuple[int, ...]

    def __init__(self, held: _native._Held, *, single: bool) -> None:
        """Take over what the extension holds. Made by reserve() alone."""
        self.ports = held.ports
        self._held: _native._Held | None = held
        self._single = single
        self._pid = os.getpid()

    @property
    def port(self) -> int:
        """The port; of several, the first."""
        return self.ports[0]

    def release(self) -> None:
        """Give the ports back; a second call does nothing.

        In a forked child only the copy forgets them: they stay the parent's.
        """
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def __enter__(self) -> T_co:
        """Give the port, or the tuple of ports."""
        return self.port if self._single else self.ports  # type: ignore[return-value]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the ports back."""
        self.release()

    def __del__(
        self,
        # At exit the modules may be gone already.
        is_exit: Callable[[], bool] = sys.is_finalizing,
        getpid: Callable[[], int] = os.getpid,
        warn: Callable[..., None] = warnings.warn,
    ) -> None:
        """Give the ports back, and say that nobody did. Not at exit, which is an end too."""
        if getattr(self, "_held", None) is None:
            return
        if not is_exit() and self._pid == getpid():
            warn(f"unreleased {self!r}", ResourceWarning, source=self, stacklevel=2)
        self.release()

    def __reduce__(self) -> NoReturn:
        """Neither copied nor pickled: two would give one port back."""
        raise TypeError(f"cannot copy or pickle {self!r}")

    def __repr__(self) -> str:
        """Say which ports, and whether they are held."""
        which = f"port {self.port}" if len(self.ports) == 1 else f"ports {_spell(self.ports)}"
        return f"<Reservation of {which}{'' if self._held else ', released'}>"


@overload
def reserve(
    count: None = None,
    *,
    consecutive: Literal[False] = False,
    name: str | None = None,
    start: int | None = None,
    end: int | None = None,
) -> Reservation[int]: ...


@overload
def reserve(
    count: int,
    *,
    consecutive: bool = False,
    name: None = None,
    start: int | None = None,
    end: int | None = None,
) -> Reservation[tuple[int, ...]]: ...


def reserve(
    count: int | None = None,
    *,
    consecutive: bool = False,
    name: str | None = None,
    start: int | None = None,
    end: int | None = None,
) -> Reservation[int] | Reservation[tuple[int, ...]]:
    """Hold one port, ``count`` ports (``consecutive`` ones if need be), or a name's own port.

    Nobody else on this machine who takes part is given them until they are released. All of them
    or none: PortsExhausted, an OSError. Each can be bound without SO_REUSEADDR, by TCP and UDP,
    and those given back lately come last.

    ``name``: the port that this name has in this checkout, the same each time while it is free:
    of the nearest folder with ``.git``, else of the working folder, else of what
    PORTMANAGER_PROJECT names. A process started by one that holds it is lent it. A server's own
    connections in TIME_WAIT do not move it.

    ``start``, ``end``: only ports of that range, both included, 1..65535. Without them never a
    port below 1024 or one that needs a privilege, that browsers refuse or that the administrator
    set aside; one of the ephemeral range only when nothing else is left, with a warning in the
    log.

    Does not block, but for a few files: the ledger of reservations and /proc. TypeError and
    ValueError for bad arguments, OSError when the answer is not known.
    """
    if name is not None and (count is not None or consecutive):
        raise TypeError("reserve() takes a name, or count and consecutive, not both")
    number = 1 if count is None else _checked(count, "count")
    first, last = _range(start, end)
    key = None if name is None else _key(name)
    label = None if name is None else _encoded(name)
    held = _native._reserve(number, consecutive, key, label, first, last)
    if (not held.ports or (name is not None and _is_in_own_way(held))) and gc.collect():
        # A reservation that nobody can reach any more is not refused to others.
        held.release()
        held = _native._reserve(number, consecutive, key, label, first, last)
    if not held.ports:
        raise _exhausted(number, consecutive, held, first or 1, last or _MAX_PORT)
    if held.ephemeral:
        _native._log(
            _WARNING,
            f"Only the ephemeral range had free ports: an outgoing connection may take "
            f"{_spell(held.ports[-held.ephemeral :])} while nothing listens there",
        )
    if name is not None:
        _log_name(name, held)
    if count is None:
        return Reservation[int](held, single=True)
    return Reservation[tuple[int, ...]](held, single=False)


def reserved_ports() -> list[PortReservation]:
    """Who holds what on this machine, as far as they are this user's: by port, ascending."""
    return _holders(1, _MAX_PORT)


def _checked(value: int, what: str) -> int:
    """A number of 1..65535; a TypeError or ValueError that names it otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an int, not {value!r}") from None
    if not 1 <= number <= _MAX_PORT:
        raise ValueError(f"{what} must be in 1..{_MAX_PORT}, not {number}")
    return number


def _range(start: int | None, end: int | None) -> tuple[int, int]:
    """The ports that are asked for; (0, 0) for all that are fit."""
    if start is None and end is None:
        return 0, 0
    first = _FIRST_PORT if start is None else _checked(start, "start")
    last = _MAX_PORT if end is None else _checked(end, "end")
    if start is None and last < first:
        raise ValueError(f"an end below {first} needs a start, but end is {last}")
    if first > last:
        raise ValueError(f"start must not be above end, but {first} is above {last}")
    return first, last


def _key(name: str) -> bytes:
    """What tells a name of this checkout from all others on the machine."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {name!r}")
    if not name or "\0" in name:
        raise ValueError(f"name must be some text without NUL, not {name!r}")
    return b"\0".join((b"name", os.fsencode(_project()), _encoded(name)))


def _encoded(name: str) -> bytes:
    """Its text in UTF-8, whatever it is."""
    return name.encode(errors="surrogatepass")


def _project() -> str:
    """The real path of the checkout that we are in."""
    named = os.environ.get("PORTMANAGER_PROJECT")
    here = os.path.realpath(named or ".")
    folder = here
    while not named:
        if os.path.lexists(os.path.join(folder, ".git")):
            return folder
        parent = os.path.dirname(folder)
        if parent == folder:
            break
        folder = parent
    return here


def _is_in_own_way(held: _native._Held) -> bool:
    """Does this process hold the port that a name wanted?"""
    return (
        not held.borrowed
        and held.wanted != held.ports[0]
        and any(holder.pid == os.getpid() for holder in _holders(held.wanted, held.wanted))
    )


def _log_name(name: str, held: _native._Held) -> None:
    given = held.ports[0]
    if held.borrowed:
        text = f"{name!r} has port {given}, as in the process that started this one"
    elif given == held.wanted:
        text = f"{name!r} has port {given}"
    else:
        holders = _holders(held.wanted, held.wanted)
        why = f"pid {holders[0].pid} holds" if holders else "is in use"
        text = f"{name!r} wanted port {held.wanted}, which {why}, and has port {given}"
    _native._log(_INFO, text)


def _spell(ports: tuple[int, ...]) -> str:
    """``5000-5009``, or the numbers themselves."""
    first, last = ports[0], ports[-1]
    if len(ports) > 2 and ports == tuple(range(first, last + 1)):
        return f"{first}-{last}"
    return _list([*map(str, ports)])


def _list(texts: list[str]) -> str:
    """Some of them, and how many more there are."""
    more = [f"{len(texts) - _NAMED} more"] if len(texts) > _NAMED else []
    return ", ".join(texts[:_NAMED] + more)


def _holders(first: int, last: int) -> list[PortReservation]:
    return [
        PortReservation(port, label, pid, datetime.fromtimestamp(since))
        for port, label, pid, since in _native._reserved_ports(first, last)
    ]


def _exhausted(
    count: int, consecutive: bool, held: _native._Held, first: int, last: int
) -> PortsExhausted:
    """The error that says how many there were, and who holds the rest."""
    holders = _holders(first, last)
    named = [
        f"{holder.port} by pid {holder.pid}" + (f" ({holder.service})" if holder.service else "")
        for holder in holders
    ]
    error = PortsExhausted(
        errno.EADDRINUSE,
        f"{count}{' consecutive' if consecutive else ''} "
        f"port{'s were' if count > 1 else ' was'} asked for in {first}-{last}, but "
        f"{f'only {held.found}' if held.found else 'none'} could be had; "
        + (f"reserved: {_list(named)}; the others" if named else "they")
        + f" are in use, {'need a privilege, ' * held.forbidden}"
        "or are not to be handed out: release some, or widen the range",
    )
    error.requested = count
    error.available = held.found
    error.holders = holders
    return error
