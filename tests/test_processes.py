"""Reservations between processes: who is refused, who is lent a port, and what ends a hold."""

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from comparing import finish
from reserving import is_free

from portmanager import PortManager, reserved_ports

TIMEOUT = 60.0  # of whoever hangs

# What a process of ours runs: it connects to the test and does as it is told. As text, so that
# forked, spawned and exec'd processes can all have it without importing a test module.
AGENT = """
import asyncio, json, multiprocessing, os, signal, socket, subprocess, sys, traceback
from portmanager import PortConfig, PortManager, PortManagerConfig, reserve, reserved_ports

children, kept = [], []
connections = []


def new_manager(*configs, cls=PortManager):
    manager = cls(PortManagerConfig(max_retries=0))
    manager.port_configs = {config[0]: PortConfig(*config) for config in configs}
    return manager


def allocate(manager, service="api"):
    allocation = asyncio.run(manager.allocate_port(service))
    return [allocation.allocated_port, allocation.status, allocation.message]


def popen(name):
    children.append(subprocess.Popen([sys.executable, "-c", AGENT, name]))


def fork(name):
    if not os.fork():
        # The parent's end of its own connection would live on in us.
        os.close(connections.pop().detach())
        serve(name)
        os._exit(0)


def processes(name, method):
    context = multiprocessing.get_context(method)
    arguments = (AGENT, {"__name__": "agent", "NAME": name, "AGENT": AGENT})
    # An agent that is killed must not be waited for at exit.
    children.append(context.Process(target=exec, args=arguments, daemon=True))
    children[-1].start()


def again(name):
    os.execv(sys.executable, [sys.executable, "-c", AGENT, name])


def serve(name):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect("\\0" + name)
    connections.append(connection)
    with connection.makefile("rw") as stream:
        for line in stream:
            code = json.loads(line)
            try:
                try:
                    answer = eval(compile(code, "told", "eval"), globals())
                except SyntaxError:
                    answer = exec(compile(code, "told", "exec"), globals())
                reply = {"answer": answer}
            except Exception:
                reply = {"error": traceback.format_exc()}
            stream.write(json.dumps(reply) + "\\n")
            stream.flush()


if "NAME" not in globals():
    NAME = sys.argv[1]
    AGENT = sys.orig_argv[sys.orig_argv.index("-c") + 1]
serve(NAME)
"""


