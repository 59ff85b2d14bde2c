"""Real servers that restart their workers: they and their parents agree on the port."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from reserving import is_free

TIMEOUT = 30.0  # of whoever hangs

# What parent and child do alike: allocate, each by a manager of its own.
PORTS = """
import asyncio, os
from portmanager import PortConfig, PortManager

manager = PortManager()
manager.port_configs["api"] = PortConfig("api", {first}, ({first}, {last}))

async def say():
    allocation = await manager.allocate_port("api")
    return {{"pid": os.getpid(), "parent": os.getppid(), "port": allocation.allocated_port}}
"""


class Server:
    """A server in a session of its own, whose folder has its programs."""

    def __init__(self, folder: Path, port: int, *command: str) -> None:
        self.folder, self.port = folder, port
        self._touched = time.time()
        self._log = folder / "log"
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                cwd=folder,
                env={**os.environ, "HOME": str(folder), "PYTHONPATH": str(folder)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def end(self) -> None:
        """Kill it with all of its descendants."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def touch(self, name: str) -> None:
        """Make a file look changed; reloaders compare times, whose steps may be coarse."""
        self._touched += 10
        os.utime(self.folder / name, (self._touched, self._touched))

    def until(self, what: Callable[[], Any]) -> Any:
        """The first answer that is not None."""
        deadline = time.monotonic() + TIMEOUT
        while (answer := what()) is None:
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)
        return answer

    def ask_changed(self, name: str, *but: int) -> Any:
        """What a process other than those says, once a file looks changed.

        A reloader that has not looked yet takes the change for how things have always been, as
        uvicorn's does which first looks some time after its child began. So the file is touched
        again, ever more seldom, for a slow child must come to answer in between.
        """
        pause = 1.0
        due = time.monotonic()

        def touch() -> None:
            nonlocal due, pause
            if time.monotonic() >= due:
                self.touch(name)
                pause *= 2
                due = time.monotonic() + pause

        return self.ask(*but, first=touch)

    def kill_child(self) -> int:
        """Kill who answers, which a late restart may do before us."""

        def once() -> int | None:
            pid: int = self.ask()["pid"]
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                return None
            return pid

        killed: int = self.until(once)
        return killed

    def ask(self, *but: int, first: Callable[[], None] | None = None) -> Any:
        """What a process other than those says, as soon as it does; `first` is called before
        each question."""

        def once() -> Any:
            if first:
                first()
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.closing(connection):
                try:
                    connection.request("GET", "/")
                    text = connection.getresponse().read()
                except (OSError, http.client.HTTPException):
                    return None
            answer = json.loads(text)
            return None if answer["pid"] in but else answer

        answer = self.until(once)
        assert answer["port"] == self.port, answer
        return answer


@pytest.fixture
def ports(port_block: Callable[[int], int], tmp_path: Path) -> range:
    """The ports of the service; ports.py allocates one of them."""
    first = port_block(4)
    (tmp_path / "ports.py").write_text(PORTS.format(first=first, last=first + 3))
    return range(first, first + 4)


