"""Runs the README's examples as a reader would: each on its own, or one after the other."""

import ast
import asyncio
import builtins
import inspect
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import portmanager

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]*) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)


def blocks() -> Iterator[tuple[str, str]]:
    for match in BLOCK.finditer((ROOT / "README.md").read_text()):
        yield match["mark"] or "", match["code"]


def test_standalone() -> None:
    (code,) = (code for mark, code in blocks() if mark == "standalone")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"Service running on port \d+\n", done.stdout)


async def run(code: str, namespace: dict[str, Any]) -> None:
    compiled = compile(code, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = types.FunctionType(compiled, namespace)()
    if inspect.isawaitable(result):
        await result


def test_the_rest_in_order(capfd: pytest.CaptureFixture[str]) -> None:
    async def run_all() -> None:
        namespace: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
        try:
            for mark, code in blocks():
                if not mark:
                    await run(code, namespace)
        finally:
            if server := namespace.get("server"):
                server.kill()
                server.wait()

    asyncio.run(run_all())
    printed = capfd.readouterr().out
    assert "Service started successfully" in printed
    assert re.search(r"^api: \d+ \(in_use=True, pid=\d+\)$", printed, re.MULTILINE)


def test_every_public_method_has_an_example() -> None:
    text = "".join(code for _, code in blocks())
    methods = {name for name in vars(portmanager.PortManager) if not name.startswith("_")}
    assert {name for name in methods if f".{name}(" not in text} == set()
