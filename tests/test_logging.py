"""What is logged, at which level, and that logging neither costs nor breaks anything."""

import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from comparing import error_of, finish

import portmanager
from portmanager import PortAllocation, PortConfig, PortManager, PortManagerConfig

FOREVER = 60.0  # seconds: longer than anything here takes, to fail instead of hanging
LOGGER = logging.getLogger("portmanager")

# Of the ports that browsers refuse, those that need no privilege.
BAD_PORTS = (6665, 6666, 6667, 6668, 6669, 6697, 10080, 5060, 5061, 6566, 4190, 3659, 6679)


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "portmanager")


@pytest.fixture
def manager(native: SimpleNamespace) -> Iterator[PortManager]:
    manager: PortManager = native.PortManager(PortManagerConfig(max_retries=0))
    manager.port_configs.clear()
    yield manager
    manager.release_all_ports()


@pytest.fixture
def allocate(manager: PortManager) -> Callable[..., PortAllocation]:
    def allocate(
        port: int, range: tuple[int, int] | None = None, service: str = "api"
    ) -> PortAllocation:
        manager.port_configs[service] = PortConfig(service, port, range)
        allocation: PortAllocation = finish(manager.allocate_port(service))
        return allocation

    return allocate


@contextmanager
def handling(handler: logging.Handler) -> Iterator[None]:
    LOGGER.addHandler(handler)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)


class Calling(logging.Handler):
    """A handler that calls a function with each record."""

    def __init__(self, function: Callable[[logging.LogRecord], object]) -> None:
        super().__init__()
        self.emit = function  # type: ignore[assignment]


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Level and text of what was logged since the last call."""
    for record in caplog.records:
        assert record.name == "portmanager"
        assert record.getMessage().startswith("[PortManager] ")
    told = [
        (record.levelname, record.getMessage().removeprefix("[PortManager] "))
        for record in caplog.records
    ]
    caplog.clear()
    return told


def run(code: str, *options: str) -> Any:
    """Run code in a Python that takes warnings for errors, and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *options, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=FOREVER,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


# Levels


