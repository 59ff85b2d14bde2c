"""The configuration file is understood as people write it, and never spoilt."""

import asyncio
import json
import logging
import math
import os
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from datetime import datetime
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import pytest

from portmanager import (
    DEFAULT_PORT_CONFIGS,
    PortAllocation,
    PortConfig,
    PortManager,
    PortManagerConfig,
    _config_file,
)

API = {"service": "api", "default_port": 5050}
FULL = {
    "service": "web",
    "default_port": 5176,
    "range": [5173, 5180],
    "description": "Büro",
    "required": True,
}
FULL_CAMEL = {"defaultPort" if key == "default_port" else key: FULL[key] for key in FULL}
FULL_CONFIG = PortConfig("web", 5176, (5173, 5180), "Büro", True)
posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


@pytest.fixture(autouse=True)
def _all_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "portmanager")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ports.json"


def manager_with(path: Any) -> PortManager:
    return PortManager(PortManagerConfig(port_config_path=path))


def write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def configs(manager: PortManager) -> list[PortConfig]:
    assert list(manager.port_configs) == [c.service for c in manager.port_configs.values()]
    return list(manager.port_configs.values())


def reloaded(path: Path) -> list[PortConfig]:
    """What a saved file says to the next manager."""
    assert path.is_file()
    return configs(manager_with(str(path)))


def messages(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    assert all(record.name == "portmanager" for record in caplog.records)
    assert all(record.message.startswith("[PortManager] ") for record in caplog.records)
    return [record.message for record in caplog.records if record.levelno == level]


def allocate(manager: PortManager, service: str = "web", port: int = 5176) -> PortAllocation:
    """As if it had been allocated: a caller may put an entry there."""
    allocation = PortAllocation(service, port, port, "allocated", f"Allocated default port {port}")
    manager.allocated_ports[service] = allocation
    return allocation


# Loading


def test_a_file_that_is_not_there_is_no_error(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert configs(manager_with(str(path))) == DEFAULT_PORT_CONFIGS
    assert caplog.records == []
    assert not path.exists()


@pytest.mark.parametrize("entry", [FULL, FULL_CAMEL], ids=["snake_case", "camelCase"])
@pytest.mark.parametrize("is_list", [True, False], ids=["list", "object"])
def test_a_file_replaces_the_defaults(
    path: Path, entry: Any, is_list: bool, caplog: pytest.LogCaptureFixture
) -> None:
    entries = [entry, API]
    write(path, entries if is_list else {"portConfigs": entries})
    loaded = configs(manager_with(str(path)))
    assert loaded == [FULL_CONFIG, PortConfig("api", 5050)]
    assert [type(config) for config in loaded] == [PortConfig, PortConfig]
    assert type(loaded[0].range) is tuple
    (message,) = messages(caplog, logging.INFO)
    assert str(path) in message
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (API, PortConfig("api", 5050)),
        (
            {**API, "range": None, "description": None, "required": False},
            PortConfig("api", 5050),
        ),
        ({**API, "default_port": 0}, PortConfig("api", 0)),
        ({**API, "default_port": 65535}, PortConfig("api", 65535)),
        ({**API, "range": [1, 65535]}, PortConfig("api", 5050, (1, 65535))),
        ({**API, "range": [7, 7]}, PortConfig("api", 5050, (7, 7))),
        ({**API, "description": ""}, PortConfig("api", 5050, None, "")),
        ({**API, "service": " Ünïcode \U0001f600"}, PortConfig(" Ünïcode \U0001f600", 5050)),
    ],
)
def test_what_an_entry_may_say(path: Path, entry: Any, expected: PortConfig) -> None:
    write(path, [entry])
    assert configs(manager_with(str(path))) == [expected]


def test_no_services_at_all(path: Path) -> None:
    write(path, [])
    assert configs(manager_with(str(path))) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_from_an_editor_that_marks_utf8(path: Path, encoding: str) -> None:
    text = json.dumps([FULL], ensure_ascii=False, indent="\t").replace("\n", "\r\n")
    path.write_bytes(text.encode(encoding))
    assert configs(manager_with(str(path))) == [FULL_CONFIG]


