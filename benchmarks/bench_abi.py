"""The abi3 build, one for every CPython, over a build for this CPython alone, call by call.

Both are loaded into one process and take turns; in several processes, since the places of code and
data in memory are drawn anew for each.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import calls
import common

ALLOWED = 1.05
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "csrc", "portmanager", "backend")


def build(folder: Path, abi: str) -> Path:
    """Install a build into a folder; from a copy, so that nothing of another one gets into it."""
    source, target = folder / f"{abi}-source", folder / abi
    source.mkdir()
    for name in SOURCES:
        if (common.ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__")
            shutil.copytree(common.ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy(common.ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--target", target, source],
        env={**os.environ, "PORTMANAGER_ABI": abi},
        check=True,
    )
    return target


def measure(arguments: argparse.Namespace) -> Iterator[common.Row]:
    ratios: dict[str, list[float]] = {name: [] for name in calls.COUNTS}
    with tempfile.TemporaryDirectory() as folder:
        builds = [build(Path(folder), abi) for abi in ("abi3", "version")]
        command = [
            sys.executable,
            calls.__file__,
            *map(str, builds),
            f"--rounds={arguments.rounds}",
        ]
        for _ in range(arguments.processes):
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            for name, more in json.loads(output).items():
                ratios[name] += more
    results = {name: common.Ratios(name, figures) for name, figures in ratios.items()}
    worst = max(results, key=lambda name: results[name].median)
    yield (
        f"abi3 build: of {len(results)} calls the one that loses most, `{worst}`",
        f"a build for CPython {platform.python_version()} alone",
        str(results[worst]),
        "",
        f"at most {ALLOWED}x",
    )


if __name__ == "__main__":
    common.main(
        __doc__,
        measure,
        processes=(10, "processes that each load both"),
        rounds=(60, "turns of each in a process"),
    )
