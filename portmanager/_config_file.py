"""The configuration file: read when a manager is made, written by its saves."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import stat
import sys
from collections import Counter

from portmanager._native import PortConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from portmanager._native import PortAllocation

logger = logging.getLogger("portmanager")


def _is_port(value: object, lowest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= 65535


def _is_range(value: object) -> bool:
    return value is None or (
        isinstance(value, (list, tuple))
        and len(value) == 2
        and _is_port(value[0], 1)
        and _is_port(value[1], value[0])
    )


# What each field of a configuration must be, for who writes the file and for us.
_CONFIG_FIELDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "service": (lambda value: isinstance(value, str) and value != "", "a non-empty string"),
    "default_port": (lambda value: _is_port(value, 0), "an integer from 0 to 65535"),
    "range": (_is_range, "null or two integers from 1 to 65535, the lower one first"),
    "description": (lambda value: value is None or isinstance(value, str), "a string or null"),
    "required": (lambda value: isinstance(value, bool), "true or false"),
}
_OBLIGATORY = ("service", "default_port")
_ALLOCATION_FIELDS = ("service", "requested_port", "allocated_port", "status", "message")
_DOCUMENT_FIELDS = ("timestamp", "portConfigs", "allocations")
_CAMEL_CASE = {
    "default_port": "defaultPort",
    "requested_port": "requestedPort",
    "allocated_port": "allocatedPort",
}


class _Style:
    """How a file says what it says; as made, how a new file does."""

    def __init__(self) -> None:
        self.top: dict[str, object] | None = {}  # the outer object; None: the file is a list
        self.is_camel_case = False
        self.entries: dict[str, dict[str, object]] = {}  # by service, with their unknown keys

    def document(
        self, configs: Iterable[PortConfig], allocations: Iterable[PortAllocation]
    ) -> object:
        """Build what the file is to hold.

        Raises ValueError for a value that could not be loaded again.
        """
        entries = [self._entry(config) for config in configs]
        counts = Counter(entry["service"] for entry in entries)
        for service, count in counts.items():
            if count > 1:
                raise ValueError(f"service {service!r} is configured {count} times")
        if self.top is None:
            return entries

        from datetime import datetime, timezone

        return {
            **self.top,
            "timestamp": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "portConfigs": entries,
            "allocations": [self._allocation(allocation) for allocation in allocations],
        }

    def _entry(self, config: PortConfig) -> dict[str, object]:
        values: dict[str, object] = {field: getattr(config, field) for field in _CONFIG_FIELDS}
        # Managers ask for its truth only, so any value is as good as true or false.
        values["required"] = bool(values["required"])
        for field, value in values.items():
            _check(f"service {values['service']!r}", field, field, value)
        known = self.entries.get(config.service, {})
        is_camel_case = "defaultPort" in known if known else self.is_camel_case
        return {**known, **_spelled(values, is_camel_case)}

    def _allocation(self, allocation: PortAllocation) -> dict[str, object]:
        values: dict[str, object] = {
            field: getattr(allocation, field) for field in _ALLOCATION_FIELDS
        }
        for field, value in values.items():
            if not (value is None or isinstance(value, (str, int))):
                raise ValueError(
                    f"allocation of service {values['service']!r}: {field} is {_shown(value)}, "
                    "expected a string, an integer or None"
                )
        return _spelled(values, self.is_camel_case)


class ConfigFile:
    """A configuration file as it was found."""

    def __init__(self, path: str) -> None:
        self.configs: list[PortConfig] | None = None  # None: use the defaults
        self.is_broken = False
        self.style = _Style()
        self.path = path
        self.target = path

    def is_at(self, path: str | os.PathLike[str]) -> bool:
        """Whether path, however it is spelled and linked, means this file."""
        try:
            spelled = os.fsdecode(path)
            return (
                os.path.abspath(spelled) == self.path
                or os.path.realpath(spelled) == self.target
                or os.path.samefile(spelled, self.target)
            )
        except (OSError, TypeError, ValueError):
            return False

    def read(self) -> None:
        """Fill this in.

        Raises FileNotFoundError for no file, other OSErrors for one that cannot be read, and
        ValueError, RecursionError or MemoryError for one that makes no sense.
        """
        path = self.path
        self.path = os.path.abspath(path)
        self.target = os.path.realpath(path)
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("it is not a regular file")  # reading a pipe might never end
        with open(path, encoding="utf-8-sig") as stream:
            document = json.load(stream, parse_constant=_refuse_constant)
        _encoded(document)  # what could not be written again is better refused now

        style = _Style()
        unknown: dict[str, None] = {}  # a set that keeps the order
        name = "entry "
        entries = document
        if isinstance(document, dict):
            unknown.update(dict.fromkeys(key for key in document if key not in _DOCUMENT_FIELDS))
            name = "portConfigs"
            entries = document.get("portConfigs")
            style.top = document
        else:
            style.top = None
        if not isinstance(entries, list):
            raise ValueError(
                'expected a list of configurations, or an object with such a list as "portConfigs"'
            )
        configs = []
        for index, entry in enumerate(entries):
            config = _read_entry(f"{name}[{index}]", entry, unknown)
            if config.service in style.entries:
                raise ValueError(
                    f"{name}[{index}]: service is {config.service!r}, which another entry "
                    "configures already, expected a name of its own"
                )
            style.entries[config.service] = entry
            configs.append(config)

        style.is_camel_case = "defaultPort" in next(iter(style.entries.values()), {})
        self.configs = configs
        self.style = style
        if unknown:
            logger.warning(
                "[PortManager] Ignored unknown keys in %s: %s",
                self.path,
                _shortened(", ".join(map(repr, unknown))),
            )


def load(path: str | os.PathLike[str]) -> ConfigFile:
    """Read a configuration file; what is wrong with it is logged, not raised."""
    loaded = ConfigFile(os.fsdecode(path))
    try:
        loaded.read()
    except FileNotFoundError:
        return loaded
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        loaded.is_broken = True
        logger.error(
            "[PortManager] Cannot use the configuration file %s, the defaults are used: %s",
            loaded.path,
            _reason(error),
        )
        return loaded
    logger.info(
        "[PortManager] Loaded %d port configurations from %s",
        len(loaded.configs or ()),
        loaded.path,
    )
    return loaded


def save(
    path: str | os.PathLike[str],
    configs: Iterable[PortConfig],
    allocations: Iterable[PortAllocation],
    loaded: ConfigFile | None,
) -> None:
    """Write the configuration file, as it was loaded if it was; on return it is on the disk.

    Blocks for as long as the disk takes. Raises, after logging it, OSError when the file cannot
    be written and ValueError when a value has no place in it; the old file is whole then.
    """
    try:
        spelled = os.fsdecode(path)
        style = loaded.style if loaded is not None and loaded.is_at(path) else _Style()
        configs = list(configs)
        _replace(os.path.realpath(spelled), _encoded(style.document(configs, allocations)))
    except Exception as error:
        logger.error("[PortManager] Cannot save the configuration to %s: %s", path, _reason(error))
        raise
    if loaded is not None and style is loaded.style:
        loaded.is_broken = False
    logger.info("[PortManager] Saved %d port configurations to %s", len(configs), spelled)


def save_at_cleanup(
    path: str | os.PathLike[str],
    configs: Iterable[PortConfig],
    allocations: Iterable[PortAllocation],
    loaded: ConfigFile | None,
) -> None:
    """Do as save, but log errors only, and keep a file that could not be used when loaded."""
    if loaded is not None and loaded.is_broken and loaded.is_at(path):
        logger.warning(
            "[PortManager] Configuration not saved: %s could not be used when it was loaded "
            "and is left as it is",
            path,
        )
        return
    with contextlib.suppress(Exception):  # save has logged it
        save(path, configs, allocations, loaded)


def _read_entry(where: str, entry: object, unknown: dict[str, None]) -> PortConfig:
    """Make the configuration of one entry, and note its unknown keys."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {_shown(entry)}, expected an object")
    service = entry.get("service")
    if isinstance(service, str):
        where = f"{where} (service {service!r})"
    left = dict(entry)
    values: dict[str, Any] = {}
    for field, (_, expected) in _CONFIG_FIELDS.items():
        camel_case = _CAMEL_CASE.get(field, field)
        if camel_case != field and camel_case in left and field in left:
            raise ValueError(f"{where} has both {field} and {camel_case}, expected one of them")
        key = camel_case if camel_case in left else field
        if key in left:
            values[field] = left.pop(key)
            _check(where, field, key, values[field])
        elif field in _OBLIGATORY:
            raise ValueError(f"{where}: {field} is missing, expected {expected}")
    unknown.update(dict.fromkeys(left))
    if values.get("range") is not None:
        values["range"] = tuple(values["range"])
    return PortConfig(**values)


