"""Subinterpreters, with the main one's GIL and with their own, and CPython without a GIL.

Everything runs in a process of its own, since a mistake here ends the process.
"""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import textwrap
from typing import Any

import pytest

FOREVER = 120.0  # seconds: longer than anything here takes, to fail instead of hanging

MODULES = ("_interpreters", "_xxsubinterpreters")
pytestmark = pytest.mark.skipif(
    not any(map(importlib.util.find_spec, MODULES)), reason="this Python has no subinterpreters"
)
KINDS = [
    "shared GIL",
    pytest.param(
        "own GIL",
        marks=pytest.mark.skipif(
            sys.version_info < (3, 12), reason="a GIL for each interpreter came with CPython 3.12"
        ),
    ),
]
without_gil = pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has a GIL"
)

# What every process and every subinterpreter begins with. The main interpreter imports asyncio
# and datetime first: early CPython 3.12 crashes after an extension of its own that a subinterpreter
# with its own GIL was the first to import.
COMMON = """
import gc, logging, os, sys, threading, time, weakref
from portmanager import *
import portmanager

logging.disable()  # or errors go to stderr

def finish(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value

def make(port=0, last=None, service="api", **options):
    manager = PortManager(PortManagerConfig(max_retries=0, **options))
    manager.port_configs = {service: PortConfig(service, port, (port, last) if last else None)}
    return manager

def allocate(manager, service="api"):
    return finish(manager.allocate_port(service))
"""

# Subinterpreters of a process, whichever CPython.
HARNESS = """
import json
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters

class Interpreter:
    def __init__(self, kind):
        if sys.version_info >= (3, 13):
            self.id = interpreters.create("isolated" if kind == "own GIL" else "legacy")
        else:
            self.id = interpreters.create(isolated=kind == "own GIL")
        self.run(common)

    def run(self, code, **values):
        assignments = "".join(f"{name} = {value!r}\\n" for name, value in values.items())
        failure = interpreters.run_string(self.id, assignments + textwrap.dedent(code))
        assert failure is None, failure

    def tell(self, code, **values):
        # What `answer` is set to, as JSON through a pipe.
        read, write = os.pipe()
        try:
            tell = f"import json\\nos.write({write}, json.dumps(answer).encode())"
            self.run(textwrap.dedent(code) + "\\n" + tell, **values)
            return json.loads(os.read(read, 65536))
        finally:
            os.close(read)
            os.close(write)

    def destroy(self):
        interpreters.destroy(self.id)
"""


