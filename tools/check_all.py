#!/usr/bin/env python3
"""Everything that can be checked here: `make check-all`, or parts of it: tools/check_all.py PART...

ci              what .ci/run does
pythons         one abi3 wheel, and the suite with it, outside the source tree, on each CPython;
                those that this machine lacks come from Debian testing, in a chroot
free-threaded   a build of its own for a CPython without the GIL, which must stay off
sanitized       the extension under the address and the undefined-behaviour sanitizer
long            the suite with many more examples for each property (HYPOTHESIS_PROFILE=long)
model           the ledger's protocol at the larger sizes (spin)
torture         a million allocations by processes that are killed and stopped at random

Other interpreters than those on PATH and pyenv's are named in PYTHONS, separated by spaces. What is
fetched and built once is kept in $XDG_CACHE_HOME/portmanager, or .cache in the checkout; the logs
are in build/check-all. A table at the end says what ran and what could not; it exits with 1 if
anything failed, or if nothing ran.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "check-all"
MINORS = range(10, 16)  # the CPythons, 3.N, that the abi3 wheel is for
SUITE_SECONDS = 1200

# Runs in the environment under test: the extension is the installed one, and leaves the GIL off.
IMPORT_CHECK = """
import sys, sysconfig, backend.services.port_manager, portmanager._native as native
assert native.__file__.startswith(sys.prefix), native.__file__
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    assert not sys._is_gil_enabled()
print(sys.version, native.__file__)
"""
SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1"


@dataclass(frozen=True)
class Row:
    """One line of the final table."""

    subject: str
    build: str
    passed: bool | None  # None: not run
    remark: str

    def __str__(self) -> str:
        outcome = {True: "passed", False: "FAILED", None: "not run"}[self.passed]
        return f"{self.subject:<28} {self.build:<10} {outcome:<8} {self.remark}"


@dataclass(frozen=True)
class Interpreter:
    """A CPython, and how to reach it: a command prefix and the root of its file system."""

    name: str
    command: str
    enter: tuple[str | Path, ...] = ()
    root: Path = Path("/")


class Failure(Exception):
    """A step went wrong; the text is for the table."""


def run(
    log: str,
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> str:
    """Runs a command, with its output in a log of that name, and returns the output."""
    LOGS.mkdir(parents=True, exist_ok=True)
    path = LOGS / f"{log}.log"
    with path.open("ab") as output:
        output.write(f"+ {' '.join(map(str, command))}\n".encode())
        output.flush()
        start = output.tell()
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Failure(f"not done after {seconds:.0f} s; see {path.relative_to(ROOT)}") from None
    text = path.read_bytes()[start:].decode(errors="replace")
    if done.returncode:
        line = closing_line(text)
        reason = line if re.search("failed|error", line) else f"exit code {done.returncode}"
        raise Failure(f"{reason}; see {path.relative_to(ROOT)}")
    return text


def closing_line(text: str) -> str:
    """What pytest says at the end of a run: "412 passed, 3 skipped in 8.21s"."""
    found = re.findall(r"^=* ?((?:\d+ [a-z]+, )*\d+ [a-z]+ in [\d.]+s.*?) ?=*$", text, re.M)
    return found[-1] if found else ""


def passed_line(text: str) -> str:
    """The closing line of a run that must have run something."""
    line = closing_line(text)
    if not re.search(r"\b[1-9]\d* passed", line):
        raise Failure(f"no test passed ({line or 'no closing line'})")
    return line


def attempt(subject: str, build: str, step: Callable[[], str]) -> Row:
    print(f"{subject} ...", flush=True)
    try:
        return Row(subject, build, True, step())
    except Failure as failure:
        return Row(subject, build, False, str(failure))


# The interpreters


def candidates() -> Iterator[str]:
    """Where a CPython may be: PYTHONS, PATH, pyenv; a name may be a shim that does not run."""
    yield from os.environ.get("PYTHONS", "").split()
    for minor in MINORS:
        for folder in os.get_exec_path():
            yield f"{folder}/python3.{minor}"
    if shutil.which("pyenv"):
        root = subprocess.run(
            ["pyenv", "root"], stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()
        yield from map(str, sorted(Path(root).glob("versions/*/bin/python3.*[0-9]")))


def interpreters() -> dict[int, Interpreter]:
    """The first CPython with a GIL that is found of each version."""
    query = "import sys, sysconfig; print(sys.implementation.name, sys.version_info.minor, \
sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"
    found: dict[int, Interpreter] = {}
    for command in filter(shutil.which, candidates()):
        answer = subprocess.run(
            [command, "-c", query],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        ).stdout.split()
        if answer[:1] == ["cpython"] and answer[2] == "0" and int(answer[1]) in MINORS:
            minor = int(answer[1])
            found.setdefault(minor, Interpreter(f"python3.{minor}", command))
    return found


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(base, "portmanager") if base else ROOT / ".cache"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# Building, and running the suite


class Packages:
    """The source distribution of the checkout, and what is built from it; each is built once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._wheels: dict[str, Path | Failure] = {}
        self._sdist: Path | None = None

    def sdist(self) -> Path:
        if self._sdist is None:
            venv = self.folder / "build-venv"
            run("sdist", sys.executable, "-m", "venv", venv)
            run("sdist", venv / "bin/python", "-m", "pip", "install", "--quiet", "build")
            run("sdist", venv / "bin/python", "-m", "build", "--sdist", "--outdir", self.folder)
            (self._sdist,) = self.folder.glob("*.tar.gz")
        return self._sdist

    def wheel(self, kind: str, python: str, env: Mapping[str, str] | None = None) -> Path:
        """The wheel of that kind, made with that Python when it is first asked for."""
        if kind not in self._wheels:
            try:
                self._wheels[kind] = self._build(kind, python, env)
            except Failure as failure:
                self._wheels[kind] = Failure(f"the {kind} wheel: {failure}")
        made = self._wheels[kind]
        if isinstance(made, Failure):
            raise made
        return made

    def _build(self, kind: str, python: str, env: Mapping[str, str] | None) -> Path:
        venv, out = self.folder / f"{kind}-venv", self.folder / kind
        run(f"{kind}-wheel", python, "-m", "venv", venv)
        pip = (venv / "bin/python", "-m", "pip", "wheel", "--quiet", "--no-deps")
        run(f"{kind}-wheel", *pip, "--wheel-dir", out, self.sdist(), env=env)
        (wheel,) = out.glob("*.whl")
        return wheel


