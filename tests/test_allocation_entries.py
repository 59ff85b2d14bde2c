"""allocated_ports as callers edit it, releasing, and the methods that report what is allocated."""

import collections
import copy
import re
import socket
import types
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from comparing import finish


@pytest.fixture(scope="module")
def implementation(native: SimpleNamespace) -> SimpleNamespace:
    """The extension alone."""
    return native


@pytest.fixture
def first(port_block: Callable[[int], int]) -> int:
    """The first of four free ports."""
    return port_block(4)


@pytest.fixture
def configs(native: SimpleNamespace, first: int) -> list[Any]:
    """Configurations of two services and one without a port."""
    return [native.PortConfig(name, first + at) for at, name in enumerate(("api", "web", "db"))]


@pytest.fixture
def manager(make_manager: Any, configs: list[Any]) -> Any:
    """A manager with two allocations."""
    manager = make_manager(*configs)
    for name in ("api", "web"):
        assert finish(manager.allocate_port(name)).status == "allocated"
    return manager


@pytest.fixture
def others(make_manager: Any, configs: list[Any]) -> Callable[[], list[str]]:
    """The services that another manager can have, which tells what is reserved."""

    def names() -> list[str]:
        other = make_manager(*configs)
        given = [
            c.service for c in configs if finish(other.allocate_port(c.service)).allocated_port
        ]
        other.release_all_ports()
        return given

    return names


# ---- entries that go ------------------------------------------------------------------------

REMOVALS: dict[str, Callable[[Any], Any]] = {
    "del": lambda manager: manager.allocated_ports.__delitem__("api"),
    "pop": lambda manager: manager.allocated_ports.pop("api"),
    "new dict": lambda manager: setattr(
        manager, "allocated_ports", {"web": manager.allocated_ports["web"]}
    ),
    "in_use": lambda manager: setattr(manager.allocated_ports["api"], "status", "in_use"),
    "error": lambda manager: setattr(manager.allocated_ports["api"], "status", "error"),
    "no status": lambda manager: delattr(manager.allocated_ports["api"], "status"),
    "no port": lambda manager: delattr(manager.allocated_ports["api"], "allocated_port"),
    "no allocation": lambda manager: manager.allocated_ports.update(api=None),
    "another name": lambda manager: manager.allocated_ports.update(
        {"other": manager.allocated_ports.pop("api")}
    ),
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "get_port": lambda manager: manager.get_port("web"),
    "get_allocated_ports": lambda manager: manager.get_allocated_ports(),
    "get_environment_variables": lambda manager: manager.get_environment_variables(),
    "release_port": lambda manager: manager.release_port("unknown"),
    "allocate_port": lambda manager: finish(manager.allocate_port("unknown")),
    "find_available_port": lambda manager: finish(manager.find_available_port(1, 1)),
    "is_port_available": lambda manager: finish(manager.is_port_available(0)),
    "wait_for_port": lambda manager: finish(manager.wait_for_port(1, timeout=0)),
    "get_port_status": lambda manager: finish(manager.get_port_status()),
    "stop_port_monitoring": lambda manager: manager.stop_port_monitoring("web"),
    "start_port_monitoring": lambda manager: manager.start_port_monitoring("unknown"),
    "allocate_all_ports": lambda manager: finish(manager.allocate_all_ports()),
}


@pytest.mark.parametrize("removal", REMOVALS)
def test_entry_that_is_gone_or_changed(
    manager: Any, others: Callable[[], list[str]], removal: str
) -> None:
    assert others() == ["db"]
    REMOVALS[removal](manager)
    assert manager.get_port("web") is not None
    assert others() == ["api", "db"]
    if removal != "no allocation":
        assert manager.get_port("api") is None


@pytest.mark.parametrize("call", CALLS)
def test_given_back_at_the_next_call(
    manager: Any, others: Callable[[], list[str]], call: str
) -> None:
    del manager.allocated_ports["api"]
    CALLS[call](manager)
    assert others() == ["api", "db"]