def _check(where: str, field: str, spelled: str, value: object) -> None:
    is_good, expected = _CONFIG_FIELDS[field]
    if not is_good(value):
        raise ValueError(f"{where}: {spelled} is {_shown(value)}, expected {expected}")


def _spelled(values: dict[str, object], is_camel_case: bool) -> dict[str, object]:
    if not is_camel_case:
        return values
    return {_CAMEL_CASE.get(field, field): value for field, value in values.items()}


def _encoded(document: object) -> bytes:
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # UTF-8 has no lone surrogates, JSON has, and backslashreplace happens to spell them its way.
    return text.encode("utf-8", "backslashreplace")


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number that JSON knows")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"it is not JSON: {error}"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8: {error}"
    return str(error) or type(error).__name__


def _shown(value: object) -> str:
    return _shortened(repr(value))


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else text[:197] + "..."


def _replace(target: str, data: bytes) -> None:
    """Put data in target's place, whole or not at all, and wait until the disk has it.

    Raises OSError, and leaves nothing behind then.
    """
    existing = _existing(target)
    folder = os.path.dirname(target)
    _make_folder(folder)
    temporary = os.path.join(folder, f".portmanager-{os.urandom(8).hex()}.tmp")
    # A file that takes over another's mode must not be readable by more before it has it.
    mode = 0o666 if existing is None else 0o600
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        error.filename = folder  # which is what can be mended; the temporary says nothing
        raise
    try:
        with open(descriptor, "wb") as stream:
            if existing is not None:
                _take_over_permissions(temporary, target, existing)
            stream.write(data)
            stream.flush()
            _flush(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _flush_folder(folder)


def _existing(target: str) -> os.stat_result | None:
    """Get the status of the file to be replaced. Raises OSError if it must not be."""
    try:
        existing = os.stat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(existing.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if not stat.S_ISREG(existing.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", target)  # such as /dev/null
    os.close(os.open(target, os.O_WRONLY))  # who may not write the file shall not replace it
    return existing


def _take_over_permissions(temporary: str, target: str, existing: os.stat_result) -> None:
    """Give temporary the owner of target, as far as we may, its mode and its access list."""
    from shutil import copystat

    if sys.platform != "win32":
        for user in (existing.st_uid, -1):  # the group alone can be given by its members
            with contextlib.suppress(OSError):
                os.chown(temporary, user, existing.st_gid)
                break
    with contextlib.suppress(PermissionError):  # file systems without modes of their own
        copystat(target, temporary)


def _make_folder(folder: str) -> None:
    parent = os.path.dirname(folder)
    if os.path.isdir(folder) or parent == folder:
        return
    _make_folder(parent)
    with contextlib.suppress(FileExistsError):  # another process was quicker
        os.mkdir(folder)
    _flush_folder(parent)


def _flush(descriptor: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):  # not every file system has it
            # fsync there does not wait for the drive.
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def _flush_folder(folder: str) -> None:
    """Wait until the names in a folder are on the disk, where that can be asked for."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # it may be written, but not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems without it
            raise
    finally:
        os.close(descriptor)
