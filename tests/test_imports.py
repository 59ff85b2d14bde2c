"""Where the names are found, beside whatever else a host application calls ``backend``."""

import email.parser
import fcntl
import importlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import backend.services
import backend.services.port_manager
import portmanager

ROOT = Path(__file__).parents[1]
FOREVER = 120.0  # seconds: longer than anything here takes, to fail instead of hanging
NAMES = (
    "PortManager",
    "PortConfig",
    "PortAllocation",
    "PortStatus",
    "PortManagerConfig",
    "get_port_manager",
)
MODULE_NAMES = (*NAMES, "DEFAULT_PORT_CONFIGS")

# What an import must not cost, unless the interpreter has it already.
HEAVY = (
    "asyncio",
    "logging",
    "typing",
    "dataclasses",
    "json",
    "socket",
    "datetime",
    "_datetime",
    "pkgutil",
    "re",
    "inspect",
    "threading",
    "portmanager._monitor",
    "portmanager._config_file",
    "portmanager._declarations",
)


def run(code: str, *options: str, **environment: str) -> Any:
    """Run code in a Python that takes warnings for errors, and return what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *options, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        cwd=sys.prefix,  # where no package of ours is, whatever Python puts on its path
        capture_output=True,
        text=True,
        timeout=FOREVER,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def write(root: Path, files: dict[str, str]) -> Path:
    """Write files, by path below root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what an installer puts into site-packages."""
    site = tmp_path_factory.mktemp("site")
    package = Path(portmanager.__file__).parent
    shutil.copytree(package, site / "portmanager", ignore=shutil.ignore_patterns("__pycache__"))
    services = site / "backend" / "services"
    services.mkdir(parents=True)
    for module in (backend.services, backend.services.port_manager):
        assert module.__file__ is not None
        shutil.copy(module.__file__, services)
    return site


# The names


@pytest.mark.parametrize("name", MODULE_NAMES)
def test_all_paths_lead_to_the_same_object(name: str) -> None:
    ours = getattr(portmanager, name)
    assert getattr(backend.services.port_manager, name) is ours
    if name in NAMES:
        assert getattr(backend.services, name) is ours


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("portmanager", MODULE_NAMES),
        ("backend.services", NAMES),
        ("backend.services.port_manager", MODULE_NAMES),
    ],
)
def test_star_imports_have_the_documented_names(module: str, names: tuple[str, ...]) -> None:
    namespace: dict[str, Any] = {}
    exec(f"from {module} import *", namespace)
    imported = set(namespace) - {"__builtins__"}
    assert set(names) <= imported
    assert not [name for name in imported if name.startswith("_") and name != "__version__"]
    assert imported == set(importlib.import_module(module).__all__)


@pytest.mark.parametrize("name", [name for name in MODULE_NAMES if name[0] == "P"])
def test_classes_say_where_they_are_public(name: str) -> None:
    cls = getattr(portmanager, name)
    assert (cls.__module__, cls.__qualname__) == ("portmanager", name)


def test_backend_is_a_namespace_package() -> None:
    assert getattr(backend, "__file__", None) is None
    assert not [folder for folder in backend.__path__ if (Path(folder) / "__init__.py").exists()]


def test_one_singleton_for_all_paths(installed: Path) -> None:
    code = """
    import json, sys
    sys.path.insert(0, sys.argv[1])
    import backend.services, backend.services.port_manager, portmanager
    modules = (backend.services, backend.services.port_manager, portmanager)
    made = [module.get_port_manager() for module in modules]
    print(json.dumps([manager is made[0] for manager in made]))
    """
    assert run(code.replace("sys.argv[1]", repr(str(installed))), "-I", "-S") == [True] * 3


# Host applications

# Both orders on sys.path, and every first import.
ORDERS = [
    pytest.param(order, id=" then ".join(order))
    for order in (("host", "installed"), ("installed", "host"))
]


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return tmp_path / "host"


@pytest.fixture(params=ORDERS)
def ask(request: pytest.FixtureRequest, installed: Path, host: Path) -> Callable[..., Any]:
    """Evaluate an expression in a process of the host application, after some imports."""

    def evaluate(imports: str, expression: str) -> Any:
        folders = {"host": str(host), "installed": str(installed)}
        path = os.pathsep.join(folders[name] for name in request.param)
        code = (
            f"import json, sys, importlib.util\nimport {imports}\nprint(json.dumps({expression}))"
        )
        return run(code, "-S", PYTHONPATH=path)

    return evaluate


@pytest.fixture
def regular_host(host: Path) -> Path:
    return write(
        host,
        {
            "backend/__init__.py": "OWNER = 'host'",
            "backend/app.py": "RUNS = True",
            "backend/services/__init__.py": "OWNER = 'host services'",
            "backend/services/mail.py": "SENDS = True",
        },
    )


def test_a_regular_backend_of_the_host_wins(regular_host: Path, ask: Callable[..., Any]) -> None:
    imports = "backend.app, backend.services.mail"
    assert ask(imports, "[backend.OWNER, backend.services.OWNER]") == ["host", "host services"]
    assert ask(imports, "[backend.app.RUNS, backend.services.mail.SENDS]") == [True, True]
    folder = str(regular_host / "backend")
    assert ask(imports, "list(backend.__path__)") == [folder]
    assert ask(imports, "list(backend.services.__path__)") == [os.path.join(folder, "services")]


def test_ours_is_invisible_beside_a_regular_backend(
    regular_host: Path, ask: Callable[..., Any]
) -> None:
    assert ask("backend.services", "hasattr(backend.services, 'PortManager')") is False
    find = "importlib.util.find_spec('backend.services.port_manager') is None"
    assert ask("backend.services", find) is True
    # The package itself is there all the same.
    assert ask("backend.services, portmanager", "portmanager.PortManager.__name__") == "PortManager"


def test_a_regular_backend_without_services(host: Path, ask: Callable[..., Any]) -> None:
    write(host, {"backend/__init__.py": "", "backend/app.py": "RUNS = True"})
    assert ask("backend.app", "backend.app.RUNS") is True
    assert ask("backend", "importlib.util.find_spec('backend.services') is None") is True


def test_the_one_line_module_of_a_host(regular_host: Path, ask: Callable[..., Any]) -> None:
    write(
        regular_host,
        {
            "backend/services/port_manager.py": "from portmanager import *  # noqa: F403",
            "backend/services/__init__.py": "from .port_manager import get_port_manager",
        },
    )
    imports = "backend.services.port_manager as theirs, portmanager"
    same = f"[getattr(theirs, name) is getattr(portmanager, name) for name in {MODULE_NAMES}]"
    assert ask(imports, same) == [True] * len(MODULE_NAMES)
    singletons = "sys.modules['backend.services'].get_port_manager() is theirs.get_port_manager()"
    assert ask(imports, singletons) is True
    more = "sorted(name for name in vars(theirs) if name[0] != '_')"
    assert ask(imports, more) == sorted(name for name in portmanager.__all__ if name[0] != "_")


@pytest.fixture
def namespace_host(host: Path) -> Path:
    return write(
        host,
        {
            "backend/app.py": "RUNS = True",
            "backend/services/mail.py": "SENDS = True",
            "backend/services/deep/inner.py": "DEEP = True",
        },
    )


@pytest.mark.parametrize(
    "imports",
    [
        "backend.services.mail, backend.services.port_manager, backend.app",
        "backend.services.port_manager, backend.services.mail, backend.app",
        "backend.app, backend.services.mail, portmanager, backend.services.port_manager",
    ],
    ids=["host first", "ours first", "package first"],
)
def test_a_namespace_backend_of_the_host_keeps_its_modules(
    namespace_host: Path, ask: Callable[..., Any], imports: str
) -> None:
    found = ask(
        f"backend.services.deep.inner, {imports}",
        "[backend.services.mail.SENDS, backend.services.deep.inner.DEEP, backend.app.RUNS,"
        " backend.services.port_manager.PortManager is backend.services.PortManager,"
        " backend.services.mail.__file__]",
    )
    file = namespace_host / "backend" / "services" / "mail.py"
    assert found == [True, True, True, True, str(file)]


def test_a_namespace_backend_without_services(host: Path, ask: Callable[..., Any]) -> None:
    write(host, {"backend/app.py": "RUNS = True"})
    imports = "backend.app, backend.services.port_manager"
    assert ask(imports, "[backend.app.RUNS, hasattr(backend.services, 'PortConfig')]") == [
        True,
        True,
    ]


# What an import costs


@pytest.mark.parametrize(
    "statement",
    [
        "import portmanager",
        "from backend.services import get_port_manager",
        "from backend.services.port_manager import DEFAULT_PORT_CONFIGS",
        "from backend.services import get_port_manager; get_port_manager()",
    ],
)
def test_imports_are_light(installed: Path, statement: str) -> None:
    def loaded(code: str) -> set[str]:
        command = f"import sys\n{code}\nprint('[\"' + '\", \"'.join(sys.modules) + '\"]')"
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", command], capture_output=True, text=True, check=True
        )
        return set(json.loads(done.stdout))

    path = f"sys.path.insert(0, {str(installed)!r})"
    added = loaded(f"{path}\n{statement}") - loaded("pass")
    assert "portmanager._native" in added
    assert added.isdisjoint(HEAVY)


# get_port_manager


def singletons(installed: Path, code: str, *options: str) -> Any:
    prelude = f"""
    import json, logging, sys, threading
    sys.path.insert(0, {str(installed)!r})
    from portmanager import PortManager, PortManagerConfig, get_port_manager

    warned = []
    class Handler(logging.Handler):
        def emit(self, record):
            warned.append((record.levelname, record.getMessage()))
    logging.getLogger("portmanager").addHandler(Handler())
    """
    return run(textwrap.dedent(prelude) + textwrap.dedent(code), "-I", "-S", *options)


def test_the_config_counts_at_the_first_call(installed: Path) -> None:
    code = """
    config = PortManagerConfig(max_retries=3)
    first = get_port_manager(config)
    second = get_port_manager()
    print(json.dumps([first is second, first.config is config, warned]))
    """
    assert singletons(installed, code) == [True, True, []]


def test_a_later_config_is_ignored_with_a_warning(installed: Path) -> None:
    code = """
    first = get_port_manager()
    second = get_port_manager(config=PortManagerConfig(max_retries=77))
    print(json.dumps([first is second, first.config.max_retries, warned]))
    """
    same, retries, warned = singletons(installed, code)
    assert (same, retries) == (True, 10)
    ((level, message),) = warned
    assert level == "WARNING"
    assert message.startswith("[PortManager] ")
    assert "ignored" in message


def test_a_later_config_that_is_equal_is_no_reason_to_warn(installed: Path) -> None:
    code = """
    for _ in range(3):
        get_port_manager(PortManagerConfig(max_retries=3))
    print(json.dumps(warned))
    """
    assert singletons(installed, code) == []


def test_a_first_call_that_fails_makes_no_singleton(installed: Path) -> None:
    code = """
    try:
        get_port_manager("no config")
    except AttributeError:
        made = get_port_manager(PortManagerConfig(max_retries=5))
        print(json.dumps([made.config.max_retries, warned]))
    """
    assert singletons(installed, code) == [5, []]


def test_many_first_calls_at_once_give_one_object(installed: Path, tmp_path: Path) -> None:
    # Reading a file takes long enough for the threads to meet.
    path = tmp_path / "ports.json"
    path.write_text('[{"service": "web", "default_port": 5176}]')
    code = f"""
    logging.getLogger("portmanager").setLevel(logging.ERROR)
    sys.setswitchinterval(1e-6)
    config = PortManagerConfig(port_config_path={str(path)!r})
    counts = []
    for _ in range(20):
        for name in [name for name in sys.modules if name.startswith("portmanager")]:
            del sys.modules[name]  # a fresh copy has no singleton yet
        from portmanager import get_port_manager
        made, together = [], threading.Barrier(8)
        def call():
            together.wait()
            made.append(get_port_manager(config))
        threads = [threading.Thread(target=call) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts.append((len(made), len(set(map(id, made))), get_port_manager() is made[0]))
    print(json.dumps(sorted(set(counts))))
    """
    assert singletons(installed, code) == [[8, 1, True]]


# DEFAULT_PORT_CONFIGS


def test_the_default_configurations(implementation: SimpleNamespace) -> None:
    config = implementation.PortConfig
    expected = [
        config("vite-dev-server", 5176, (5173, 5180), "Vite development server", True),
        config(
            "python-ai-service", 5050, (5050, 5060), "Python AI document analysis service", False
        ),
        config("electron-dev-api", 8080, (8080, 8090), "Electron development API server", False),
        config("playwright-debug", 9323, (9320, 9330), "Playwright debugger", False),
    ]
    assert expected == implementation.DEFAULT_PORT_CONFIGS
    assert type(implementation.DEFAULT_PORT_CONFIGS) is list
    for found in implementation.DEFAULT_PORT_CONFIGS:
        assert type(found) is config
        assert type(found.range) is tuple
        assert type(found.required) is bool


def test_managers_have_copies_of_their_own(implementation: SimpleNamespace) -> None:
    one, other = implementation.PortManager(), implementation.PortManager()
    for manager in (one, other):
        assert list(manager.port_configs.values()) == implementation.DEFAULT_PORT_CONFIGS
        assert list(manager.port_configs) == [
            config.service for config in implementation.DEFAULT_PORT_CONFIGS
        ]
    one.port_configs["vite-dev-server"].default_port = 1
    one.port_configs["vite-dev-server"].range = None
    one.port_configs["vite-dev-server"].extra = "mine"
    del one.port_configs["playwright-debug"]
    for manager in (other, implementation.PortManager()):
        assert list(manager.port_configs.values()) == implementation.DEFAULT_PORT_CONFIGS
        assert manager.port_configs["vite-dev-server"].default_port == 5176
        assert not hasattr(manager.port_configs["vite-dev-server"], "extra")


def test_the_list_itself_may_be_edited(implementation: SimpleNamespace) -> None:
    # As callers do who want other defaults everywhere; managers made later have what is there.
    added = implementation.PortConfig("added", 1234)
    implementation.DEFAULT_PORT_CONFIGS.append(added)
    try:
        manager = implementation.PortManager()
        assert manager.port_configs["added"] == added
        assert manager.port_configs["added"] is not added
    finally:
        implementation.DEFAULT_PORT_CONFIGS.remove(added)


# What is packed


@contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Only one process of a test run at a time."""
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def build(into: Path) -> None:
    """Build an sdist of a copy of this checkout, and a wheel of the sdist alone."""
    copy, tools, unpacked = into / "copy", into / "tools", into / "unpacked"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--target", tools, "setuptools>=77"],
        capture_output=True,
        text=True,
        timeout=FOREVER,
        check=False,
    )
    if done.returncode:
        (into / "failure").write_text(done.stderr)
        return
    shutil.copytree(
        ROOT,
        copy,
        symlinks=True,
        ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "*.so", "*.whl"),
    )
    hooks = "import sys; from setuptools import build_meta; "
    call_hook(tools, copy, f"{hooks} build_meta.build_sdist(sys.argv[1])", into)
    with tarfile.open(next(into.glob("*.tar.gz"))) as archive:
        if sys.version_info >= (3, 12):
            archive.extractall(unpacked, filter="data")
        else:
            archive.extractall(unpacked)
    (source,) = unpacked.iterdir()
    call_hook(tools, source, f"{hooks} build_meta.build_wheel(sys.argv[1])", into)


