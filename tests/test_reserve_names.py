"""reserve(name=...): the port that a name has in a checkout, each time while it is free."""

import contextlib
import gc
import itertools
import logging
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import isolated
import logs
import pytest
from reserving import another, said_by

from portmanager import PortsExhausted, reserve, reserved_ports

# Networks are the tests' own, so these are nobody's.
RANGE: dict[str, Any] = {"start": 7000, "end": 7002}


class Log(logs.Log):
    """Collects what is logged about names."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        logging.getLogger("portmanager").setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().removeprefix("[PortManager] ")
        self.texts.append(f"{record.levelname} {text}")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """Run a function of this file in a network, and with a ledger, of the test's own."""

    def run(function: Callable[..., Any], *arguments: Any, **env: str) -> Any:
        env = {"PORTMANAGER_LEDGER": str(tmp_path / "ledger"), "PORTMANAGER_PROJECT": "", **env}
        return isolated.run(function, *arguments, namespaces=True, env=env)

    return run


@pytest.fixture
def root(tmp_path: Path) -> str:
    """A folder that is in no checkout."""
    (tmp_path / "root").mkdir()
    return str(tmp_path / "root")


def make_checkout(folder: str, *, work_tree: bool = False) -> str:
    os.makedirs(folder)
    if work_tree:
        Path(folder, ".git").write_text("gitdir: elsewhere\n")
    else:
        Path(folder, ".git").mkdir()
    return folder


def port_of(name: str, folder: str = ".", **ports: Any) -> int:
    """The port that a name has, given back again."""
    os.chdir(folder)
    with reserve(name=name, **ports) as port:
        return port


def named_holder(name: str, **env: str) -> AbstractContextManager["subprocess.Popen[str]"]:
    """Another process that asks for a name in the working folder, says its port and holds it."""
    code = """
        held = portmanager.reserve(name=sys.argv[1])
        print(held.port, flush=True)
        sys.stdin.read()
    """
    return another(code, name, **env)


def port_said_by(process: "subprocess.Popen[str]") -> int:
    return int(said_by(process))


# ---- whose name -----------------------------------------------------------------------------


def ports_in(folders: list[str], names: list[str]) -> list[list[int]]:
    return [[port_of(name, folder) for name in names] for folder in folders]


def test_same_port_in_a_checkout(run: Any, root: str, tmp_path: Path) -> None:
    """In each of its folders, through links, in other processes; another one in another."""
    one = make_checkout(f"{root}/one")
    work_tree = make_checkout(f"{root}/two", work_tree=True)
    within = make_checkout(f"{one}/vendor/within")
    same = [f"{one}/a/b", f"{root}/link", f"{root}/link/a/b", one]
    os.makedirs(same[0])
    os.symlink("one", same[1])
    os.makedirs(f"{work_tree}/c")
    folders = [one, *same, work_tree, f"{work_tree}/c", within, one]
    names = ["web", "api"]
    ports = run(ports_in, folders, names)
    first, second, third = ports[0], ports[5], ports[7]
    assert ports == [first] * 5 + [second] * 2 + [third, first]
    assert len({*first, *second, *third}) == 6
    assert run(ports_in, folders[::-1], names) == ports[::-1]
    # Without what the ledger remembers the order is the name's own.
    assert run(ports_in, folders, names, PORTMANAGER_LEDGER=str(tmp_path / "fresh")) == ports


def many(root: str) -> list[int]:
    return [
        port_of("web", make_checkout(f"{root}/{number}", work_tree=True)) for number in range(50)
    ]


def test_fifty_checkouts(run: Any, root: str) -> None:
    """None has another's port, and each keeps its own: a hash alone collides."""
    ports = run(many, root)
    assert len({*ports}) == 50
    folders = [f"{root}/{number}" for number in reversed(range(50))]
    assert [port for (port,) in run(ports_in, folders, ["web"])] == ports[::-1]


def test_outside_of_any_checkout(run: Any, root: str) -> None:
    folders = [root, f"{root}/plain", f"{root}/plain/deeper"]
    os.makedirs(folders[-1])
    ports = run(ports_in, folders * 2, ["web"])
    assert len({port for (port,) in ports}) == 3
    assert ports[:3] == ports[3:]


@pytest.mark.parametrize("link", ["elsewhere", "../.git"])
def test_checkout_by_a_link(run: Any, root: str, link: str) -> None:
    """Some tools make .git a link, which may lead nowhere."""
    os.makedirs(f"{root}/one/a")
    os.symlink(link, f"{root}/one/.git")
    first, second, third = run(ports_in, [f"{root}/one", f"{root}/one/a", root], ["web"])
    assert first == second != third