class Agent:
    """A process that does as it is told."""

    def __init__(self, connection: socket.socket) -> None:
        pid, _, _ = struct.unpack(
            "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        )
        self.pid: int = pid
        self._pidfd = os.pidfd_open(pid)
        connection.settimeout(TIMEOUT)
        self._connection = connection
        self._stream = connection.makefile("rw")

    def tell(self, code: str) -> None:
        """Begin; the answer is read by `hear`."""
        self._stream.write(json.dumps(code) + "\n")
        self._stream.flush()

    def hear(self) -> Any:
        line = self._stream.readline()
        assert line, f"process {self.pid} has ended"
        reply = json.loads(line)
        assert "error" not in reply, reply["error"]
        return reply["answer"]

    def __call__(self, code: str) -> Any:
        """The value of an expression, or None of statements."""
        self.tell(code)
        return self.hear()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def gone(self) -> None:
        """Wait for its end; it need not have been reaped."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        assert poll.poll(TIMEOUT * 1000), f"process {self.pid} lives on"

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.gone()

    def exit(self) -> None:
        """A normal end."""
        self.tell("sys.exit()")
        self.gone()

    def close(self) -> None:
        self.kill()
        for closing in (self._stream.close, self._connection.close):
            with contextlib.suppress(OSError):  # it may have been told what it did not hear
                closing()
        os.close(self._pidfd)


class Stage:
    """Starts agents, and ends them all."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.bind("")  # an abstract name that the kernel finds
        self._listener.listen()
        self._listener.settimeout(TIMEOUT)
        self.name = self._listener.getsockname()[1:].decode()

    def __call__(self, env: dict[str, str] | None = None) -> Agent:
        """One more child of the test's process."""
        command = [sys.executable, "-c", AGENT, self.name]
        process = subprocess.Popen(
            command, env={**os.environ, **(env or {})}, start_new_session=True
        )

        def end() -> None:
            # With all that it started: the workers of a pool do not notice that it is gone.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

        self._stack.callback(end)
        return self.come()

    def by(self, parent: Agent, how: str = "popen") -> Agent:
        """A child of an agent."""
        if how in {"popen", "fork"}:
            parent(f"{how}({self.name!r})")
        else:
            parent(f"processes({self.name!r}, {how!r})")
        return self.come()

    def exec(self, agent: Agent) -> Agent:
        """The same process with another program."""
        agent.tell(f"again({self.name!r})")
        return self.come()

    def come(self) -> Agent:
        """Whoever connects next."""
        agent = Agent(self._listener.accept()[0])
        self._stack.callback(agent.close)
        return agent


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Starts processes that end with the test."""
    with contextlib.ExitStack() as stack:
        yield Stage(stack)


def result(port: int, message: str) -> list[Any]:
    return [port, "allocated" if port else "in_use", message]


def default(port: int) -> list[Any]:
    return result(port, f"Allocated default port {port}")


def alternative(wanted: int, port: int) -> list[Any]:
    text = f"Default port {wanted} was in use. Allocated alternative port {port}"
    return result(port, text)


def refused(port: int) -> list[Any]:
    return result(0, f"Port {port} is in use and no alternatives available")


def ask(agent: Agent, *config: Any) -> list[Any]:
    """What a new manager of that process, which it keeps, answers for one service."""
    agent(f"manager = new_manager({config!r}); kept.append(manager)")
    answer: list[Any] = agent(f"allocate(manager, {config[0]!r})")
    return answer


def generations(stage: "Stage", port: int, count: int) -> list[Agent]:
    """Agents, each started by the one before, that share a port for one service."""
    family: list[Agent] = []
    for _ in range(count):
        family.append(stage.by(family[-1]) if family else stage())
        assert ask(family[-1], "api", port) == default(port)
    return family


def holder_of(port: int) -> int | None:
    (held,) = (held for held in reserved_ports() if held.port == port)
    return held.pid


# ---- who is refused -------------------------------------------------------------------------


def test_ten_at_once(stage: Stage, port_block: Callable[[int], int]) -> None:
    first = port_block(10)
    agents = [stage() for _ in range(10)]
    config = ("api", first, (first, first + 9))
    for agent in agents:
        agent(f"manager = new_manager({config!r})")
    for agent in agents:
        agent.tell("allocate(manager)")
    answers = [agent.hear() for agent in agents]
    assert sorted(port for port, _, _ in answers) == [*range(first, first + 10)]
    assert {status for _, status, _ in answers} == {"allocated"}
    assert ask(stage(), *config) == refused(first)


def test_search_passes_over_what_others_hold(
    stage: Stage, port_block: Callable[[int], int]
) -> None:
    first = port_block(3)
    agents = [stage() for _ in range(2)]
    for number, agent in enumerate(agents):
        assert ask(agent, "api", first + number) == default(first + number)
    manager = PortManager()
    assert finish(manager.find_available_port(first, first + 2)) == first + 2
    assert finish(manager.find_available_port(first, first + 1)) is None
    agents[1].kill()
    assert finish(manager.find_available_port(first, first + 1)) == first + 1


def test_ledger_of_each_process(stage: Stage, free_port: int) -> None:
    agents = [stage({"PORTMANAGER_LEDGER": "process"}) for _ in range(2)]
    agents.append(stage.by(agents[0], "fork"))
    for agent in agents:
        assert ask(agent, "api", free_port) == default(free_port)
        assert ask(agent, "other", free_port) == refused(free_port)
    assert is_free(free_port)


# ---- what ends a hold, and what does not ----------------------------------------------------


@pytest.mark.parametrize("end", ["kill", "exit", "sys.exit(1)", "os._exit(1)", "os.abort()"])
def test_end_of_a_process(stage: Stage, free_port: int, end: str) -> None:
    agent = stage()
    assert ask(agent, "api", free_port) == default(free_port)
    assert not is_free(free_port)
    assert holder_of(free_port) == agent.pid
    if "." in end:
        agent("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))")
        agent.tell(end)
        agent.gone()
    else:
        getattr(agent, end)()
    assert is_free(free_port)


def test_exec(stage: Stage, free_port: int) -> None:
    """The new program is another one, though its pid is the same."""
    agent = stage()
    assert ask(agent, "api", free_port) == default(free_port)
    successor = stage.exec(agent)
    assert successor.pid == agent.pid
    assert is_free(free_port)
    assert ask(successor, "other", free_port) == default(free_port)
    assert not is_free(free_port)


def test_stopped_process(stage: Stage, free_port: int) -> None:
    agent = stage()
    assert ask(agent, "api", free_port) == default(free_port)
    agent.signal(signal.SIGSTOP)
    deadline = time.monotonic() + TIMEOUT
    while Path(f"/proc/{agent.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not is_free(free_port)
    assert holder_of(free_port) == agent.pid
    agent.kill()
    assert is_free(free_port)


def close_all_but_the_connection(agent: Agent) -> None:
    agent("os.closerange(3, connections[0].fileno())")
    agent("os.closerange(connections[0].fileno() + 1, 65536)")


def test_descriptors_closed_by_force(stage: Stage, port_block: Callable[[int], int]) -> None:
    """As a daemon does that wants a clean start."""
    first = port_block(2)
    agent = stage()
    assert ask(agent, "api", first) == default(first)
    close_all_but_the_connection(agent)
    assert not is_free(first)
    assert ask(agent, "other", first + 1) == default(first + 1)
    assert not is_free(first)
    assert not is_free(first + 1)
    agent("manager.release_port('other')")
    assert is_free(first + 1)
    agent.kill()
    assert is_free(first)


def test_descriptors_closed_by_force_and_nothing_asked_since(stage: Stage, free_port: int) -> None:
    agent = stage()
    assert ask(agent, "api", free_port) == default(free_port)
    close_all_but_the_connection(agent)
    for _ in range(3):
        assert not is_free(free_port)
    agent.kill()
    assert is_free(free_port)


# ---- children that inherit a manager --------------------------------------------------------


@pytest.mark.parametrize("lent", [False, True])
def test_inherited_manager(stage: Stage, port_block: Callable[[int], int], lent: bool) -> None:
    """It answers as the parent's, and so does it if the parent's port was lent already."""
    first = port_block(2)
    parent = stage()
    parent(f"manager = new_manager(('api', {first}, ({first}, {first + 1})))")
    assert parent("allocate(manager)") == default(first)
    if lent:
        assert ask(stage.by(parent), "api", first) == default(first)
    child = stage.by(parent, "fork")
    assert child("manager.get_port('api')") == first
    assert child("allocate(manager)") == default(first)
    assert child("manager.get_allocated_ports()") == {"api": first}
    assert child("manager.get_environment_variables()") == {"API_PORT": str(first)}
    assert holder_of(first) == parent.pid
    assert not is_free(first)


@pytest.mark.parametrize(
    "code",
    [
        "manager.release_port('api')",
        "manager.release_all_ports()",
        "asyncio.run(manager.cleanup())",
        "del manager; import gc; gc.collect()",
        "manager.allocated_ports.clear()",
        "manager.release_port('api'); allocate(manager); manager.release_port('api')",
    ],
)
@pytest.mark.parametrize("ending", ["exit", "kill"])
def test_forked_child_gives_nothing_back(
    stage: Stage, free_port: int, code: str, ending: str
) -> None:
    parent = stage()
    parent(f"manager = new_manager(('api', {free_port}))")
    assert parent("allocate(manager)") == default(free_port)
    child = stage.by(parent, "fork")
    child(code)
    assert not is_free(free_port)
    assert parent("manager.get_port('api')") == free_port
    getattr(child, ending)()
    assert not is_free(free_port)
    assert holder_of(free_port) == parent.pid
    parent("manager.release_port('api')")
    assert is_free(free_port)


def test_forked_child_does_not_keep_it(stage: Stage, free_port: int) -> None:
    """A copy of a manager that was not asked for anything is no hold."""
    parent = stage()
    parent(f"manager = new_manager(('api', {free_port}))")
    parent("allocate(manager)")
    child = stage.by(parent, "fork")
    assert child("manager.get_port('api')") == free_port
    parent.kill()
    assert is_free(free_port)
    child("1")


def test_forked_child_has_holds_of_its_own(stage: Stage, port_block: Callable[[int], int]) -> None:
    first = port_block(2)
    parent = stage()
    parent(f"manager = new_manager(('api', {first}), ('web', {first + 1}))")
    parent("allocate(manager)")
    child = stage.by(parent, "fork")
    assert child("allocate(manager, 'web')") == default(first + 1)
    assert holder_of(first + 1) == child.pid
    assert parent("allocate(manager, 'web')") == refused(first + 1)
    parent.kill()
    assert not is_free(first + 1)
    child.kill()
    assert is_free(first + 1)


# ---- lending ----------------------------------------------------------------------------------

METHODS = ["popen", "fork", "forkserver", "spawn"]


@pytest.mark.parametrize("how", METHODS)
def test_child_is_lent_the_port(stage: Stage, port_block: Callable[[int], int], how: str) -> None:
    first = port_block(3)
    service, ports = "api", (first, first + 2)
    parent = stage()
    assert ask(parent, service, first, ports) == default(first)
    child = stage.by(parent, how)
    assert ask(child, "other", first, ports) == alternative(first, first + 1)
    assert ask(child, service, first, ports) == default(first)
    assert not is_free(first)
    child.exit()
    assert not is_free(first)
    assert is_free(first + 1)
    assert parent("manager.get_port('api')") == first


@pytest.mark.parametrize("how", METHODS)
def test_child_is_lent_an_alternative(
    stage: Stage, port_block: Callable[[int], int], how: str
) -> None:
    """The parent's port comes before a default that is free by now."""
    first = port_block(3)
    config = ("api", first, (first, first + 2))
    parent = stage()
    with socket.create_server(("127.0.0.1", first)):
        assert ask(parent, *config) == alternative(first, first + 1)
    child = stage.by(parent, how)
    assert ask(child, *config)[:2] == [first + 1, "allocated"]


@pytest.mark.parametrize("ending", ["exit", "kill"])
@pytest.mark.parametrize("how", ["popen", "fork"])
def test_restarts(stage: Stage, port_block: Callable[[int], int], ending: str, how: str) -> None:
    """A launcher, a reloader, and the program that it starts again and again."""
    first = port_block(3)
    config = ("api", first, (first, first + 2))
    launcher = stage()
    assert ask(launcher, *config) == default(first)
    reloader = stage.by(launcher, how)
    for asks in (True, False):
        if asks:
            assert ask(reloader, *config) == default(first)
        for _ in range(3):
            child = stage.by(reloader, how)
            assert ask(child, *config) == default(first)
            assert not is_free(first)
            getattr(child, ending)()
            assert not is_free(first)
    assert holder_of(first) == launcher.pid


@pytest.mark.parametrize("ending", ["exit", "kill"])
def test_launcher_whose_reloader_does_not_ask(
    stage: Stage, port_block: Callable[[int], int], ending: str
) -> None:
    first = port_block(3)
    config = ("api", first, (first, first + 2))
    launcher = stage()
    assert ask(launcher, *config) == default(first)
    reloader = stage.by(launcher)
    for _ in range(3):
        child = stage.by(reloader)
        assert ask(child, *config) == default(first)
        getattr(child, ending)()


def test_one_heir_at_a_time(stage: Stage, port_block: Callable[[int], int]) -> None:
    first = port_block(4)
    config = ("api", first, (first, first + 3))
    parent = stage()
    assert ask(parent, *config) == default(first)
    heir, second = stage.by(parent), stage.by(parent)
    assert ask(heir, *config) == default(first)
    assert ask(second, *config) == alternative(first, first + 1)
    heir.kill()
    third = stage.by(parent)
    assert ask(third, *config) == default(first)
    third.exit()
    second("manager.release_all_ports()")
    assert ask(second, *config) == default(first)


def test_heir_that_gives_it_back(stage: Stage, free_port: int) -> None:
    parent = stage()
    assert ask(parent, "api", free_port) == default(free_port)
    heir, second = stage.by(parent), stage.by(parent)
    assert ask(heir, "api", free_port) == default(free_port)
    assert ask(second, "api", free_port) == refused(free_port)
    heir("manager.release_port('api')")
    assert not is_free(free_port)
    assert ask(second, "api", free_port) == default(free_port)
    assert ask(heir, "api", free_port) == refused(free_port)


@pytest.mark.parametrize("ending", ["exit", "kill", "release"])
def test_heir_outlives_the_owner(stage: Stage, free_port: int, ending: str) -> None:
    parent = stage()
    assert ask(parent, "api", free_port) == default(free_port)
    heir = stage.by(parent)
    assert ask(heir, "api", free_port) == default(free_port)
    if ending == "release":
        parent("manager.release_port('api')")
    else:
        getattr(parent, ending)()
    assert not is_free(free_port)
    assert ask(stage(), "api", free_port) == refused(free_port)
    assert heir("manager.get_port('api')") == free_port
    heir.kill()
    assert is_free(free_port)


@pytest.mark.parametrize("ending", ["exit", "kill"])
@pytest.mark.parametrize("how", ["popen", "fork"])
def test_heir_of_an_heir(stage: Stage, free_port: int, ending: str, how: str) -> None:
    """A reloader whose launcher was killed lends on, and holds the port when its child is gone."""
    launcher, reloader = generations(stage, free_port, 2)
    launcher.kill()
    for _ in range(3):
        child = stage.by(reloader, how)
        assert ask(child, "api", free_port) == default(free_port)
        assert ask(stage(), "api", free_port) == refused(free_port)
        getattr(child, ending)()
        assert reloader("manager.get_port('api')") == free_port
        assert not is_free(free_port)
    reloader.kill()
    assert is_free(free_port)


def test_child_that_lives_on(stage: Stage, free_port: int) -> None:
    """The program of a reloader that was killed keeps the port, and who starts anew is refused."""
    launcher, reloader, child = generations(stage, free_port, 3)
    reloader.kill()
    second = stage.by(launcher)
    assert ask(second, "api", free_port) == refused(free_port)
    launcher.kill()
    assert not is_free(free_port)
    assert ask(second, "api", free_port) == refused(free_port)
    child.kill()
    assert ask(second, "api", free_port) == default(free_port)


def test_both_end(stage: Stage, free_port: int) -> None:
    parent = stage()
    assert ask(parent, "api", free_port) == default(free_port)
    heir = stage.by(parent)
    assert ask(heir, "api", free_port) == default(free_port)
    heir.kill()
    assert not is_free(free_port)
    parent.kill()
    assert is_free(free_port)


def test_what_is_not_lent(stage: Stage, port_block: Callable[[int], int]) -> None:
    """Nothing to strangers and siblings, to other services, and outside the configuration."""
    first = port_block(3)
    parent = stage()
    assert ask(parent, "api", first) == default(first)
    child = stage.by(parent)
    assert ask(child, "API", first) == refused(first)
    assert ask(child, "api ", first) == refused(first)
    assert ask(child, "api", first + 1, (first + 1, first + 2)) == default(first + 1)
    assert ask(stage(), "api", first) == refused(first)
    assert not is_free(first)


def test_nothing_is_lent_upwards_or_sideways(
    stage: Stage, port_block: Callable[[int], int]
) -> None:
    first = port_block(2)
    config = ("api", first, (first, first + 1))
    parent = stage()
    child, sibling = stage.by(parent), stage.by(parent)
    assert ask(child, *config) == default(first)
    assert ask(sibling, "api", first) == refused(first)
    assert ask(parent, *config) == alternative(first, first + 1)


def test_any_port_is_lent(stage: Stage) -> None:
    """A default_port of 0 is whatever port the parent has."""
    parent = stage()
    port, status, _ = ask(parent, "api", 0)
    assert status == "allocated"
    for how in METHODS:
        child = stage.by(parent, how)
        assert ask(child, "api", 0)[:2] == [port, "allocated"]
        assert ask(child, "other", 0)[0] not in {0, port}
        child.kill()


def test_override_is_not_asked_about_a_lent_port(
    stage: Stage, port_block: Callable[[int], int]
) -> None:
    """The parent's own server may listen there, which such a method would find."""
    first = port_block(2)
    parent = stage()
    assert ask(parent, "api", first) == default(first)
    child = stage.by(parent)
    child(
        """
asked = []
class Careful(PortManager):
    async def is_port_available(self, port, host="127.0.0.1"):
        asked.append(port)
        return False
"""
    )
    child(f"manager = new_manager(('api', {first}), ('web', {first + 1}), cls=Careful)")
    assert child("allocate(manager)") == default(first)
    assert child("asked") == []
    assert child("allocate(manager, 'web')") == refused(first + 1)
    assert child("asked") == [first + 1]


def test_lent_though_a_server_listens(stage: Stage, free_port: int) -> None:
    """Of the parent's, as gunicorn's: what it has bound is for its children."""
    parent = stage()
    assert ask(parent, "api", free_port) == default(free_port)
    parent(f"server = socket.create_server(('127.0.0.1', {free_port}))")
    child = stage.by(parent)
    assert ask(child, "api", free_port) == default(free_port)


@pytest.mark.parametrize("ending", ["exit", "kill", "release"])
def test_heir_that_lent_on_outlives_both(stage: Stage, free_port: int, ending: str) -> None:
    """A reloader between its launcher and its child has the port, and is what remains of them."""
    launcher, reloader, child = generations(stage, free_port, 3)
    if ending == "release":
        launcher("manager.release_port('api')")
    else:
        getattr(launcher, ending)()
    child.kill()
    assert reloader("manager.get_port('api')") == free_port
    assert ask(stage(), "api", free_port) == refused(free_port)
    reloader.kill()
    assert is_free(free_port)


@pytest.mark.parametrize("ending", ["exit", "kill"])
def test_sibling_of_an_heir_that_lent_on(stage: Stage, free_port: int, ending: str) -> None:
    """The first heir lives, and says still that it has the port, so nobody else is lent it."""
    launcher, _reloader, child = generations(stage, free_port, 3)
    sibling = stage.by(launcher)
    getattr(child, ending)()
    assert ask(sibling, "api", free_port) == refused(free_port)


def test_heir_lends_on_when_its_launcher_has_exited(stage: Stage, free_port: int) -> None:
    launcher, reloader = generations(stage, free_port, 2)
    launcher.exit()
    assert ask(stage.by(reloader), "api", free_port) == default(free_port)


# ---- pools, daemons, threads ----------------------------------------------------------------

# What a worker of a pool runs; `eval` is a function that every worker can find.
IN_POOL = """
import asyncio, builtins
from portmanager import PortConfig, PortManager, PortManagerConfig

manager = PortManager(PortManagerConfig(max_retries=0))
manager.port_configs = {config[0]: PortConfig(*config)}
allocation = asyncio.run(manager.allocate_port(config[0]))
builtins.kept = manager  # as long as the worker lives
said = [allocation.allocated_port, allocation.status, allocation.message]
"""


@pytest.mark.parametrize("how", ["fork", "forkserver", "spawn"])
def test_process_pool(stage: Stage, port_block: Callable[[int], int], how: str) -> None:
    """A pool's worker is an heir as any child is; of two, one is. Pools of one, so that it is
    known which worker does what."""
    first = port_block(3)
    config = ("api", first, (first, first + 2))
    parent = stage()
    assert ask(parent, *config) == default(first)
    parent("from concurrent.futures import ProcessPoolExecutor as Pool")
    parent(f"make = lambda: Pool(1, multiprocessing.get_context({how!r}))")
    parent(f"given = {{'code': {IN_POOL!r}, 'config': {config!r}}}")
    parent("work = lambda pool: pool.submit(eval, 'exec(code) or said', given).result()")
    parent("one, two = make(), make()")
    assert parent("work(one)") == default(first)
    assert parent("work(two)") == alternative(first, first + 1)
    parent("one.shutdown()")
    assert not is_free(first)
    parent("one = make()")
    assert parent("work(one)") == default(first)
    parent(
        """
from concurrent.futures.process import BrokenProcessPool
dying = one.submit(eval, "__import__('os').kill(__import__('os').getpid(), 9)")
try:
    dying.result()
except BrokenProcessPool:
    pass
one.shutdown()
one = make()
"""
    )
    assert parent("work(one)") == default(first)
    parent("one.shutdown(); two.shutdown()")
    assert holder_of(first) == parent.pid
    assert is_free(first + 1)


def daemon_of(stage: Stage, agent: Agent) -> Agent:
    """A process that has left the agent by forking twice."""
    agent(
        f"""
def daemonize(name):
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    os.setsid()
    if os.fork():
        os._exit(0)
    os.close(connections.pop().detach())
    serve(name)
    os._exit(0)

daemonize({stage.name!r})
"""
    )
    return stage.come()


def test_daemon(stage: Stage, port_block: Callable[[int], int]) -> None:
    """It forks first and allocates then; whoever started it may end."""
    first = port_block(2)
    starter = stage()
    starter(f"manager = new_manager(('api', {first}))")
    daemon = daemon_of(stage, starter)
    assert daemon("allocate(manager)") == default(first)
    assert holder_of(first) == daemon.pid
    starter.exit()
    assert not is_free(first)
    assert ask(stage.by(daemon), "api", first) == default(first)
    daemon("manager.release_port('api')")
    daemon("[child.kill() or child.wait() for child in children]")
    assert is_free(first)
    assert daemon("allocate(manager)") == default(first)
    daemon.kill()
    assert is_free(first)


def test_daemon_is_no_descendant(stage: Stage, port_block: Callable[[int], int]) -> None:
    """Its parents have changed, so it is lent nothing and gets a port of its own."""
    first = port_block(2)
    config = ("api", first, (first, first + 1))
    starter = stage()
    assert ask(starter, *config) == default(first)
    daemon = daemon_of(stage, starter)
    assert ask(daemon, *config) == alternative(first, first + 1)
    starter.kill()
    assert is_free(first)
    assert not is_free(first + 1)


def test_threads_of_two_processes(stage: Stage, port_block: Callable[[int], int]) -> None:
    threads = 6
    first = port_block(2 * threads)
    agents = [stage() for _ in range(2)]
    for agent in agents:
        agent(
            f"""
import threading
config = ("api", {first}, ({first}, {first + 2 * threads - 1}))
managers = [new_manager(config) for _ in range({threads})]

def at_once():
    barrier, found = threading.Barrier({threads}), []
    def work(manager):
        barrier.wait()
        found.append(allocate(manager)[0])
    workers = [threading.Thread(target=work, args=(manager,)) for manager in managers]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    return found
"""
        )
    for _ in range(5):
        for agent in agents:
            agent.tell("at_once()")
        found = [port for agent in agents for port in agent.hear()]
        assert sorted(found) == [*range(first, first + 2 * threads)]
        for agent in agents:
            agent("[manager.release_all_ports() for manager in managers]")