@pytest.mark.parametrize("how", ["clear", "empty dict", "__init__"])
def test_all_entries_gone(manager: Any, others: Callable[[], list[str]], how: str) -> None:
    if how == "clear":
        manager.allocated_ports.clear()
    elif how == "empty dict":
        manager.allocated_ports = {}
    else:
        configs = manager.port_configs
        manager.__init__()
        manager.port_configs = configs
    assert manager.get_allocated_ports() == {}
    assert others() == ["api", "web", "db"]
    assert finish(manager.allocate_port("api")).status == "allocated"


def test_given_back_and_asked_for_again(manager: Any, configs: list[Any]) -> None:
    before = manager.allocated_ports.pop("api")
    after = finish(manager.allocate_port("api"))
    assert after == before
    assert after is not before
    # The port of one service is another's after the swap.
    manager.allocated_ports.clear()
    configs[0].default_port, configs[1].default_port = 0, configs[0].default_port
    assert finish(manager.allocate_port("web")).allocated_port == before.allocated_port


@pytest.mark.parametrize("how", ["same", "equal", "as a namespace", "message", "requested"])
def test_entry_that_still_says_the_same(
    manager: Any, others: Callable[[], list[str]], how: str
) -> None:
    entry = manager.allocated_ports["api"]
    if how == "equal":
        entry = copy.deepcopy(entry)
    elif how == "as a namespace":
        entry = SimpleNamespace(status="allocated", allocated_port=entry.allocated_port)
    elif how == "message":
        entry.message = None
    elif how == "requested":
        entry.requested_port = 1
    manager.allocated_ports = {"api": entry, "web": manager.allocated_ports["web"]}
    assert finish(manager.allocate_port("api")) is entry
    assert others() == ["db"]
    manager.release_port("api")
    assert others() == ["api", "db"]


# ---- entries of the caller ----------------------------------------------------------------------


def test_entry_of_the_caller(
    native: SimpleNamespace, manager: Any, others: Callable[[], list[str]]
) -> None:
    entry = native.PortAllocation("own", 1, 2, "allocated")
    manager.allocated_ports["own"] = entry
    assert manager.get_port("own") == 2
    assert manager.get_allocated_ports()["own"] == 2
    assert manager.get_environment_variables()["OWN_PORT"] == "2"
    assert finish(manager.allocate_port("own")) is entry
    assert [status.port for status in finish(manager.get_port_status())][2:] == [2]
    manager.release_port("own")
    assert manager.get_port("own") is None
    assert others() == ["db"]


def test_entry_replaced_by_the_callers(
    native: SimpleNamespace, manager: Any, others: Callable[[], list[str]], first: int
) -> None:
    """Its own port is given back, and the one that the caller wrote is nobody's."""
    entry = native.PortAllocation("api", 1, first + 2, "allocated")
    manager.allocated_ports["api"] = entry
    assert finish(manager.allocate_port("api")) is entry
    assert manager.get_port("api") == first + 2
    assert others() == ["api", "db"]
    # Releasing it gives back what was written, not what somebody else has.
    assert finish(manager.allocate_port("db")).allocated_port == first + 2
    manager.release_port("api")
    assert others() == ["api"]
    assert manager.get_port("db") == first + 2


@pytest.mark.parametrize("port", [0, -1, 70000, 2**70, None, "80", 1.5])
def test_ports_as_the_caller_wrote_them(manager: Any, native: Any, port: Any) -> None:
    manager.allocated_ports["own"] = entry = native.PortAllocation("own", 1, port, "allocated")
    assert manager.get_port("own") is entry.allocated_port
    assert manager.get_allocated_ports()["own"] is entry.allocated_port
    assert manager.get_environment_variables()["OWN_PORT"] == str(port)
    assert finish(manager.allocate_port("own")) is entry
    status = finish(manager.get_port_status())[-1]
    assert (status.port, status.service, status.in_use) == (port, "own", False)
    manager.release_port("own")
    assert "own" not in manager.allocated_ports