def projects(values: list[str], folders: list[str]) -> list[list[int]]:
    ports = []
    for value in values:
        os.environ["PORTMANAGER_PROJECT"] = value
        ports.append([port_of("web", folder) for folder in folders])
    return ports


def test_project_that_is_named(run: Any, root: str) -> None:
    """By its real path, and as it is: no other .git is looked for."""
    one, two = make_checkout(f"{root}/one"), make_checkout(f"{root}/two")
    os.makedirs(f"{one}/a")
    os.symlink("one", f"{root}/link")
    values = ["", one, f"{root}/link", f"{one}/a", f"{root}/missing", "."]
    unset, by_path, by_link, within, missing, relative = run(projects, values, [one, two])
    assert unset[0] != unset[1]
    assert by_path == by_link == [unset[0]] * 2
    assert within == [within[0]] * 2
    assert missing == [missing[0]] * 2
    assert len({*unset, within[0], missing[0]}) == 4
    assert relative == unset


NAMES = ["web", "Web", "web ", "ẅëb", "we\u0308b", "w/e/b", "w\ne\tb", "🔌", "w" * 63, "w" * 10000]


def named_ports(names: list[str]) -> list[Any]:
    held = [reserve(name=name) for name in names]
    ports = [reservation.port for reservation in held]
    labels = {entry.port: entry.service for entry in reserved_ports()}
    for reservation in held:
        reservation.release()
    return [ports, [port_of(name) for name in names], [labels[port] for port in ports]]


def test_any_text_is_a_name(run: Any) -> None:
    ports, again, labels = run(named_ports, NAMES)
    assert ports == again
    assert len({*ports}) == len(NAMES)
    assert labels[:-1] == NAMES[:-1]
    assert labels[-1].rstrip("…") == "w" * len(labels[-1][:-1])


def test_surrogates_are_text(run: Any) -> None:
    """As in the name of a folder that is not UTF-8."""
    ports, again, _ = run(named_ports, ["web\udcff", "web\udcfe", "web"])
    assert ports == again
    assert len({*ports}) == 3