def copy_suite(folder: Path) -> None:
    """Copies what the tests need; the package is not among it."""
    ignore = shutil.ignore_patterns("__pycache__", ".*")
    for name in ("tests", "examples", "backend"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)


def run_suite(
    log: str, interpreter: Interpreter, wheel: Path, env: Mapping[str, str] | None = None
) -> str:
    """Installs the wheel in a fresh environment of the interpreter and runs the suite there."""
    base = interpreter.root / ("src" if interpreter.enter else "tmp")
    with tempfile.TemporaryDirectory(prefix="suite-", dir=base) as name:
        folder = Path(name)
        copy_suite(folder)
        shutil.copy(wheel, folder)
        inside = Path("/") / folder.relative_to(interpreter.root)
        enter = (*interpreter.enter, "env", "-C", inside)
        python = inside / "venv/bin/python"
        run(log, *enter, interpreter.command, "-m", "venv", "venv")
        # Only wheels: a requirement that has none for this Python is taken in an older version.
        pip = (python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:")
        run(log, *enter, *pip, f"./{wheel.name}[test]")
        run(log, *enter, python, "-I", "-W", "error", "-c", IMPORT_CHECK, env=env)
        pytest = (python, "-m", "pytest", "-n", "auto", "-p", "no:cacheprovider")
        return passed_line(run(log, *enter, *pytest, env=env, seconds=SUITE_SECONDS))


# The parts


def check_ci(_: Packages) -> Iterator[Row]:
    yield attempt(".ci/run", "in place", lambda: passed_line(run("ci", ROOT / ".ci/run")))


def check_long(_: Packages) -> Iterator[Row]:
    env = {"HYPOTHESIS_PROFILE": "long"}
    yield attempt(
        "many examples", "in place", lambda: passed_line(run("long", "make", "test", env=env))
    )


def check_model(_: Packages) -> Iterator[Row]:
    def step() -> str:
        output = run("model", "make", "--no-print-directory", "-C", "tests/model", "full")
        return output.splitlines()[-1]

    yield attempt("the ledger's protocol", "spin", step)


def check_torture(_: Packages) -> Iterator[Row]:
    def step() -> str:
        run("torture", "make", "demo")
        output = run("torture", ROOT / ".venv/bin/python", "benchmarks/double_handouts.py")
        return next(line for line in output.splitlines() if line.startswith("| portmanager"))

    yield attempt("a million allocations", "in place", step)


def testing_interpreters() -> dict[int, Interpreter]:
    """The CPythons of Debian testing."""
    tool, chroot = ROOT / "tools/debian_chroot", cache() / "debian-testing"
    names = run("debian-testing", tool, "make", chroot).split()
    return {
        int(name[len("python3.") :]): Interpreter(
            f"{name}, Debian testing", name, (tool, "run", chroot), chroot.resolve()
        )
        for name in names
        if re.fullmatch(r"python3\.\d+", name)
    }


def check_pythons(packages: Packages) -> Iterator[Row]:
    here = interpreters()
    found, reason = here, "not on this machine"
    if set(MINORS) - set(here):
        try:
            found = testing_interpreters() | here
            reason += ", nor in Debian testing"
        except Failure as failure:
            reason += f", nor Debian testing: {failure}"
    # The one wheel is made with the oldest there is.
    oldest = here[min(here)].command if here else sys.executable

    def step(interpreter: Interpreter, log: str) -> str:
        wheel = packages.wheel("abi3", oldest)
        if "-abi3-" not in wheel.name:
            raise Failure(f"not an abi3 wheel: {wheel.name}")
        return run_suite(log, interpreter, wheel)

    for minor in MINORS:
        name = f"python3.{minor}"
        if minor in found:
            yield attempt(found[minor].name, "abi3", partial(step, found[minor], name))
        else:
            yield Row(name, "abi3", None, reason)


def check_free_threaded(packages: Packages) -> Iterator[Row]:
    subject = "CPython without the GIL"
    try:
        output = run("free-threaded-python", ROOT / "tools/free_threaded_python", cache())
    except Failure as failure:
        yield Row(subject, "its own", None, str(failure))
        return
    python = output.split()[-1]
    # A module that asks for the GIL brings it back with a RuntimeWarning: an error here.
    strict = {"PYTHONWARNINGS": "error::RuntimeWarning"}
    yield attempt(
        subject,
        "its own",
        lambda: run_suite(
            "free-threaded",
            Interpreter("free-threaded", python),
            packages.wheel("free-threaded", python),
            strict,
        ),
    )


def check_sanitized(packages: Packages) -> Iterator[Row]:
    def step() -> str:
        runtime = run("sanitized", "cc", "-print-file-name=libasan.so").strip()
        wheel = packages.wheel(
            "sanitized", sys.executable, {"CFLAGS": SANITIZERS, "LDFLAGS": SANITIZERS}
        )
        env = {
            "LD_PRELOAD": runtime,
            "PYTHONMALLOC": "malloc",
            # What CPython itself leaves behind at exit is not ours to find.
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        return run_suite("sanitized", Interpreter("this", sys.executable), wheel, env)

    yield attempt("ASan and UBSan", "sanitized", step)


PARTS: dict[str, Callable[[Packages], Iterator[Row]]] = {
    "ci": check_ci,
    "pythons": check_pythons,
    "free-threaded": check_free_threaded,
    "sanitized": check_sanitized,
    "long": check_long,
    "model": check_model,
    "torture": check_torture,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    wanted = parser.parse_args().parts or list(PARTS)
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    os.environ.pop("PYTHON_GIL", None)
    shutil.rmtree(LOGS, ignore_errors=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="check-all-") as folder:
        packages = Packages(Path(folder))
        for part in wanted:
            for row in PARTS[part](packages):
                print(row, flush=True)
                rows.append(row)
    print("\n" + "\n".join(map(str, rows)))
    passed = [row for row in rows if row.passed]
    failed = [row for row in rows if row.passed is False]
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