@pytest.mark.parametrize("entry", [None, 5, "allocated", {"status": "allocated"}, object()])
def test_entries_that_are_no_allocations(manager: Any, configs: list[Any], entry: Any) -> None:
    manager.allocated_ports["db"] = entry
    assert manager.get_port("db") is None
    assert set(manager.get_allocated_ports()) == {"api", "web"}
    assert [status.service for status in finish(manager.get_port_status())] == ["api", "web"]
    assert finish(manager.allocate_port("db")).allocated_port == configs[2].default_port
    manager.allocated_ports["db"] = entry
    manager.release_port("db")
    assert set(manager.allocated_ports) == {"api", "web"}


class Mapping(collections.UserDict):  # type: ignore[type-arg]
    """A mapping that is no dict."""


class Case(dict):  # type: ignore[type-arg]
    """A dict that finds a name however it is written."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key.lower())


@pytest.mark.parametrize(
    "make", [Mapping, Case, collections.OrderedDict, collections.ChainMap], ids=lambda m: m.__name__
)
def test_mappings_of_other_types(
    manager: Any, others: Callable[[], list[str]], first: int, make: Any
) -> None:
    manager.allocated_ports = make(manager.allocated_ports)
    manager.port_configs = make(manager.port_configs)
    assert manager.get_port("api") == first
    assert finish(manager.allocate_port("db")).allocated_port == first + 2
    assert manager.allocated_ports["db"].status == "allocated"
    assert list(manager.get_allocated_ports()) == ["api", "web", "db"]
    assert others() == []
    manager.release_port("api")
    assert others() == ["api"]
    if make is Case:
        assert manager.get_port("WEB") == first + 1
    manager.allocated_ports.clear()
    assert manager.get_port("web") is None
    assert others() == ["api", "web", "db"]


def test_names_with_an_equality_of_their_own(
    make_manager: Any, native: SimpleNamespace, first: int, others: Callable[[], list[str]]
) -> None:
    class Name(str):
        """A name however it is written."""

        def __eq__(self, other: object) -> bool:
            return isinstance(other, str) and self.lower() == other.lower()

        def __hash__(self) -> int:
            return hash(self.lower())

    manager = make_manager(native.PortConfig(Name("API"), first))
    allocation = finish(manager.allocate_port(Name("API")))
    assert finish(manager.allocate_port(Name("Api"))) is allocation
    assert manager.get_port(Name("api")) == first
    assert others() == ["web", "db"]
    manager.release_port(Name("aPI"))
    assert others() == ["api", "web", "db"]


def test_mapping_that_takes_nothing(manager: Any, others: Callable[[], list[str]]) -> None:
    entries = manager.allocated_ports
    manager.allocated_ports = types.MappingProxyType(entries)
    with pytest.raises(TypeError, match="assignment"):
        finish(manager.allocate_port("db"))
    assert others() == ["db"]
    manager.allocated_ports = entries
    assert finish(manager.allocate_port("db")).status == "allocated"


def test_mapping_that_drops_what_it_gets(manager: Any, others: Callable[[], list[str]]) -> None:
    class Hole(dict):  # type: ignore[type-arg]
        def __setitem__(self, key: str, value: Any) -> None:
            pass

    manager.allocated_ports = Hole(manager.allocated_ports)
    assert finish(manager.allocate_port("db")).status == "allocated"
    assert manager.get_port("db") is None
    assert others() == ["db"]


# ---- releasing --------------------------------------------------------------------------------


def test_release(manager: Any, others: Callable[[], list[str]]) -> None:
    assert manager.release_port("api") is None
    assert list(manager.allocated_ports) == ["web"]
    assert manager.get_port("api") is None
    assert manager.get_allocated_ports() == {"web": manager.get_port("web")}
    assert others() == ["api", "db"]
    assert manager.release_port("api") is None
    assert manager.release_all_ports() is None
    assert manager.allocated_ports == {}
    assert others() == ["api", "web", "db"]
    assert manager.release_all_ports() is None


@pytest.mark.parametrize("name", ["unknown", "", "API", 5, None, ("api",)])
def test_release_of_what_is_not_there(manager: Any, name: Any) -> None:
    before = dict(manager.allocated_ports)
    assert manager.release_port(name) is None
    assert manager.allocated_ports == before


def test_release_of_a_failure(manager: Any, others: Callable[[], list[str]], first: int) -> None:
    with socket.create_server(("127.0.0.1", first + 2)):
        assert finish(manager.allocate_port("db")).status == "in_use"
    assert manager.get_port("db") is None
    manager.release_port("db")
    assert list(manager.allocated_ports) == ["api", "web"]
    assert others() == ["db"]


def test_released_port_can_be_bound_meanwhile(manager: Any, first: int) -> None:
    manager.release_port("api")
    with socket.create_server(("127.0.0.1", first)):
        assert finish(manager.allocate_port("api")).status == "in_use"
    assert finish(manager.allocate_port("api")).allocated_port == first


def test_cleanup_releases(manager: Any, others: Callable[[], list[str]]) -> None:
    entries = manager.allocated_ports
    assert finish(manager.cleanup()) is None
    assert entries == {}
    assert manager.allocated_ports is entries
    assert others() == ["api", "web", "db"]


# ---- what is reported ---------------------------------------------------------------------------


def test_results_are_copies(manager: Any, first: int) -> None:
    ports = manager.get_allocated_ports()
    assert ports == {"api": first, "web": first + 1}
    ports.clear()
    manager.get_environment_variables().clear()
    assert manager.get_port("api") == first
    assert manager.get_allocated_ports() == {"api": first, "web": first + 1}


@pytest.mark.parametrize(
    ("service", "name"),
    [
        ("python-ai-service", "PYTHON_AI_SERVICE_PORT"),
        ("Web.Api/v2", "WEB_API_V2_PORT"),
        ("a b\tc\nd\0e", "A_B_C_D_E_PORT"),
        ("a=b$c", "A_B_C_PORT"),
        ("x_y", "X_Y_PORT"),
        ("", "_PORT"),
        ("9", "9_PORT"),
        ("straße", "STRASSE_PORT"),
        ("ﬁle", "FILE_PORT"),
        ("ÄÖü", "____PORT"),
        ("日本", "___PORT"),
        ("\U0001f600x", "_X_PORT"),
        ("\ud800", "__PORT"),
        ("٣", "__PORT"),
        ("a" * 100_000, "A" * 100_000 + "_PORT"),
    ],
    ids=lambda text: repr(text)[:20],
)
def test_names_of_variables(manager: Any, native: Any, service: str, name: str) -> None:
    manager.allocated_ports.clear()
    manager.allocated_ports[service] = native.PortAllocation(service, 0, 5050, "allocated")
    manager.allocated_ports["failed"] = native.PortAllocation("failed", 1, 0, "in_use")
    assert manager.get_environment_variables() == {name: "5050"}
    assert re.fullmatch("[A-Z0-9_]+", name)


async def test_all_required_in_order(make_manager: Any, native: Any, first: int) -> None:
    required = {"c": True, "a": True, "x": False, "b": "yes", "y": 0, "d": [1]}
    names = ["c", "a", "b", "d"]
    ports = iter(range(first, first + 4))
    manager = make_manager(
        *(
            native.PortConfig(name, next(ports) if name in names else first, None, None, value)
            for name, value in required.items()
        )
    )
    answers = await manager.allocate_all_ports()
    assert list(answers) == names
    assert [answer.allocated_port for answer in answers.values()] == list(range(first, first + 4))
    assert answers == manager.allocated_ports
    assert all(answers[name] is manager.allocated_ports[name] for name in names)
    assert await manager.allocate_all_ports() == answers


async def test_all_with_failures(make_manager: Any, native: Any, first: int) -> None:
    manager = make_manager(
        native.PortConfig("bad", -1, required=True),
        native.PortConfig("a", first, required=True),
        native.PortConfig("b", first, required=True),
        native.PortConfig("c", first + 1, required=True),
    )
    answers = await manager.allocate_all_ports()
    statuses = {name: answer.status for name, answer in answers.items()}
    assert statuses == {"bad": "error", "a": "allocated", "b": "in_use", "c": "allocated"}
    manager.port_configs.clear()
    assert await manager.allocate_all_ports() == {}