@pytest.mark.parametrize("name", ["", "\0", "we\0b"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ValueError, match="name") as caught:
        reserve(name=name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [b"web", 1, ("web",)])
def test_names_of_bad_types(name: Any) -> None:
    with pytest.raises(TypeError, match="name") as caught:
        reserve(name=name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("arguments", [{"count": 1}, {"count": 3}, {"consecutive": True}])
def test_a_name_has_one_port(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="name"):
        reserve(name="web", **arguments)


# ---- while it is free -----------------------------------------------------------------------


def after_its_server() -> list[int]:
    with (
        reserve(name="web") as port,
        socket.create_server(("127.0.0.1", port)) as server,
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        server.accept()[0].close()  # first, so that TIME_WAIT is the server's
        client.recv(1)
    with contextlib.suppress(PortsExhausted):
        reserve(start=port, end=port).release()
        return []  # it was not in TIME_WAIT
    return [port, port_of("web")]


def test_time_wait_does_not_move_it(run: Any) -> None:
    port, again = run(after_its_server)
    assert again == port


def busy(how: str) -> list[Any]:
    own = port_of("web")
    log = Log()
    with contextlib.ExitStack() as stack:
        if how == "listener":
            stack.enter_context(socket.create_server(("127.0.20.4", own)))
            holder = 0
        elif how == "this process":
            stack.enter_context(reserve(name="web"))
            holder = os.getpid()
        else:
            process = stack.enter_context(named_holder("web"))
            assert port_said_by(process) == own
            holder = process.pid
        log.texts.clear()
        others = [port_of("web"), port_of("web")]
    # The port that it had meanwhile is not its own now.
    return [own, others, port_of("web"), holder, log.texts]


@pytest.mark.parametrize("how", ["listener", "this process", "another process"])
def test_while_it_is_not_free(run: Any, how: str) -> None:
    """It has another one, and the log says why."""
    own, (other, same), again, holder, texts = run(busy, how)
    assert again == own
    assert other == same != own
    why = f"pid {holder} holds" if holder else "is in use"
    moved = f"INFO 'web' wanted port {own}, which {why}, and has port {other}"
    assert texts == [moved, moved, f"INFO 'web' has port {own}"]


def at_once() -> list[int]:
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(named_holder("web")) for _ in range(8)]
        return [*map(port_said_by, processes), port_of("web")]


def test_many_that_ask_for_it_at_once(run: Any) -> None:
    *ports, another_one = run(at_once)
    assert len({*ports, another_one}) == 9
    assert run(ports_in, ["."], ["web"])[0][0] in ports


def garbage_in_the_way() -> list[int]:
    gc.disable()
    cycle: list[Any] = [reserve(name="web")]
    port = cycle[0].port
    cycle.append(cycle)
    del cycle
    warnings.simplefilter("ignore")
    with reserve(name="web") as collected, reserve(name="web") as moved:
        return [port, collected, moved]


def test_garbage_does_not_move_it(run: Any) -> None:
    port, collected, moved = run(garbage_in_the_way)
    assert port == collected
    assert moved != port


def crowded(names: str) -> list[Any]:
    log = Log()
    ports = [port_of(name, **RANGE) for name in names]
    with reserve(2, **RANGE) as unnamed:
        return [ports, sorted(unnamed), log.texts]


def test_what_others_had_comes_last(run: Any) -> None:
    """For names, and for those that ask without."""
    ports, unnamed, texts = run(crowded, "a")
    assert sorted([*ports, *unnamed]) == [7000, 7001, 7002]
    assert texts == [f"INFO 'a' has port {ports[0]}"]
    ports, unnamed, texts = run(crowded, "abcab")
    assert sorted(ports[:3]) == [7000, 7001, 7002]
    assert ports[3:] == ports[:2]  # each kept its own
    (last,) = run(crowded, "d")[0]
    assert last in ports


def few(names: str, ports: list[int]) -> list[Any]:
    edges = itertools.pairwise([0, *ports, 65531])
    isolated.set_sysctl(
        "net/ipv4/ip_local_reserved_ports",
        ",".join(f"{low + 1}-{high - 1}" for low, high in edges if high - low > 1),
    )
    isolated.set_sysctl("net/ipv4/ip_local_port_range", "65531 65535")
    log = Log()
    held = [reserve(name=name) for name in names]
    return [[reservation.port for reservation in held], log.texts]


def test_ports_are_fit(run: Any) -> None:
    """As for those that ask without a name."""
    ports, texts = run(few, "abc", [80, 5060, 7000, 7002, 10080])
    assert sorted(ports[:2]) == [7000, 7002]
    assert ports[2] in range(65531, 65536)
    (warning,) = (text for text in texts if text.startswith("WARNING "))
    assert "ephemeral" in warning
    assert str(ports[2]) in warning


# ---- lent to a child process --------------------------------------------------------------------


def lent(root: str) -> list[Any]:
    one, two = make_checkout(f"{root}/one"), make_checkout(f"{root}/two")
    os.chdir(one)
    mine = reserve(name="web")
    with named_holder("web") as one_child, named_holder("web") as other_child:
        two_ports = [port_said_by(one_child), port_said_by(other_child)]
    with named_holder("api") as api, named_holder("web", PORTMANAGER_PROJECT=two) as elsewhere:
        others = [port_said_by(api), port_said_by(elsewhere)]
    with named_holder("web") as child:
        last = port_said_by(child)
        mine.release()
        with pytest.raises(PortsExhausted) as caught:
            reserve(start=mine.port, end=mine.port)
        holder = caught.value.holders[0].pid == child.pid
    return [mine.port, two_ports, others, last, holder, port_of("web")]


def test_lent(run: Any, root: str) -> None:
    """To one child at a time, for the same name of the same checkout, as long as it lives."""
    mine, two_ports, others, last, holder, again = run(lent, root)
    assert mine in two_ports
    assert last == again == mine
    assert len({*two_ports, *others}) == 4
    assert holder


CHILD = """
import logging, sys
from portmanager import reserve
logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stdout)
if len(sys.argv) > 1:
    import subprocess
    print(reserve(name="web").port, flush=True)
    subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
else:
    print(reserve(name="web", start=65000).port)
    print(reserve(name="web").port)
"""


def lent_on() -> list[Any]:
    with reserve(name="web") as port:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, CHILD], check=True, stdout=subprocess.PIPE, text=True
        )
    return [port, done.stdout.splitlines()]


def test_lent_on(run: Any) -> None:
    """To a child's child; not where another range is asked for."""
    port, (first_text, first, _, second, third_text, third) = run(lent_on)
    text = f"INFO [PortManager] 'web' has port {port}, as in the process that started this one"
    assert first_text == third_text == text
    assert int(first) == int(third) == port
    assert int(second) >= 65000