@pytest.mark.parametrize("kind", [str, Path, os.fsencode])
def test_any_kind_of_path(path: Path, kind: Callable[[Path], Any]) -> None:
    write(path, [FULL])
    assert configs(manager_with(kind(path))) == [FULL_CONFIG]


def test_what_is_no_path_at_all() -> None:
    with pytest.raises(TypeError):
        _config_file.load(3)  # type: ignore[arg-type]  # not the file with this descriptor


def test_unknown_keys_are_named_in_one_warning(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = {
        "$schema": "x",
        "timestamp": "y",
        "allocations": 5,
        "portConfigs": [{**FULL, "tags": []}, {**API, "tags": [], "owner": {}}],
    }
    write(path, document)
    assert configs(manager_with(str(path))) == [FULL_CONFIG, PortConfig("api", 5050)]
    (message,) = messages(caplog, logging.WARNING)
    assert str(path) in message
    for key in ("$schema", "tags", "owner"):
        assert message.count(f"'{key}'") == 1
    for key in ("timestamp", "allocations", "service"):
        assert key not in message


BAD_ENTRIES = [
    # what the second entry is, and what the message must name
    (5, ["[1]", "5", "object"]),
    ({"default_port": 1}, ["[1]", "service", "missing"]),
    ({"service": "x"}, ["[1]", "'x'", "default_port", "missing"]),
    ({"service": "", "default_port": 1}, ["[1]", "service", "''", "string"]),
    ({"service": None, "default_port": 1}, ["[1]", "service", "None", "string"]),
    ({"service": 7, "default_port": 1}, ["[1]", "service", "7", "string"]),
    ({"service": "x", "default_port": "8080"}, ["[1]", "'x'", "default_port", "'8080'", "65535"]),
    ({"service": "x", "defaultPort": -1}, ["[1]", "'x'", "defaultPort", "-1", "65535"]),
    ({"service": "x", "default_port": 65536}, ["[1]", "'x'", "default_port", "65536"]),
    ({"service": "x", "default_port": True}, ["[1]", "'x'", "default_port", "True"]),
    ({"service": "x", "default_port": 80.0}, ["[1]", "'x'", "default_port", "80.0"]),
    ({"service": "x", "default_port": None}, ["[1]", "'x'", "default_port", "None"]),
    ({"service": "x", "default_port": 1, "defaultPort": 1}, ["[1]", "default_port", "defaultPort"]),
    ({**API, "service": "x", "range": [2, 1]}, ["[1]", "'x'", "range", "[2, 1]"]),
    ({**API, "service": "x", "range": [0, 1]}, ["[1]", "'x'", "range", "[0, 1]"]),
    ({**API, "service": "x", "range": [1, 65536]}, ["[1]", "'x'", "range", "[1, 65536]"]),
    ({**API, "service": "x", "range": [1, 2, 3]}, ["[1]", "'x'", "range", "[1, 2, 3]"]),
    ({**API, "service": "x", "range": [1, True]}, ["[1]", "'x'", "range", "[1, True]"]),
    ({**API, "service": "x", "range": "1-2"}, ["[1]", "'x'", "range", "'1-2'"]),
    ({**API, "service": "x", "range": {"start": 1, "end": 2}}, ["[1]", "'x'", "range", "start"]),
    ({**API, "service": "x", "description": 5}, ["[1]", "'x'", "description", "5", "string"]),
    ({**API, "service": "x", "required": 1}, ["[1]", "'x'", "required", "1", "true or false"]),
    ({**API, "service": "x", "required": None}, ["[1]", "'x'", "required", "None"]),
    ({**API, "service": "web"}, ["[1]", "service", "'web'"]),
    ({"service": "x" * 10**5, "default_port": [0] * 10**5}, ["[1]", "default_port", "[0, 0,"]),
]


def expect_refusal(path: Path, caplog: pytest.LogCaptureFixture, *named: str) -> PortManager:
    """Load, and see that it was refused in one error; returns the manager."""
    caplog.clear()
    manager = manager_with(str(path))
    assert configs(manager) == DEFAULT_PORT_CONFIGS
    (message,) = messages(caplog, logging.ERROR)
    assert len(caplog.records) == 1
    assert caplog.records[0].exc_info is None
    for name in (str(path), *named):
        assert name in message
    return manager


@pytest.mark.parametrize(("entry", "named"), BAD_ENTRIES)
async def test_a_bad_entry_is_named_and_the_file_kept(
    path: Path, entry: Any, named: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for document in ([FULL, entry], {"portConfigs": [FULL, entry]}):
        write(path, document)
        before = path.read_bytes()
        manager = expect_refusal(path, caplog, *named)
        assert len(caplog.records[0].message) < 200_000
        await manager.cleanup()
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[\n  1,\n]", "line"),
        (b"port = 5", "JSON"),
        (b'[{"service": "x", "default_port": NaN}]', "NaN"),
        (b'{"portConfigs": [], "x": -Infinity}', "-Infinity"),
        (b'{"portConfigs": [], "x": 1e999}', ""),
        (b'[{"service": "x", "default_port": 1' + b"0" * 5000 + b"}]", ""),
        ("[]".encode("utf-16"), "UTF-8"),
        ('{"portConfigs": [], "x": "Büro"}'.encode("latin-1"), "UTF-8"),
        (b'{"portConfigs": [], "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
        (b"null", "portConfigs"),
        (b"5", "portConfigs"),
        (b'"portConfigs"', "portConfigs"),
        (b"{}", "portConfigs"),
        (b'{"port_configs": []}', "portConfigs"),
        (b'{"portConfigs": null}', "portConfigs"),
        (b'{"portConfigs": {"web": {}}}', "portConfigs"),
        (b"[[]]", "object"),
        (b"\0" * 4096, "JSON"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_file_that_makes_no_sense_is_named_and_kept(
    path: Path, content: bytes, named: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(content)
    manager = expect_refusal(path, caplog, named)
    allocate(manager)
    await manager.cleanup()
    assert path.read_bytes() == content
    (message,) = messages(caplog, logging.WARNING)
    assert str(path) in message
    assert manager.allocated_ports == {}


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_unreadable(path: Path) -> None:
    write(path, [FULL])
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("root reads every file")


@pytest.mark.parametrize(
    "make",
    [
        Path.mkdir,
        pytest.param(make_fifo, marks=posix_only),
        pytest.param(make_loop, marks=posix_only),
        pytest.param(make_unreadable, marks=posix_only),
    ],
)
async def test_what_cannot_be_read_is_named_and_kept(
    path: Path, make: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    make(path)
    before = os.lstat(path)
    manager = expect_refusal(path, caplog)
    await manager.cleanup()
    assert os.path.samestat(os.lstat(path), before)


async def test_a_file_that_may_not_be_read(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    write(path, [FULL])
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        manager = expect_refusal(path, caplog, "Permission denied")
    await manager.cleanup()
    assert path.read_bytes() == before


async def test_a_file_where_a_folder_should_be(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, [FULL])
    before = path.read_bytes()
    manager = expect_refusal(path / "more.json", caplog)
    await manager.cleanup()
    assert path.read_bytes() == before


def test_a_path_that_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    assert configs(manager_with("ports\0.json")) == DEFAULT_PORT_CONFIGS
    assert len(messages(caplog, logging.ERROR)) == 1


# What a saved file looks like


async def test_a_new_file(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = manager_with(str(path))
    manager.port_configs.clear()
    manager.port_configs["web"] = FULL_CONFIG
    manager.port_configs["api"] = PortConfig("api", 5050)
    allocation = allocate(manager)
    manager.allocated_ports["api"] = PortAllocation("api", 5050, 0, "in_use", "Port 5050 is in use")
    await manager.save_configuration()

    document = read(path)
    timestamp = document.pop("timestamp")
    assert document == {
        "portConfigs": [
            FULL,
            {**API, "range": None, "description": None, "required": False},
        ],
        "allocations": [vars(allocation)],
    }
    assert datetime.fromisoformat(timestamp).tzinfo is not None
    text = path.read_text(encoding="utf-8")
    assert list(json.loads(text)) == ["timestamp", "portConfigs", "allocations"]
    assert text.endswith("}\n")
    assert '\n  "portConfigs": [\n    {\n      "service": "web",\n' in text
    assert "Büro" in text
    assert any(str(path) in message for message in messages(caplog, logging.INFO))


async def test_what_was_saved_can_be_loaded(path: Path) -> None:
    manager = manager_with(None)
    allocate(manager)
    await manager.save_configuration(str(path))
    again = manager_with(str(path))
    assert configs(again) == configs(manager) == DEFAULT_PORT_CONFIGS
    assert again.allocated_ports == {}


async def test_a_list_stays_a_list(path: Path) -> None:
    write(path, [FULL])
    manager = manager_with(str(path))
    allocate(manager)
    manager.port_configs["api"] = PortConfig("api", 5050)
    await manager.save_configuration()
    assert read(path) == [FULL, {**API, "range": None, "description": None, "required": False}]


async def test_camel_case_stays_camel_case(path: Path) -> None:
    write(path, {"portConfigs": [FULL_CAMEL]})
    manager = manager_with(str(path))
    allocate(manager)
    manager.port_configs["api"] = PortConfig("api", 5050)
    for _ in range(2):
        await manager.save_configuration()
        document = read(path)
        assert document["portConfigs"] == [
            FULL_CAMEL,
            {
                "service": "api",
                "defaultPort": 5050,
                "range": None,
                "description": None,
                "required": False,
            },
        ]
        assert document["allocations"] == [
            {
                "service": "web",
                "requestedPort": 5176,
                "allocatedPort": 5176,
                "status": "allocated",
                "message": "Allocated default port 5176",
            }
        ]
        datetime.fromisoformat(document["timestamp"])


async def test_in_a_mixed_file_each_entry_keeps_its_style(path: Path) -> None:
    write(path, [FULL_CAMEL, API])
    manager = manager_with(str(path))
    manager.port_configs["new"] = PortConfig("new", 1)
    await manager.save_configuration()
    keys = ["defaultPort" if "defaultPort" in entry else "default_port" for entry in read(path)]
    assert keys == ["defaultPort", "default_port", "defaultPort"]


async def test_unknown_keys_and_the_order_of_keys_stay(path: Path) -> None:
    entry = {"tags": ["a", {"b": None}], "default_port": 5176, "$note": 1.5, "service": "web"}
    document = {"portConfigs": [entry], "$schema": "x", "allocations": [], "version": 2}
    write(path, document)
    manager = manager_with(str(path))
    manager.port_configs["web"].default_port = 5177
    await manager.save_configuration()
    saved = read(path)
    assert list(saved) == ["portConfigs", "$schema", "allocations", "version", "timestamp"]
    assert saved["$schema"] == "x"
    assert saved["version"] == 2
    (saved_entry,) = saved["portConfigs"]
    assert list(saved_entry)[:4] == list(entry)
    assert saved_entry == {
        **entry,
        "default_port": 5177,
        "range": None,
        "description": None,
        "required": False,
    }


async def test_services_come_and_go(path: Path) -> None:
    write(path, [FULL, {**API, "tags": 1}, {"service": "old", "default_port": 1}])
    manager = manager_with(str(path))
    del manager.port_configs["web"]
    del manager.port_configs["old"]
    await manager.save_configuration()
    assert [entry["service"] for entry in read(path)] == ["api"]
    manager.port_configs["web"] = FULL_CONFIG
    await manager.save_configuration()
    assert [entry["service"] for entry in read(path)] == ["api", "web"]
    assert read(path)[0]["tags"] == 1


async def test_another_file_is_a_new_file(path: Path, tmp_path: Path) -> None:
    write(path, [{**FULL_CAMEL, "tags": 1}])
    before = path.read_bytes()
    manager = manager_with(str(path))
    other = tmp_path / "other.json"
    await manager.save_configuration(str(other))
    assert read(other)["portConfigs"] == [FULL]
    assert path.read_bytes() == before


def relative(path: Path) -> str:
    return os.path.relpath(path)


def roundabout(path: Path) -> str:
    return os.path.join(path.parent, "..", path.parent.name, ".", path.name)


def link(path: Path) -> str:
    path.with_name("link").symlink_to(path.name)
    return str(path.with_name("link"))


def link_of_folder(path: Path) -> str:
    path.with_name("folder").symlink_to(path.parent)
    return str(path.with_name("folder") / path.name)


def hard_link(path: Path) -> str:
    os.link(path, path.with_name("hard"))
    return str(path.with_name("hard"))


@posix_only
@pytest.mark.parametrize("loaded_as", [str, relative, link])
@pytest.mark.parametrize("saved_as", [str, relative, roundabout, link_of_folder, hard_link])
async def test_however_it_is_spelled_it_is_the_same_file(
    path: Path, loaded_as: Callable[[Path], str], saved_as: Callable[[Path], str]
) -> None:
    write(path, [FULL_CAMEL])
    manager = manager_with(loaded_as(path))
    saved = saved_as(path)
    await manager.save_configuration(saved)
    assert read(Path(saved)) == [FULL_CAMEL]


@posix_only
@pytest.mark.parametrize("saved_as", [str, relative, roundabout, link_of_folder, hard_link])
async def test_however_it_is_spelled_a_broken_file_is_kept(
    path: Path, saved_as: Callable[[Path], str]
) -> None:
    path.write_text("broken")
    manager = manager_with(str(path))
    manager.config.port_config_path = saved_as(path)
    await manager.cleanup()
    assert path.read_text() == "broken"


@posix_only
async def test_a_link_that_leads_elsewhere_since_is_the_same_file(path: Path) -> None:
    """As deployments swap a configuration under the running program."""
    targets = [path.with_name("old.json"), path.with_name("new.json")]
    write(targets[0], [FULL_CAMEL])
    path.symlink_to("old.json")
    managers = [manager_with(str(path))]
    targets[0].write_text("broken")
    managers.append(manager_with(str(path)))
    path.unlink()
    path.symlink_to("new.json")
    targets[1].write_text("swapped")
    await managers[1].cleanup()
    assert targets[1].read_text() == "swapped"
    await managers[0].save_configuration()
    assert read(targets[1]) == [FULL_CAMEL]


@posix_only
async def test_a_file_that_was_removed_since_is_the_same_file(path: Path) -> None:
    write(path, [FULL_CAMEL])
    manager = manager_with(str(path))
    path.unlink()
    await manager.save_configuration(link_of_folder(path))
    assert read(path) == [FULL_CAMEL]


async def test_in_another_working_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(path, [FULL_CAMEL])
    manager = manager_with("ports.json")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    await manager.save_configuration("../ports.json")
    assert read(path) == [FULL_CAMEL]
    await manager.save_configuration("ports.json")
    assert isinstance(read(tmp_path / "other" / "ports.json"), dict)


# Values


async def test_no_path_is_an_error() -> None:
    with pytest.raises(ValueError, match="path"):
        await manager_with(None).save_configuration()


class Port(IntEnum):
    WEB = 5176


class Name(str, Enum):
    WEB = "web"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PortConfig("web", 5176, (5173, 5180), "Büro", 1), FULL),  # type: ignore[arg-type]
        (PortConfig("web", 5176, [5173, 5180], "Büro", "y"), FULL),  # type: ignore[arg-type]
        (PortConfig("web", Port.WEB, (5173, 5180), "Büro", True), FULL),
        (PortConfig(Name.WEB, 5176, (5173, 5180), "Büro", True), FULL),
        (PortConfig("web", 1, required=None), {"required": False}),  # type: ignore[arg-type]
    ],
)
async def test_values_that_mean_the_same(
    path: Path, config: PortConfig, expected: dict[str, Any]
) -> None:
    manager = manager_with(None)
    manager.port_configs.clear()
    manager.port_configs["web"] = config
    await manager.save_configuration(str(path))
    (entry,) = read(path)["portConfigs"]
    assert {key: entry[key] for key in expected} == expected
    assert reloaded(path)[0].service == "web"


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("service", None, "None"),
        ("service", "", "''"),
        ("default_port", "8080", "'8080'"),
        ("default_port", True, "True"),
        ("default_port", math.nan, "nan"),
        ("default_port", 70000, "70000"),
        ("range", {1, 2}, "{1, 2}"),
        ("range", range(1, 3), "range(1, 3)"),
        ("range", (2, 1), "(2, 1)"),
        ("description", Path("x"), "Path"),
        ("description", b"x", "b'x'"),
        ("description", object(), "object"),
    ],
)
async def test_values_that_could_not_be_loaded_are_not_saved(
    path: Path, field: str, value: object, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, [FULL])
    before = path.read_bytes()
    manager = manager_with(str(path))
    setattr(manager.port_configs["web"], field, value)
    with pytest.raises(ValueError, match=field) as caught:
        await manager.save_configuration()
    assert shown in str(caught.value)
    assert repr(manager.port_configs["web"].service) in str(caught.value)
    (message,) = messages(caplog, logging.ERROR)
    assert str(caught.value) in message
    assert str(path) in message
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    await manager.cleanup()
    assert path.read_bytes() == before
    assert len(messages(caplog, logging.ERROR)) == 2


async def test_a_service_that_is_configured_twice_is_not_saved(path: Path) -> None:
    manager = manager_with(None)
    manager.port_configs["another"] = manager.port_configs["python-ai-service"]
    with pytest.raises(ValueError, match="'python-ai-service'"):
        await manager.save_configuration(str(path))
    assert not path.exists()


async def test_an_allocation_that_cannot_be_saved(path: Path) -> None:
    manager = manager_with(None)
    allocate(manager).message = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="allocation of service 'web': message"):
        await manager.save_configuration(str(path))
    assert not path.exists()


@pytest.mark.parametrize("text", ["\ud800", "a\udcffb", 'Quote" \\ \0 \x7f \u2028', "😀é"])
async def test_any_text_survives(path: Path, text: str) -> None:
    manager = manager_with(None)
    manager.port_configs.clear()
    manager.port_configs[text] = PortConfig(text, 1, None, text)
    await manager.save_configuration(str(path))
    path.read_bytes().decode("utf-8")
    (again,) = reloaded(path)
    assert (again.service, again.description) == (text, text)


# The file itself


def leftovers(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(path.parent) if name != path.name)


@posix_only
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
async def test_the_mode_stays(path: Path, mode: int) -> None:
    write(path, [FULL])
    path.chmod(mode)
    await manager_with(str(path)).save_configuration()
    assert stat.S_IMODE(path.stat().st_mode) == mode


@posix_only
@pytest.mark.parametrize("umask", [0o022, 0o077, 0])
async def test_a_new_file_has_the_usual_mode(path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        await manager_with(None).save_configuration(str(path))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@posix_only
async def test_a_private_file_is_never_readable_by_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    real = os.open

    def note(name: Any, flags: int, *arguments: Any, **options: Any) -> int:
        descriptor = real(name, flags, *arguments, **options)
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    write(path, [FULL])
    path.chmod(0o600)
    manager = manager_with(str(path))
    monkeypatch.setattr(os, "open", note)
    await manager.save_configuration()
    monkeypatch.undo()
    assert 0o600 in modes
    assert not any(
        mode & 0o077 for mode in modes if mode != stat.S_IMODE(os.stat(path.parent).st_mode)
    )


@posix_only
async def test_the_owner_stays(path: Path) -> None:
    write(path, [FULL])
    try:
        os.chown(path, 12345, 23456)
    except PermissionError:
        pytest.skip("only root gives files away")
    path.chmod(0o640)
    await manager_with(str(path)).save_configuration()
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 23456, 0o640)


@posix_only
async def test_an_owner_that_cannot_be_kept_is_no_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    write(path, [FULL])
    path.chmod(0o640)
    monkeypatch.setattr(os, "chown", refuse)
    manager = manager_with(str(path))
    manager.port_configs["web"].default_port = 1
    await manager.save_configuration()
    assert read(path)[0]["default_port"] == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="this platform has other access lists")
async def test_extended_attributes_stay(path: Path) -> None:
    write(path, [FULL])
    try:
        os.setxattr(path, "user.note", b"kept")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    await manager_with(str(path)).save_configuration()
    assert os.getxattr(path, "user.note") == b"kept"


async def test_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c" / "ports.json"
    await manager_with(None).save_configuration(str(path))
    assert reloaded(path) == DEFAULT_PORT_CONFIGS


@posix_only
async def test_a_link_is_followed(path: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere" / "real.json"
    target.parent.mkdir()
    write(target, [FULL])
    path.symlink_to("elsewhere/real.json")
    manager = manager_with(str(path))
    manager.port_configs["web"].default_port = 1
    await manager.save_configuration()
    assert path.is_symlink()
    assert read(target)[0]["default_port"] == 1
    assert os.listdir(target.parent) == ["real.json"]
    assert leftovers(path) == ["elsewhere"]


@posix_only
async def test_a_link_to_nothing_is_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "new" / "real.json")
    await manager_with(str(path)).save_configuration()
    assert path.is_symlink()
    assert reloaded(tmp_path / "new" / "real.json") == DEFAULT_PORT_CONFIGS


@posix_only
async def test_a_name_of_full_length(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    await manager_with(None).save_configuration(str(path))
    assert reloaded(path) == DEFAULT_PORT_CONFIGS


async def test_a_folder_cannot_be_saved_over(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.mkdir()
    with pytest.raises(OSError, match="directory") as caught:
        await manager_with(None).save_configuration(str(path))
    assert caught.value.filename == str(path)
    assert any(str(path) in message for message in messages(caplog, logging.ERROR))
    assert leftovers(path) == []


@posix_only
async def test_a_device_is_not_replaced(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(OSError, match="regular"):
        await manager_with(None).save_configuration(str(path))
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert leftovers(path) == []


@posix_only
@pytest.mark.parametrize("locked", ["file", "folder"])
async def test_what_may_not_be_written(
    path: Path, locked: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the kernel says it; the tests may run as root, whom it lets do everything."""
    real = os.open

    def refuse(name: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_WRONLY and (locked == "file") == (Path(name) == path):
            raise PermissionError(13, "Permission denied", str(name))
        return real(name, flags, *arguments, **options)

    write(path, [FULL])
    before = path.read_bytes()
    manager = manager_with(str(path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(PermissionError) as caught:
            await manager.save_configuration()
    assert caught.value.filename == str(path if locked == "file" else path.parent)
    assert any(str(path) in message for message in messages(caplog, logging.ERROR))
    assert path.read_bytes() == before
    assert leftovers(path) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    *,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
    is_new: bool,
    error: BaseException,
) -> None:
    def fail(*arguments: Any) -> None:
        raise error

    if not is_new:
        write(path, [FULL])
    before = None if is_new else path.read_bytes()
    manager = manager_with(str(path))
    arguments: tuple[Any, ...] = (str(path), configs(manager), [], None)
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)) as caught:
        _config_file.save(*arguments)
    assert caught.value is error
    assert (path.read_bytes() if path.exists() else None) == before
    assert leftovers(path) == []
    if isinstance(error, Exception):
        (message,) = messages(caplog, logging.ERROR)
        assert str(path) in message
        assert "No space left on device" in message


async def test_errors_of_a_save_are_logged_and_raised(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    manager = manager_with(str(path))
    allocate(manager)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            await manager.save_configuration()
        assert len(messages(caplog, logging.ERROR)) == 1
        assert manager.allocated_ports
        await manager.cleanup()  # raises nothing
    assert len(messages(caplog, logging.ERROR)) == 2
    assert manager.allocated_ports == {}
    assert leftovers(path) == []
    assert not path.exists()


@posix_only
def test_the_disk_has_it_before_and_after_the_name_changes(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    opened: dict[int, str] = {}
    reals = {name: getattr(os, name) for name in ("open", "fsync", "replace", "mkdir")}

    def spy_open(name: Any, *arguments: Any, **options: Any) -> int:
        descriptor: int = reals["open"](name, *arguments, **options)
        opened[descriptor] = os.fspath(name)
        return descriptor

    def spy_fsync(descriptor: int) -> None:
        size = os.fstat(descriptor).st_size
        name = opened[descriptor]
        events.append(f"fsync {name}" if os.path.isdir(name) else f"fsync file of {size}")
        reals["fsync"](descriptor)

    def spy_replace(source: str, target: str) -> None:
        events.append("replace")
        reals["replace"](source, target)

    def spy_mkdir(name: Any, *arguments: Any) -> None:
        events.append(f"mkdir {name}")
        reals["mkdir"](name, *arguments)

    target = tmp_path / "new" / "ports.json"
    for name, spy in [("open", spy_open), ("fsync", spy_fsync), ("replace", spy_replace)]:
        monkeypatch.setattr(os, name, spy)
    monkeypatch.setattr(os, "mkdir", spy_mkdir)
    _config_file.save(target, [FULL_CONFIG], [], None)
    monkeypatch.undo()
    assert events == [
        f"mkdir {target.parent}",
        f"fsync {tmp_path}",
        f"fsync file of {target.stat().st_size}",
        "replace",
        f"fsync {target.parent}",
    ]


@posix_only
@pytest.mark.parametrize("errno", [13, 22])
def test_a_folder_that_cannot_be_flushed_is_no_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, errno: int
) -> None:
    real_open, real_fsync = os.open, os.fsync

    def open_not(name: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & os.O_DIRECTORY:
            raise PermissionError(errno, "")
        return real_open(name, flags, *arguments, **options)

    def flush_not(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno, "")
        real_fsync(descriptor)

    if errno == 13:
        monkeypatch.setattr(os, "open", open_not)
    else:
        monkeypatch.setattr(os, "fsync", flush_not)
    _config_file.save(path, [FULL_CONFIG], [], None)
    monkeypatch.undo()
    assert reloaded(path) == [FULL_CONFIG]


@posix_only
@pytest.mark.parametrize("when", ["before fsync", "before replace", "after replace"])
@pytest.mark.parametrize("is_new", [True, False])
def test_a_kill_leaves_the_old_file_or_the_new_one(path: Path, when: str, is_new: bool) -> None:
    code = f"""
    import asyncio, os, signal, sys
    from portmanager import PortConfig, PortManager, PortManagerConfig

    moment, step = {when.split()!r}
    real = getattr(os, step)

    def kill(*arguments):
        if moment == "after":
            real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    manager = PortManager(PortManagerConfig(port_config_path=sys.argv[1]))
    manager.port_configs["new"] = PortConfig("new", 1, description="x" * 100_000)
    setattr(os, step, kill)
    asyncio.run(manager.save_configuration())
    """
    if not is_new:
        write(path, [FULL])
    before = None if is_new else path.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], timeout=60, check=False
    )
    assert done.returncode == -9
    if when == "after replace":
        assert reloaded(path)[-1].description == "x" * 100_000
        assert leftovers(path) == []
    else:
        assert (path.read_bytes() if path.exists() else None) == before


async def test_the_loop_is_not_blocked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace
    ran = threading.Event()

    def replace(*arguments: Any) -> None:
        asyncio_loop.call_soon_threadsafe(ran.set)
        assert ran.wait(60)
        real(*arguments)

    asyncio_loop = asyncio.get_running_loop()
    manager = manager_with(str(path))
    monkeypatch.setattr(os, "replace", replace)
    await manager.save_configuration()
    ran.clear()
    await manager.cleanup()
    assert ran.is_set()


async def test_many_saves_at_once(path: Path) -> None:
    def manager(i: int) -> PortManager:
        made = manager_with(None)
        made.port_configs.clear()
        made.port_configs["web"] = PortConfig("web", i, None, "x" * 10_000 * i)
        return made

    await asyncio.gather(*(manager(i).save_configuration(str(path)) for i in range(1, 9)))
    (config,) = reloaded(path)
    assert config.description == "x" * 10_000 * config.default_port
    assert leftovers(path) == []


# cleanup()


async def test_cleanup_saves_and_clears(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = manager_with(str(path))
    allocation = allocate(manager)
    await manager.cleanup()
    assert read(path)["allocations"] == [vars(allocation)]
    assert manager.allocated_ports == {}
    assert messages(caplog, logging.ERROR) == messages(caplog, logging.WARNING) == []


async def test_cleanup_without_a_path_saves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (None, ""):
        await manager_with(path).cleanup()
    assert os.listdir(tmp_path) == []


async def test_a_broken_file_may_be_saved_over_when_asked_for(path: Path) -> None:
    path.write_text("broken")
    manager = manager_with(str(path))
    await manager.save_configuration()
    assert len(read(path)["portConfigs"]) == len(DEFAULT_PORT_CONFIGS)
    # It is ours then, and no longer broken.
    del manager.port_configs["playwright-debug"]
    await manager.cleanup()
    assert len(read(path)["portConfigs"]) == len(DEFAULT_PORT_CONFIGS) - 1


async def test_another_path_is_saved_beside_a_broken_file(path: Path, tmp_path: Path) -> None:
    path.write_text("broken")
    manager = manager_with(str(path))
    manager.config.port_config_path = str(tmp_path / "good.json")
    await manager.cleanup()
    assert path.read_text() == "broken"
    assert reloaded(tmp_path / "good.json") == DEFAULT_PORT_CONFIGS
