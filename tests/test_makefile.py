"""What `make` does before it builds: say what the machine lacks, and build only what changed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION = f"python3.{sys.version_info.minor}"

pytestmark = pytest.mark.skipif(
    not (ROOT / "Makefile").exists() or shutil.which("make") is None,
    reason="needs make and a checkout",
)


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """Where an environment may be set up; nothing is there yet."""
    return tmp_path / "venv"


def run_make(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs make as from a shell, whatever make or environment these tests run in."""
    make = shutil.which("make")
    assert make is not None
    ours = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CC", "CFLAGS", "PYTHON", "PYTHONPATH", "VENV"}
    return subprocess.run(
        [make, *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in ours} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("target", ["demo", "test"])
class TestSaysInOneLineWhatIsMissing:
    def complaint(
        self, target: str, venv: Path, python: Path | str = sys.executable, **environment: str
    ) -> str:
        done = run_make(target, f"VENV={venv}", f"PYTHON={python}", **environment)
        assert done.returncode != 0, done.stdout
        assert not venv.exists(), "nothing is set up on a machine that cannot build"
        (line,) = done.stdout.splitlines()
        return line

    def test_a_compiler(self, target: str, venv: Path, tmp_path: Path) -> None:
        """With a PATH that has what the Makefile calls, and no cc."""
        tools = tmp_path / "tools"
        tools.mkdir()
        for tool in ("find", "rm"):
            (tools / tool).symlink_to(str(shutil.which(tool)))
        line = self.complaint(target, venv, PATH=str(tools))
        assert "a C compiler" in line
        assert "package gcc" in line

    def test_the_headers_of_c(self, target: str, venv: Path, tmp_path: Path) -> None:
        compiler = script(tmp_path / "cc", "#!/bin/sh\nexit 1\n")
        line = self.complaint(target, venv, CC=str(compiler))
        assert "package libc6-dev" in line
        assert "a C compiler" not in line

    def test_the_headers_of_python(self, target: str, venv: Path, tmp_path: Path) -> None:
        """With a Python that is installed the way a Debian without python3-dev has it."""
        home = Path(sys.base_prefix)
        python = tmp_path / "bin" / VERSION
        python.parent.mkdir()
        shutil.copy(home / "bin" / VERSION, python)
        (tmp_path / sys.platlibdir).symlink_to(home / sys.platlibdir)
        line = self.complaint(target, venv, python)
        assert "Python.h" in line
        assert f"package {VERSION}-dev" in line

    @pytest.mark.parametrize("module", ["venv", "ensurepip"])
    def test_the_means_to_make_an_environment(
        self, target: str, venv: Path, tmp_path: Path, module: str
    ) -> None:
        script(tmp_path / "lib" / f"{module}.py", "raise ImportError\n")
        line = self.complaint(target, venv, PYTHONPATH=str(tmp_path / "lib"))
        assert f"package {VERSION}-venv" in line

    def test_a_python_that_is_new_enough(self, target: str, venv: Path, tmp_path: Path) -> None:
        script(
            tmp_path / "lib" / "sitecustomize.py",
            "import sys\nsys.version_info = (3, 9, 18, 'final', 0)\n",
        )
        line = self.complaint(target, venv, PYTHONPATH=str(tmp_path / "lib"))
        assert "needs CPython 3.10 or newer" in line
        assert "3.9" in line

    def test_any_python(self, target: str, venv: Path) -> None:
        line = self.complaint(target, venv, "no-such-python")
        assert "no-such-python is missing or too old" in line
        assert "package python3" in line

    def test_all_of_it_at_once(self, target: str, venv: Path, tmp_path: Path) -> None:
        script(tmp_path / "lib" / "venv.py", "raise ImportError\n")
        line = self.complaint(target, venv, CC="no-such-cc", PYTHONPATH=str(tmp_path / "lib"))
        assert "package gcc" in line
        assert f"package {VERSION}-venv" in line


class TestBuildsOnlyWhatChanged:
    @pytest.fixture
    def installed(self, venv: Path) -> Mapping[str, str]:
        """Make's variables for an environment that looks as if all had been built just now."""
        venv.mkdir()
        (venv / "made-with").write_text("python3")
        for name in ("installed", "installed-for-tests"):
            (venv / name).touch()
        return {"VENV": str(venv), "PYTHON": "python3"}

    def is_built(self, variables: Mapping[str, str], *options: str) -> bool:
        settings = [f"{name}={value}" for name, value in variables.items()]
        target = f"{variables['VENV']}/installed-for-tests"
        done = run_make("--question", *options, *settings, target)
        assert done.returncode in {0, 1}, done.stdout
        return done.returncode == 0

    def test_nothing_changed(self, installed: Mapping[str, str]) -> None:
        assert self.is_built(installed)

    @pytest.mark.parametrize("pattern", ["setup.py", "pyproject.toml", "csrc/*/*.c", "csrc/*/*.h"])
    def test_a_source_of_the_build_changed(
        self, installed: Mapping[str, str], pattern: str
    ) -> None:
        changed = next(ROOT.glob(pattern)).relative_to(ROOT)
        assert not self.is_built(installed, f"--what-if={changed}")

    def test_python_code_changed(self, installed: Mapping[str, str]) -> None:
        assert self.is_built(installed, "--what-if=portmanager/_version.py")

    def test_another_python_is_wanted(self, installed: Mapping[str, str]) -> None:
        assert not self.is_built(dict(installed, PYTHON=sys.executable))
