"""Runs test code in a process of its own, which may have namespaces, limits or a user of its own.

Functions that are run so are ordinary functions, or coroutine functions, of a test module; what
they take and return goes through JSON.
"""

import asyncio
import contextlib
import ctypes
import fcntl
import functools
import importlib
import inspect
import json
import os
import platform
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534
TIMEOUT = 60.0  # of a test that hangs


@functools.cache
def _unshare() -> list[str]:
    """The command that gives a process namespaces of its own; skips where that is refused."""
    command = ["unshare", "--mount", "--net"]
    if os.geteuid():
        command.append("--map-root-user")
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        pytest.skip(f"no network and mount namespaces here: {reason}")
    return command


def run(
    function: Callable[..., Any],
    *arguments: Any,
    namespaces: bool = False,
    env: dict[str, str] | None = None,
) -> Any:
    """What the function returns in a fresh process; an AssertionError if that process fails.

    With namespaces, that process has a network with nothing but a loopback interface, and may
    change files by `replace_file`.
    """
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [
        *(_unshare() if namespaces else []),
        *(sys.executable, "-X", "faulthandler", "-c", "import isolated; isolated._main()"),
        *(Path(inspect.getfile(function)).stem, function.__name__),
        *("namespaces" if namespaces else "plain", json.dumps(arguments)),
    ]
    child = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **(env or {})},
    )
    assert child.returncode == 0, f"exit {child.returncode}: {child.stdout}{child.stderr}"
    return json.loads(child.stdout)


def _main() -> None:
    module, name, kind, arguments = sys.argv[1:]
    function = getattr(importlib.import_module(module), name)
    # Whatever is imported late, while there is still leave to read files.
    importlib.import_module("portmanager._declarations")
    if kind == "namespaces":
        bring_up_loopback()
    result = function(*json.loads(arguments))
    if inspect.iscoroutine(result):
        result = asyncio.run(result)
    print(json.dumps(result))


# ---- what such a process may do to itself -------------------------------------------------


def bring_up_loopback() -> None:
    """Make 127.0.0.1 and ::1 work in a fresh network namespace."""
    siocsifflags, up_and_running = 0x8914, 0x41
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, siocsifflags, struct.pack("16sH14x", b"lo", up_and_running))


def add_loopback_address(address: str) -> None:
    """Give the loopback interface one more IPv6 address."""
    siocsifaddr = 0x8916
    packed = socket.inet_pton(socket.AF_INET6, address)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        request = struct.pack("=16sIi", packed, 64, socket.if_nametoindex("lo"))
        fcntl.ioctl(control, siocsifaddr, request)
    while True:  # the kernel may take a moment
        with socket.socket(socket.AF_INET6) as probe, contextlib.suppress(OSError):
            probe.bind((address, 0, 0, socket.if_nametoindex("lo")))
            return
        time.sleep(0.01)


def replace_file(path: str, text: str) -> None:
    """Give a file another content, for this mount namespace."""
    with tempfile.NamedTemporaryFile("w", delete=False) as copy:
        copy.write(text)
    Path(copy.name).chmod(0o644)
    try:
        subprocess.run(["mount", "--bind", copy.name, path], check=True)
    finally:
        Path(copy.name).unlink()


def set_sysctl(name: str, value: str) -> None:
    """Set a sysctl of this network namespace."""
    Path("/proc/sys", name).write_text(value)


def become_unprivileged() -> None:
    """Be a user without any right; done already where this process is root by name alone."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def use_up_descriptors(left: int) -> None:
    """Lower the limit so that so many descriptors can be opened, no more."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(left)]
    # Descriptors are given lowest first, so up to here all are taken.
    limit = os.open(os.devnull, os.O_RDONLY)
    for fd in (limit, *fds):
        os.close(fd)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


def refuse_sockets(family: int, error: int) -> None:
    """From now on socket() of a family fails with an errno."""
    number = {"x86_64": 41, "aarch64": 198}[platform.machine()]
    load, equal, answer, allow = 0x20, 0x15, 0x06, 0x7FFF0000
    # Loads the number of the system call, then the first argument.
    program = [
        (load, 0, 0, 0),
        (equal, 0, 3, number),
        (load, 0, 0, 16),
        (equal, 0, 1, family),
        (answer, 0, 0, 0x00050000 | error),
        (answer, 0, 0, allow),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    filter_ = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privs, set_seccomp, mode_filter = 38, 22, 2
    for request in ((no_new_privs, 1, 0, 0, 0), (set_seccomp, mode_filter, filter_, 0, 0)):
        if libc.prctl(*request):
            raise OSError(ctypes.get_errno(), "prctl")


needs_seccomp = pytest.mark.skipif(
    platform.machine() not in {"x86_64", "aarch64"}, reason="socket()'s number is not known here"
)