def call_hook(tools: Path, source: Path, code: str, into: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, str(into)],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(tools), "CFLAGS": "-O0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=FOREVER,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist and a wheel of this checkout."""
    if not (ROOT / "setup.py").exists():
        pytest.skip("needs a checkout to build from")
    base = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        base = base.parent  # all workers share one build
    folder = base / "distributions"
    with only_one(base / "distributions.lock"):
        if not folder.exists():
            folder.mkdir()
            build(folder)
    if (folder / "failure").exists():
        pytest.skip(f"setuptools cannot be had: {(folder / 'failure').read_text()[-200:]}")
    return folder


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Iterator[zipfile.ZipFile]:
    (path,) = distributions.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_has_what_is_imported_and_no_more(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    ours = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "portmanager").iterdir()
        if path.suffix in (".py", ".pyi") or path.name == "py.typed"
    }
    extensions = {name for name in names if name.endswith(".so")}
    assert len(extensions) == 1
    assert {"portmanager/py.typed", "portmanager/_native.pyi"} <= ours
    services = {"backend/services/__init__.py", "backend/services/port_manager.py"}
    assert names == ours | services | extensions


def test_the_wheel_serves_every_cpython_with_a_gil(wheel: zipfile.ZipFile) -> None:
    (extension,) = (name for name in wheel.namelist() if name.endswith(".so"))
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/WHEEL"))
    tag = email.parser.BytesParser().parsebytes(wheel.read(metadata))["Tag"]
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        assert extension == "portmanager/_native" + sysconfig.get_config_var("EXT_SUFFIX")
        assert tag.split("-")[1].endswith("t")
    else:
        assert extension == "portmanager/_native.abi3.so"
        assert tag.startswith("cp310-abi3-")


def test_the_wheel_works(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = f"""
    import json, sys
    sys.path.insert(0, {str(tmp_path)!r})
    from backend.services import PortConfig, get_port_manager
    manager = get_port_manager()
    manager.port_configs["any"] = PortConfig("any", 0)
    try:
        manager.allocate_port("any").send(None)
    except StopIteration as stop:
        print(json.dumps([stop.value.status, sys.modules["portmanager"].__file__]))
    """
    file = tmp_path / "portmanager" / "__init__.py"
    assert run(code, "-I", "-S") == ["allocated", str(file)]


def test_the_sdist_has_what_a_build_and_a_reader_need(distributions: Path) -> None:
    # That a wheel can be built of it is proved by the wheel.
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if "/" in name}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.[ch]")}
    assert len(sources) > 10
    assert sources <= names
    tests = {f"tests/{path.name}" for path in (ROOT / "tests").glob("*.py")}
    assert tests <= names
    needed = {"pyproject.toml", "setup.py", "LICENSE", "README.md", "Makefile"}
    examples = {
        f"backend/services/{name}.py"
        for name in ("test_port_manager", "example_port_manager_usage")
    }
    assert needed | examples <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