def test_allocate_and_release(
    manager: PortManager, allocate: Any, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    allocate(free_port)
    ((level, text),) = told(caplog)
    assert (level, text) == ("INFO", f"Service api: Allocated default port {free_port}")
    allocate(free_port)
    assert told(caplog) == []  # nothing happened
    manager.release_port("api")
    ((level, text),) = told(caplog)
    assert level == "INFO"
    assert str(free_port) in text
    assert "api" in text
    manager.release_port("api")
    manager.release_all_ports()
    assert told(caplog) == []


def test_an_alternative(
    allocate: Any,
    busy_port: int,
    port_block: Callable[[int], int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = port_block(1)
    allocation = allocate(busy_port, (other, other))
    assert allocation.allocated_port == other
    (record,) = told(caplog)
    assert record == (
        "INFO",
        f"Service api: Default port {busy_port} was in use. Allocated alternative port {other}",
    )


def test_release_all_and_cleanup(
    manager: PortManager,
    allocate: Any,
    port_block: Callable[[int], int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = port_block(2)
    for _ in range(2):
        allocate(first, service="one")
        allocate(first + 1, service="two")
        caplog.clear()
        manager.release_all_ports()
        records = told(caplog)
        assert [level for level, _ in records] == ["INFO", "INFO"]
        for (_, text), name, port in zip(records, ("one", "two"), (first, first + 1), strict=True):
            assert name in text
            assert str(port) in text
    finish(manager.cleanup())
    ((level, text),) = told(caplog)
    assert level == "INFO"
    assert "leaned up" in text


def test_what_a_caller_took_out_is_given_back(
    manager: PortManager, allocate: Any, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    allocate(free_port)
    caplog.clear()
    manager.allocated_ports.clear()
    assert manager.get_port("api") is None
    ((level, text),) = told(caplog)
    assert level == "INFO"
    assert str(free_port) in text


def test_load_and_save(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ports.json"
    path.write_text('[{"service": "web", "default_port": 5176}]')
    manager = PortManager(PortManagerConfig(port_config_path=str(path)))
    (loaded,) = told(caplog)
    finish(manager.save_configuration())
    (saved,) = told(caplog)
    finish(manager.cleanup())
    at_cleanup = told(caplog)
    for level, text in (loaded, saved, at_cleanup[0]):
        assert level == "INFO"
        assert str(path) in text
    assert [level for level, _ in at_cleanup] == ["INFO", "INFO"]


@pytest.mark.parametrize("what", ["unknown service", "busy port", "bad configuration"])
def test_an_allocation_that_fails_is_an_error(
    manager: PortManager,
    allocate: Any,
    busy_port: int,
    what: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if what == "unknown service":
        allocation = finish(manager.allocate_port("api"))
    else:
        allocation = allocate(busy_port if what == "busy port" else -7)
    assert allocation.status != "allocated"
    assert told(caplog) == [("ERROR", f"Service api: {allocation.message}")]


def test_files_that_fail_are_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ports.json"
    path.write_text("{")
    manager = PortManager(PortManagerConfig(port_config_path=str(path)))
    ((level, text),) = told(caplog)
    assert level == "ERROR"
    assert str(path) in text
    assert error_of(finish, manager.save_configuration(str(tmp_path))).startswith("IsADirectory")
    ((level, text),) = told(caplog)
    assert level == "ERROR"
    assert str(tmp_path) in text


def test_a_port_that_browsers_refuse(allocate: Any, caplog: pytest.LogCaptureFixture) -> None:
    for port in BAD_PORTS:
        caplog.clear()
        if allocate(port, service=f"s{port}").status == "allocated":
            info, warning = told(caplog)
            assert info == ("INFO", f"Service s{port}: Allocated default port {port}")
            assert warning[0] == "WARNING"
            assert str(port) in warning[1]
            return
    pytest.skip("all of these ports are taken on this machine")


def test_why_a_port_is_not_available(
    manager: PortManager, free_port: int, busy_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert finish(manager.is_port_available(free_port)) is True
    assert told(caplog) == []
    reasons = []
    for port, host in (
        (busy_port, None),
        (busy_port, "127.0.0.1"),
        (free_port, "192.0.2.1"),
        (free_port, "nowhere.invalid"),
    ):
        available = manager.is_port_available(port, *([host] if host else []))
        assert finish(available) is False
        ((level, text),) = told(caplog)
        assert level == "DEBUG"
        assert str(port) in text
        assert (host or "") in text
        reasons.append(text.rpartition(": ")[2])
    assert reasons[0] == reasons[1]
    assert len(set(reasons)) == 3


def test_looking_is_not_worth_a_word(
    manager: PortManager, allocate: Any, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    allocate(free_port)
    caplog.clear()
    finish(manager.wait_for_port(free_port, timeout=0))
    finish(manager.get_port_status())
    finish(manager.find_available_port(free_port))
    manager.get_allocated_ports()
    manager.get_environment_variables()
    assert told(caplog) == []


# Records


def test_the_caller_is_the_one_who_called(
    allocate: Any, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    allocate(free_port)
    (record,) = caplog.records
    assert record.module == "comparing"  # whose `finish` runs the coroutine
    assert record.exc_info is None


@pytest.mark.parametrize("name", ["100%", "%s %d %(x)s", "{}", "Büro\u2028", "", "a\0b"])
def test_any_name_can_be_logged(
    manager: PortManager,
    allocate: Any,
    free_port: int,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with unraisable() as unraised:
        allocate(free_port, service=name)
        manager.release_port(name)
        finish(manager.allocate_port(name + "?"))
    assert unraised == []
    texts = [text for _, text in told(caplog)]
    assert len(texts) == 3
    assert all(name in text for text in texts)


def test_an_error_of_str_is_no_error_of_the_call(manager: PortManager, free_port: int) -> None:
    class Name(str):
        def __str__(self) -> str:
            raise ZeroDivisionError

    name = Name("api")
    manager.port_configs[name] = PortConfig(name, free_port)
    with unraisable() as unraised:
        allocation = finish(manager.allocate_port(name))
        assert allocation.allocated_port == free_port
        manager.release_port(name)
    assert unraised == [ZeroDivisionError, ZeroDivisionError]
    assert manager.get_allocated_ports() == {}


# Disabled


@contextmanager
def at_level(level: int) -> Iterator[None]:
    before = LOGGER.level
    LOGGER.setLevel(level)
    try:
        yield
    finally:
        LOGGER.setLevel(before)


class Counted(str):
    """Text that counts how often it is formatted."""

    formatted = 0

    def __str__(self) -> str:
        Counted.formatted += 1
        return super().__str__()

    __repr__ = __str__


def use_everything(manager: PortManager, port: int, busy_port: int) -> None:
    service, host = Counted("api"), Counted("127.0.0.1")
    Counted.formatted = 0
    manager.port_configs[service] = PortConfig(service, port)
    finish(manager.allocate_port(service))
    manager.release_port(service)
    finish(manager.is_port_available(busy_port, host))


def test_what_is_not_logged_is_not_formatted(
    manager: PortManager, free_port: int, busy_port: int
) -> None:
    with at_level(logging.WARNING):
        use_everything(manager, free_port, busy_port)
    assert Counted.formatted == 0
    use_everything(manager, free_port, busy_port)
    assert Counted.formatted == 3


@pytest.mark.parametrize("how", ["logging.disable", "logger.disabled", "parent"])
def test_every_way_to_disable_counts(
    manager: PortManager, free_port: int, busy_port: int, how: str
) -> None:
    root = logging.getLogger()
    levels = root.level, LOGGER.level
    try:
        if how == "logging.disable":
            logging.disable(logging.CRITICAL)
        elif how == "logger.disabled":
            LOGGER.disabled = True
        else:
            LOGGER.setLevel(logging.NOTSET)
            root.setLevel(logging.ERROR)
        use_everything(manager, free_port, busy_port)
    finally:
        logging.disable(logging.NOTSET)
        LOGGER.disabled = False
        root.setLevel(levels[0])
        LOGGER.setLevel(levels[1])
    assert Counted.formatted == 0


def test_the_level_of_the_moment_counts(
    manager: PortManager, allocate: Any, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    for level, expected in ((logging.WARNING, 0), (logging.INFO, 1), (logging.ERROR, 0)):
        with at_level(level):
            allocate(free_port)
        assert len(told(caplog)) == expected
        manager.release_port("api")
        caplog.clear()


PRELUDE = """
import json, sys
import portmanager

def finish(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value

manager = portmanager.PortManager()
manager.port_configs["api"] = portmanager.PortConfig("api", 0)
"""


def test_logging_is_not_imported_for_what_nobody_hears() -> None:
    code = """
    port = finish(manager.allocate_port("api")).allocated_port
    manager.release_port("api")
    finish(manager.is_port_available(port, "192.0.2.1"))
    finish(manager.is_port_available(port, "nowhere.invalid"))
    finish(manager.cleanup())
    print(json.dumps("logging" in sys.modules))
    """
    assert run(PRELUDE + textwrap.dedent(code)) is False


def test_logging_that_is_imported_later_is_heard() -> None:
    code = """
    finish(manager.allocate_port("api"))
    import logging
    heard = []
    class Handler(logging.Handler):
        def emit(self, record):
            heard.append(record.levelname)
    logging.basicConfig(level=logging.INFO, handlers=[Handler()])
    manager.release_port("api")
    print(json.dumps(heard))
    """
    assert run(PRELUDE + textwrap.dedent(code)) == ["INFO"]


def test_errors_are_heard_although_nobody_has_imported_logging() -> None:
    code = textwrap.dedent(PRELUDE) + "\nfinish(manager.allocate_port('unknown'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=FOREVER
    )
    # As Python prints warnings and errors that no handler takes.
    text = "[PortManager] Service unknown: No port configuration found for service: unknown\n"
    assert (done.returncode, done.stderr) == (0, text)


def test_while_another_thread_is_importing_logging() -> None:
    # Isolated and without site, so that nothing has imported logging before.
    code = f"""
    import sys
    sys.path.insert(0, {str(Path(portmanager.__file__).parents[1])!r})
    import portmanager

    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "string":  # which logging imports
                sys.meta_path.remove(self)
                try:
                    manager.allocate_port("api").send(None)
                except StopIteration as stop:
                    print([stop.value.allocated_port])

    manager = portmanager.PortManager()
    manager.port_configs["api"] = portmanager.PortConfig("api", 0)
    assert not {{"logging", "string"}} & set(sys.modules)
    sys.meta_path.insert(0, Finder())
    import logging
    """
    (port,) = run(code, "-I", "-S")
    assert port > 0


# Handlers and filters


@contextmanager
def unraisable() -> Iterator[list[Any]]:
    """The types of the exceptions that sys.unraisablehook was told."""
    told: list[Any] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda info: told.append(info.exc_type)
    try:
        yield told
    finally:
        sys.unraisablehook = before


def test_a_handler_that_raises_breaks_nothing(
    manager: PortManager, allocate: Any, free_port: int, busy_port: int
) -> None:
    def fail(record: logging.LogRecord) -> None:
        raise ZeroDivisionError

    with unraisable() as unraised, handling(Calling(fail)):
        assert allocate(free_port).allocated_port == free_port
        assert manager.get_allocated_ports() == {"api": free_port}
        manager.release_port("api")
        assert manager.get_allocated_ports() == {}
        assert allocate(busy_port, service="busy").status == "in_use"
        assert finish(manager.is_port_available(busy_port)) is False
        finish(manager.cleanup())
    assert unraised == [ZeroDivisionError] * 5


def test_the_unraisable_exception_says_where_it_came_from(
    allocate: Any, free_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(record: logging.LogRecord) -> None:
        raise ZeroDivisionError("from a handler")

    before, sys.unraisablehook = sys.unraisablehook, sys.__unraisablehook__
    try:
        with handling(Calling(fail)):
            allocate(free_port)
    finally:
        sys.unraisablehook = before
    text = capsys.readouterr().err
    assert "portmanager" in text
    assert "ZeroDivisionError: from a handler" in text
    assert __file__ in text


def test_an_error_of_the_call_outlives_a_handler_that_raises(
    manager: PortManager, tmp_path: Path
) -> None:
    def fail(record: logging.LogRecord) -> None:
        raise ZeroDivisionError

    class Entries(dict[str, PortAllocation]):
        def clear(self) -> None:
            raise LookupError

    manager.allocated_ports = Entries()
    manager.config = PortManagerConfig(port_config_path="")
    with unraisable(), handling(Calling(fail)):
        assert error_of(finish, manager.cleanup()) == "LookupError: "


def test_ctrl_c_in_a_handler() -> None:
    # Whoever presses it wants the program to end, whatever it is just doing.
    code = """
    import logging, signal
    # A background job of a shell starts with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    class Handler(logging.Handler):
        def emit(self, record):
            raise KeyboardInterrupt
    logging.basicConfig(level=logging.INFO, handlers=[Handler()])
    try:
        finish(manager.allocate_port("api"))
        for _ in range(1000):
            pass
        outcome = "unheard"
    except KeyboardInterrupt:
        outcome = "interrupted"
    # Nothing is lost that way: the port is held if its entry says so.
    (port,) = manager.get_allocated_ports().values() or [0]
    found = port and finish(manager.find_available_port(port, port))
    print(json.dumps([outcome, port > 0, found]))
    """
    outcome, has_port, found = run(PRELUDE + textwrap.dedent(code))
    assert outcome == "interrupted"
    assert found == (None if has_port else 0)


def test_a_handler_that_comes_back_to_the_manager(
    manager: PortManager, allocate: Any, port_block: Callable[[int], int]
) -> None:
    first = port_block(4)
    seen: list[Any] = []

    def reenter(record: logging.LogRecord) -> None:
        if len(seen) < 20:
            seen.append(manager.get_allocated_ports())
            if "Allocated" in record.getMessage():
                manager.release_port("one")
            allocate(first + 1, service="two")
            finish(manager.is_port_available(first + 2))

    with unraisable() as unraised, handling(Calling(reenter)):
        assert allocate(first, service="one").allocated_port == first
        manager.release_all_ports()
        finish(manager.cleanup())
    assert unraised == []
    assert seen[0] == {"one": first}
    finish(manager.cleanup())
    assert allocate(first, service="one").allocated_port == first
    assert allocate(first + 1, service="two").allocated_port == first + 1


def test_a_handler_that_ends_what_is_being_released(
    manager: PortManager, allocate: Any, port_block: Callable[[int], int]
) -> None:
    first = port_block(3)
    for index in range(3):
        allocate(first + index, service=f"s{index}")

    def reenter(record: logging.LogRecord) -> None:
        manager.allocated_ports = {}
        finish(manager.cleanup())

    with unraisable() as unraised, handling(Calling(reenter)):
        LOGGER.handlers[-1].setLevel(logging.INFO)
        previous, manager.port_configs = manager.port_configs, {}
        with at_most(5, LOGGER.handlers[-1]):
            manager.release_all_ports()
        manager.port_configs = previous
    assert unraised == []
    for index in range(3):
        assert allocate(first + index, service=f"s{index}").allocated_port == first + index


@contextmanager
def at_most(times: int, handler: logging.Handler) -> Iterator[None]:
    """Let a handler that logs itself be called so many times."""
    left = times

    def admit(record: logging.LogRecord) -> bool:
        nonlocal left
        left -= 1
        return left >= 0

    handler.addFilter(admit)
    yield
    handler.removeFilter(admit)


def test_filters_are_asked(
    manager: PortManager, allocate: Any, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    def admit(record: logging.LogRecord) -> bool:
        record.msg = record.msg.replace("api", "***")
        return "Allocated" in record.msg

    LOGGER.addFilter(admit)
    try:
        allocate(free_port)
        manager.release_port("api")
    finally:
        LOGGER.removeFilter(admit)
    assert told(caplog) == [("INFO", f"Service ***: Allocated default port {free_port}")]


def test_a_filter_that_raises_breaks_nothing(allocate: Any, free_port: int) -> None:
    def fail(record: logging.LogRecord) -> bool:
        raise ZeroDivisionError

    LOGGER.addFilter(fail)
    try:
        with unraisable() as unraised:
            assert allocate(free_port).allocated_port == free_port
    finally:
        LOGGER.removeFilter(fail)
    assert unraised == [ZeroDivisionError]


def test_a_logger_that_cannot_say_whether_it_is_enabled(
    allocate: Any, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(level: int) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(LOGGER, "isEnabledFor", fail)
    with unraisable() as unraised:
        assert allocate(free_port).allocated_port == free_port
    assert unraised == [ZeroDivisionError]
