"""Prints one line that names what this machine lacks to build the extension, or nothing.

Run by the Makefile with the Python that is to be used, before anything can fail in its own words.
It must load on old Pythons too.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator

OLDEST = (3, 10)


def compiler() -> "list[str]":
    """The command that setuptools will compile with."""
    return (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()


def has_headers(command: "list[str]") -> bool:
    """Whether C programs can be compiled: a Debian may have a compiler and no C library headers."""
    probe = b"#include <stdio.h>\n#include <linux/sock_diag.h>\n"
    argv = [*command, "-E", "-xc", "-"]
    child = subprocess.Popen(argv, stdin=-1, stdout=-1, stderr=-1)
    child.communicate(probe)
    return child.returncode == 0


def imports(*names: str) -> bool:
    try:
        for name in names:
            __import__(name)
    except ImportError:
        return False
    return True


def missing(python: str) -> "Iterator[str]":
    """What is not there, each with the Debian package that brings it."""
    command = compiler()
    if shutil.which(command[0]) is None:
        yield "a C compiler (" + command[0] + "; Debian package gcc)"
    elif not has_headers(command):
        yield "the C library's headers (Debian package libc6-dev)"
    if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
        yield "Python's C headers, Python.h (Debian package " + python + "-dev)"
    if not imports("venv", "ensurepip"):
        yield "Python's venv and ensurepip modules (Debian package " + python + "-venv)"


def main() -> None:
    version = ".".join(map(str, sys.version_info[:2]))
    if sys.version_info < OLDEST or sys.implementation.name != "cpython":
        wanted = ".".join(map(str, OLDEST))
        print(
            "needs CPython "
            + wanted
            + " or newer (Debian package python3); "
            + sys.executable
            + " is "
            + sys.implementation.name
            + " "
            + version
            + ": name another with PYTHON=..."
        )
        return
    lacking = list(missing("python" + version))
    if lacking:
        print("missing: " + ", ".join(lacking))


main()