def run(code: str, kind: str = "", *options: str) -> Any:
    """Run code in a process, and return what it prints as JSON."""
    path = f"import sys, textwrap\nsys.path[:] = {sys.path!r}\n"
    parts = [
        path,
        "import asyncio, datetime",
        COMMON,
        f"common = {path + COMMON!r}\nKIND = {kind!r}",
        HARNESS,
        code,
    ]
    script = "\n".join(textwrap.dedent(part) for part in parts)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *options, "-c", script],
        env={**os.environ, "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=FOREVER,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_works(kind: str, tmp_path: Any) -> None:
    code = """
    inner = '''
    import pickle, warnings
    manager = make(port_config_path=path)
    manager.port_configs = {"api": PortConfig("api", 0, required=True)}
    allocation = allocate(manager)
    port = allocation.allocated_port
    assert allocate(manager) is allocation
    assert manager.get_port("api") == port
    assert manager.get_environment_variables() == {"API_PORT": str(port)}
    assert finish(manager.is_port_available(port)) is True
    assert finish(manager.is_port_available(port, "localhost")) is True
    assert finish(manager.wait_for_port(port, 0)) is False
    assert finish(manager.find_available_port(port, port)) is None
    (status,) = finish(manager.get_port_status())
    assert (status.port, status.in_use) == (port, False)
    assert type(status.allocated_at).__name__ == "datetime"
    assert list(finish(manager.allocate_all_ports())) == ["api"]
    finish(manager.save_configuration())
    assert PortManager(PortManagerConfig(path)).port_configs["api"].required is True
    assert pickle.loads(pickle.dumps(allocation)) == allocation
    assert get_port_manager() is get_port_manager()
    for wrong in (lambda: manager.get_port(), lambda: PortConfig(1, 2, 3, 4, 5, 6)):
        try:
            wrong()
        except TypeError as error:
            assert "argument" in str(error), error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        manager.allocate_port("api")
        gc.collect()
    assert [str(warning.message) for warning in caught] == [
        "coroutine 'PortManager.allocate_port' was never awaited"
    ]
    finish(manager.cleanup())
    answer = [allocation.status, manager.get_allocated_ports()]
    '''
    interpreter = Interpreter(KIND)
    print(json.dumps(interpreter.tell(inner, path=sys.argv[1])))
    interpreter.destroy()
    """
    code = code.replace("sys.argv[1]", repr(str(tmp_path / "ports.json")))
    assert run(code, kind) == ["allocated", {}]


@pytest.mark.parametrize("kind", KINDS)
def test_with_asyncio(kind: str) -> None:
    if kind == "own GIL" and sys.version_info < (3, 13):
        pytest.skip("CPython 3.12 may crash after any asyncio.run() in such an interpreter")
    code = """
    inner = '''
    import asyncio
    manager = make()
    async def main():
        async def all_at_once():
            return await asyncio.gather(*(manager.allocate_port("api") for _ in range(5)))
        found = await asyncio.wait_for(all_at_once(), 60)
        assert await manager.wait_for_port(found[0].allocated_port, 0.01) is False
        return len(set(map(id, found)))
    answer = asyncio.run(main())
    '''
    asyncio.run(make().allocate_port("api"))
    told = []
    for _ in range(2):
        interpreter = Interpreter(KIND)
        told.append(interpreter.tell(inner))
        interpreter.destroy()
    print(json.dumps(told))
    """
    assert run(code, kind) == [1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_ports_are_the_process_s(kind: str) -> None:
    code = """
    interpreter, other = Interpreter(KIND), Interpreter(KIND)
    holder = make()
    port = allocate(holder).allocated_port
    take = '''
    manager = make(port)
    found = finish(manager.find_available_port(port, port))
    answer = [allocate(manager).status, found]
    '''
    refused = ["in_use", None]
    assert interpreter.tell(take, port=port) == refused
    holder.release_port("api")
    assert interpreter.tell(take, port=port) == ["allocated", port]
    assert allocate(make(port)).status == "in_use"
    assert finish(holder.find_available_port(port, port)) is None
    assert other.tell(take, port=port) == refused
    interpreter.run("manager.release_port('api')")
    assert other.tell(take, port=port) == ["allocated", port]
    # What an interpreter holds is given back when it ends.
    other.destroy()
    assert allocate(make(port)).status == "allocated"
    interpreter.destroy()
    print(json.dumps("done"))
    """
    assert run(code, kind) == "done"


@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_the_interpreter_s(kind: str) -> None:
    code = """
    interpreter = Interpreter(KIND)
    described = '''
    singleton = get_port_manager(PortManagerConfig(max_retries=retries))
    singleton.port_configs.clear()
    DEFAULT_PORT_CONFIGS[0].default_port += retries
    PortManager.mine = retries
    answer = [singleton.config.max_retries, DEFAULT_PORT_CONFIGS[0].default_port, PortManager.mine]
    '''
    there = interpreter.tell(described, retries=3)
    retries = 4
    exec(described)
    print(json.dumps([there, answer, len(get_port_manager().port_configs)]))
    interpreter.destroy()
    assert get_port_manager() is singleton and PortManager.mine == 4
    assert allocate(make()).status == "allocated"
    """
    assert run(code, kind) == [[3, 5179, 3], [4, 5180, 4], 0]


@pytest.mark.parametrize("kind", KINDS)
def test_in_parallel_threads_no_port_is_given_twice(kind: str, tmp_path: Any) -> None:
    code = """
    # Whoever has a port makes a file of its name, which nobody else can then.
    work = '''
    given = 0
    for turn in range(turns):
        manager = make(first, last)
        allocation = allocate(manager)
        if allocation.status == "allocated":
            path = os.path.join(folder, str(allocation.allocated_port))
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            given += 1
            if turn % 3:
                os.unlink(path)
                manager.release_port("api")
            else:
                os.unlink(path)
                del manager
    answer = given
    '''
    # Numbers of a range that is free, as any listener on them would only make fewer of them.
    probe = make()
    first = allocate(probe).allocated_port
    probe.release_port("api")
    values = dict(first=first, last=min(first + 7, 65535), turns=200, folder=folder)
    told, failures = [], []
    def work_there(interpreter):
        try:
            told.append(interpreter.tell(work, **values))
        except BaseException as error:
            failures.append(repr(error))
    workers = [Interpreter(KIND) for _ in range(4)]
    threads = [threading.Thread(target=work_there, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    exec(textwrap.dedent(work), {**globals(), **values})
    for thread in threads:
        thread.join()
    for worker in workers:
        worker.destroy()
    print(json.dumps([failures, len(told), all(told)]))
    """
    assert run(f"folder = {str(tmp_path)!r}\n" + textwrap.dedent(code), kind) == [[], 4, True]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_subinterpreter_may_be_the_first_to_import_it(kind: str) -> None:
    # Early CPython 3.12 crashes where `import datetime` comes first in one with its own GIL.
    code = f"""
    import json, sys, textwrap
    KIND, common = {kind!r}, {f"import sys; sys.path[:] = {sys.path!r}"!r}
    {textwrap.indent(HARNESS, "    ").strip()}
    for _ in range(3):
        interpreter = Interpreter(KIND)
        interpreter.run("from portmanager import PortManager; kept = PortManager()")
        interpreter.destroy()
    assert "portmanager" not in sys.modules
    print(json.dumps("done"))
    """
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=FOREVER, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, '"done"\n', "")


ENDS = {
    "live managers": "kept = [make() for _ in range(3)]; [allocate(manager) for manager in kept]",
    "the singleton": "get_port_manager().kept = portmanager",
    "a cycle": "manager = make(); allocate(manager); manager.me = [manager, sys, portmanager]",
    "a suspended coroutine": """
        class Never:
            def __await__(self):
                yield
        async def forever(port):
            await Never()
        manager = make()
        manager.is_port_available = forever
        sys.kept = manager.kept = manager.wait_for_port(1)
        manager.kept.send(None)
        """,
    "declarations": "str(PortManager.allocate_port.__doc__), repr(PortConfig.__dataclass_fields__)",
    "everywhere": "import builtins; sys.kept = builtins.kept = PortManager.kept = make()",
    "a name": "finish(make().is_port_available(1, 'localhost'))",
    "log records": """
        logging.disable(logging.NOTSET)
        logging.getLogger("portmanager").setLevel(logging.DEBUG)
        manager = make()
        allocate(manager)
        """,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ENDS)
def test_an_interpreter_ends_with(kind: str, what: str) -> None:
    code = """
    for _ in range(3):
        interpreter = Interpreter(KIND)
        interpreter.run(ENDS)
        interpreter.destroy()
    allocate(make())
    print(json.dumps("done"))
    """
    inner = textwrap.dedent(ENDS[what])
    assert run(f"ENDS = {inner!r}\n" + textwrap.dedent(code), kind) == "done"


@pytest.mark.parametrize("kind", KINDS)
def test_an_interpreter_that_is_left_ends_with_the_process(kind: str) -> None:
    if kind == "own GIL" or sys.version_info >= (3, 13):
        pytest.skip("CPython itself complains of subinterpreters that are left")
    code = """
    interpreter = Interpreter(KIND)
    interpreter.run("manager = make(); allocate(manager); manager.me = manager")
    print(json.dumps("done"))
    """
    assert run(code, kind) == "done"


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_come_and_go(kind: str) -> None:
    code = """
    import ctypes
    class Mallinfo(ctypes.Structure):
        names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
        mallinfo.restype = Mallinfo
    except (AttributeError, OSError):
        mallinfo = Mallinfo

    def measure():
        gc.collect()
        info = mallinfo()
        return info.uordblks + info.hblkhd, len(os.listdir("/dev/fd")), len(gc.get_objects())

    plain = f"import sys\\nsys.path[:] = {sys.path!r}\\nimport gc, os, threading, time, weakref"
    def life(code):
        global common
        before, common = common, plain
        interpreter = Interpreter(KIND)
        common = before
        interpreter.run(code)
        interpreter.destroy()

    ours = common + '''
    managers = [make() for _ in range(10)]
    ports = [allocate(manager).allocated_port for manager in managers]
    assert len(set(ports)) == 10
    managers[0].kept = managers[0].wait_for_port
    '''.replace("\\n    ", "\\n")
    grown = []
    for code in ("pass", ours):
        for _ in range(3):
            life(code)
        before = measure()
        for _ in range(20):
            life(code)
        grown.append([after - first for first, after in zip(before, measure())])
    print(json.dumps(grown))
    """
    plain, ours = run(code, kind)
    # CPython leaves something of each interpreter; ours must not leave a module's worth more.
    assert ours[0] - plain[0] < 20 * 16384, (plain, ours)
    assert ours[1] == plain[1] == 0
    assert ours[2] - plain[2] < 20, (plain, ours)


@pytest.mark.parametrize("kind", KINDS)
def test_many_import_it_at_once(kind: str) -> None:
    if kind == "own GIL" and sys.version_info < (3, 13):
        pytest.skip("this CPython crashes itself when two interpreters import json at once")
    code = """
    told, failures = [], []
    def live():
        try:
            for _ in range(3):
                interpreter = Interpreter(KIND)
                told.append(interpreter.tell("answer = allocate(make()).status"))
                interpreter.destroy()
        except BaseException as error:
            failures.append(repr(error))
    threads = [threading.Thread(target=live) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps([failures, told]))
    """
    assert run(code, kind) == [[], ["allocated"] * 12]


@pytest.mark.skipif(
    importlib.util.find_spec("concurrent.interpreters") is None,
    reason="concurrent.interpreters came with CPython 3.14",
)
def test_the_public_module() -> None:
    code = """
    from concurrent import interpreters as public
    interpreter = public.create()
    port = allocate(held := make()).allocated_port
    interpreter.exec(common + f'''
    assert allocate(make({port})).status == "in_use"
    '''.replace("\\n    ", "\\n"))
    interpreter.close()
    print(json.dumps("done"))
    """
    assert run(code) == "done"


# Without a GIL


@without_gil
def test_the_gil_stays_off() -> None:
    code = """
    states = [sys._is_gil_enabled()]
    manager = make()
    allocate(manager)
    manager.start_port_monitoring("api", 60.0)
    finish(manager.cleanup())
    import backend.services
    states.append(sys._is_gil_enabled())
    print(json.dumps(states))
    """
    assert run(code) == [False, False]


HAMMER = """
owners, failures, given = {}, [], [0] * 8
together = threading.Barrier(8)
shared = PortManager(PortManagerConfig(max_retries=0))
first = allocate(make()).allocated_port
names = [f"s{index}" for index in range(6)]
shared.port_configs = {name: PortConfig(name, first, (first, first + 9)) for name in names}

def take(owner, port):
    # dict.setdefault is atomic: of two owners one finds the other.
    assert owners.setdefault(port, owner) is owner, port

def drop(owner, port):
    assert owners.pop(port) is owner

def work_alone(index):
    for turn in range(TURNS):
        manager = make(first, first + 9)
        allocation = allocate(manager)
        if allocation.status == "allocated":
            take(manager, allocation.allocated_port)
            assert manager.get_port("api") == allocation.allocated_port
            given[index] += 1
            drop(manager, allocation.allocated_port)
            if turn % 2:
                manager.release_port("api")
            else:
                del manager

def work_together(index):
    for turn in range(TURNS):
        name = names[(index + turn) % len(names)]
        allocation = allocate(shared, name)
        ports = shared.get_allocated_ports()
        assert len(set(ports.values())) == len(ports), ports
        finish(shared.get_port_status())
        finish(shared.find_available_port(first, first + 9))
        shared.get_environment_variables()
        given[index] += allocation.status == "allocated"
        (shared.release_port(name) if turn % 7 else shared.release_all_ports())

def worker(index):
    try:
        together.wait()
        (work_alone if index % 2 else work_together)(index)
    except BaseException as error:
        failures.append(repr(error))

threads = [threading.Thread(target=worker, args=(index,)) for index in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
finish(shared.cleanup())
gc.collect()
# Everything was given back.
last = PortManager(PortManagerConfig(max_retries=0))
free = finish(last.find_available_port(first, first + 9))
print(json.dumps([failures, all(given), owners == {}, free == first]))
"""


def test_threads_hammer_and_no_port_is_given_twice() -> None:
    # Where there is no GIL they do so at once; where there is one, they take turns quickly.
    code = "sys.setswitchinterval(1e-5)\nTURNS = 150\n" + HAMMER
    assert run(code) == [[], True, True, True]


def test_threads_run_one_coroutine_once() -> None:
    code = """
    together = threading.Barrier(4)
    outcomes = []
    def run(coroutine):
        together.wait()
        try:
            coroutine.send(None)
        except StopIteration as stop:
            outcomes.append(stop.value.status)
        except (RuntimeError, ValueError) as error:
            outcomes.append(str(error))
    for _ in range(100):
        coroutine = make().allocate_port("api")
        threads = [threading.Thread(target=run, args=(coroutine,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    known = {"allocated", "cannot reuse already awaited coroutine", "coroutine already executing"}
    print(json.dumps([outcomes.count("allocated"), len(outcomes), set(outcomes) <= known]))
    """
    assert run(code) == [100, 400, True]
