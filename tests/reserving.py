"""What tests of reservations share: is a port held, and other processes that hold some."""

import contextlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

from comparing import finish

from portmanager import PortConfig, PortManager, PortManagerConfig, PortsExhausted, reserve


def within(ports: range) -> dict[str, Any]:
    return {"start": ports[0], "end": ports[-1]}


def is_held(port: int) -> bool:
    try:
        reserve(start=port, end=port).release()
    except PortsExhausted:
        return True
    return False


def is_free(port: int) -> bool:
    """Would this process, which is nobody's descendant here, be given the port for a service?"""
    manager = PortManager(PortManagerConfig(max_retries=0))
    manager.port_configs = {"stranger": PortConfig("stranger", port)}
    status = finish(manager.allocate_port("stranger")).status
    manager.release_all_ports()
    return bool(status == "allocated")


@contextlib.contextmanager
def another(code: str, *arguments: object, **env: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs code of ours; it is killed at the end, if it lives."""
    code = "import os, sys, portmanager\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def said_by(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()