@pytest.fixture
def start(ports: range, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers in tmp_path, which end with the test."""
    with contextlib.ExitStack() as stack:

        def begin(*command: str) -> Server:
            server = Server(tmp_path, ports[0], *command)
            stack.callback(server.end)
            return server

        yield begin


# ---- uvicorn --------------------------------------------------------------------------------

# It imports the program in a loop that runs, so that is no place to allocate at.
ASGI = """
import json
from ports import say

async def app(scope, receive, send):
    said = json.dumps(await say()).encode()
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": said})
"""
# The parent of all allocates, and runs uvicorn in its own process, or as another one.
IN_THE_SAME = """
if __name__ == "__main__":
    import asyncio, uvicorn
    from ports import say

    port = asyncio.run(say())["port"]
    uvicorn.run("app:app", port=port, reload=True, reload_delay=0.1, lifespan="off")
"""
IN_ANOTHER = """
import asyncio, subprocess, sys
from ports import say

port = str(asyncio.run(say())["port"])
command = ["-m", "uvicorn", "app:app", "--port", port, "--lifespan", "off"]
sys.exit(subprocess.call([sys.executable, *command, "--reload", "--reload-delay", "0.1"]))
"""


@pytest.mark.parametrize("program", [IN_THE_SAME, IN_ANOTHER], ids=["run", "command"])
def test_uvicorn(start: Callable[..., Server], tmp_path: Path, ports: range, program: str) -> None:
    pytest.importorskip("uvicorn", reason="this is how uvicorn reloads")
    (tmp_path / "app.py").write_text(ASGI)
    (tmp_path / "main.py").write_text(program)
    server = start("main.py")
    first = server.ask()
    second = server.ask_changed("app.py", first["pid"])
    assert second["parent"] == first["parent"]
    # Whatever uvicorn thinks of that; it has listened all the while.
    killed = server.kill_child()
    third = server.ask_changed("app.py", first["pid"], second["pid"], killed)
    assert third["parent"] == first["parent"]
    assert server.process.poll() is None
    assert not is_free(ports[0])
    server.end()
    # The parent has been waited for, but its descendants may be dying still.
    server.until(lambda: is_free(ports[0]) or None)


# ---- Flask ----------------------------------------------------------------------------------

FLASK = """
import asyncio, flask
from ports import say

said = asyncio.run(say())
app = flask.Flask(__name__)

@app.get("/")
def answer():
    return flask.jsonify(said)

app.run(port=said["port"], use_reloader=True, reloader_interval=0.1)
"""


def test_flask(start: Callable[..., Server], tmp_path: Path, ports: range) -> None:
    pytest.importorskip("flask", reason="this is how Flask reloads")
    (tmp_path / "main.py").write_text(FLASK)
    server = start("main.py")
    answers = [server.ask()]
    for name in ("main.py", "ports.py"):
        answers.append(server.ask_changed(name, *(answer["pid"] for answer in answers)))
    assert {answer["parent"] for answer in answers} == {server.process.pid}
    assert not is_free(ports[0])
    # Flask's reloader ends when its child is killed.
    os.kill(answers[-1]["pid"], signal.SIGKILL)
    server.process.wait(TIMEOUT)
    assert is_free(ports[0])
    again = start("main.py")
    assert again.ask()["parent"] == again.process.pid


# ---- gunicorn -------------------------------------------------------------------------------

# The configuration is read in the master, at the start and at every HUP.
GUNICORN = """
import asyncio, json, os, pathlib
from portmanager import PortConfig, get_port_manager

manager = get_port_manager()
manager.port_configs["api"] = PortConfig("api", {first}, ({first}, {last}))
bind = "127.0.0.1:" + str(asyncio.run(manager.allocate_port("api")).allocated_port)
workers = 3
preload_app = {preload}
graceful_timeout = 5

def post_worker_init(worker):
    inherited = get_port_manager()
    said = [inherited.get_port("api"), asyncio.run(inherited.allocate_port("api")).allocated_port]
    path = pathlib.Path("workers", str(os.getpid()))
    path.with_suffix(".new").write_text(json.dumps(said))
    path.with_suffix(".new").rename(path)
"""
WSGI = """
import json, os
from portmanager import get_port_manager

loaded_with = get_port_manager().get_port("api")

def app(environ, start_response):
    port = get_port_manager().get_port("api")
    said = {"pid": os.getpid(), "parent": os.getppid(), "port": port, "loaded_with": loaded_with}
    start_response("200 OK", [])
    return [json.dumps(said).encode()]
"""


@pytest.mark.parametrize("preload", [False, True])
def test_gunicorn(
    start: Callable[..., Server], tmp_path: Path, ports: range, preload: bool
) -> None:
    pytest.importorskip("gunicorn", reason="this is how gunicorn starts workers")
    port, told = ports[0], tmp_path / "workers"
    told.mkdir()
    (tmp_path / "app.py").write_text(WSGI)
    configuration = GUNICORN.format(first=ports[0], last=ports[-1], preload=preload)
    (tmp_path / "gunicorn.conf.py").write_text(configuration)
    server = start("-m", "gunicorn", "app:app")

    def workers(count: int, *before: int) -> set[int]:
        """So many that are none of those; all say the master's port."""

        def once() -> set[int] | None:
            pids = {int(path.name) for path in told.iterdir() if path.name.isdigit()}
            return None if len(pids.difference(before)) < count else pids.difference(before)

        pids = server.until(once)
        assert all(json.loads((told / str(pid)).read_text()) == [port, port] for pid in pids)
        return {*pids}

    first = workers(3)
    answer = server.ask()
    assert answer["pid"] in first
    assert (answer["parent"], answer["loaded_with"]) == (server.process.pid, port)

    killed = min(first)
    os.kill(killed, signal.SIGKILL)
    (successor,) = workers(1, *first)
    assert server.ask(*(first - {killed}))["pid"] == successor

    server.process.send_signal(signal.SIGHUP)
    old = first | {successor}
    new = workers(3, *old)
    assert server.ask(*old)["pid"] in new
    assert server.process.poll() is None
    assert not is_free(port)

    server.process.terminate()
    server.process.wait(TIMEOUT)
    assert is_free(port)


# The master has a port, and each worker asks by a manager of its own.
GUNICORN_EACH = """
import asyncio, json, os, pathlib
from portmanager import PortConfig, PortManager

def allocate():
    manager = PortManager()
    manager.port_configs["api"] = PortConfig("api", {first}, ({first}, {last}))
    return manager, asyncio.run(manager.allocate_port("api")).allocated_port

def on_starting(server):
    server.holder, port = allocate()
    assert port == {first}, port

bind = "127.0.0.1:{first}"
workers = 2
graceful_timeout = 5

def post_worker_init(worker):
    worker.holder, port = allocate()
    path = pathlib.Path("workers", str(os.getpid()))
    path.with_suffix(".new").write_text(json.dumps(port))
    path.with_suffix(".new").rename(path)
"""
WSGI_EACH = """
import json, os

def app(environ, start_response):
    start_response("200 OK", [])
    # The socket is the master's, whatever port the worker has for itself.
    said = {"pid": os.getpid(), "port": int(environ["SERVER_PORT"])}
    return [json.dumps(said).encode()]
"""


def test_gunicorn_workers_that_allocate(
    start: Callable[..., Server], tmp_path: Path, ports: range
) -> None:
    """One is lent the master's port, and its successor after it; others get their own."""
    pytest.importorskip("gunicorn", reason="this is how gunicorn starts workers")
    told = tmp_path / "workers"
    told.mkdir()
    (tmp_path / "app.py").write_text(WSGI_EACH)
    configuration = GUNICORN_EACH.format(first=ports[0], last=ports[-1])
    (tmp_path / "gunicorn.conf.py").write_text(configuration)
    server = start("-m", "gunicorn", "app:app")

    def workers(count: int, *before: int) -> dict[int, int]:
        """The ports of so many that are none of those, by pid."""

        def once() -> dict[int, int] | None:
            paths = [path for path in told.iterdir() if path.name.isdigit()]
            new = [path for path in paths if int(path.name) not in before]
            if len(new) < count:
                return None
            return {int(path.name): json.loads(path.read_text()) for path in new}

        found: dict[int, int] = server.until(once)
        return found

    living = workers(2)
    assert sorted(living.values()) == [ports[0], ports[1]]
    assert server.ask()["pid"] in living
    ended: list[int] = []
    # The heir first, then the other one: whoever comes next takes what has become free.
    for port in ports[:2]:
        (pid,) = (pid for pid in living if living[pid] == port)
        os.kill(pid, signal.SIGKILL)
        ended.append(pid)
        living = {pid: living[pid] for pid in living if pid not in ended}
        living.update(workers(1, *living, *ended))
        assert sorted(living.values()) == [ports[0], ports[1]]

    server.process.send_signal(signal.SIGHUP)
    new = workers(2, *living, *ended)
    assert len({*new.values()}) == 2
    assert {*new.values()} <= {*ports}
    assert server.ask(*living, *ended)["pid"] in new
    assert server.process.poll() is None
    assert not is_free(ports[0])

    server.process.terminate()
    server.process.wait(TIMEOUT)
    # The last workers may be dying still.
    server.until(lambda: all(map(is_free, ports)) or None)
