"""The import of the package, over a Python that imports nothing."""

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from statistics import median

import common

PROGRAMS = {
    "nothing": "pass",
    "portmanager": "import portmanager",
    "backend.services": "from backend.services import get_port_manager",
    "twin": f"import sys; sys.path.insert(0, {str(common.ROOT / 'tests')!r}); import twin",
}


def processor_time() -> int:
    """Nanoseconds that the processes took which have been waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((usage.ru_utime + usage.ru_stime) * 1e9)


def running(program: str, folder: str) -> common.Timer:
    def run(count: int) -> int:
        start = processor_time()
        for _ in range(count):
            # An empty folder, whose modules cannot get in the way.
            subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
        return processor_time() - start

    return run


def measure(arguments: argparse.Namespace) -> Iterator[common.Row]:
    with tempfile.TemporaryDirectory() as folder:
        timers = {name: running(program, folder) for name, program in PROGRAMS.items()}
        times = common.side_by_side(timers, 1, arguments.rounds)

    def over_nothing(name: str) -> str:
        pairs = list(zip(times[name], times["nothing"], strict=True))
        ratios = common.Ratios(name, [with_it / without for with_it, without in pairs])
        more = median(with_it - without for with_it, without in pairs) / 1e6
        of_minima = (min(times[name]) - min(times["nothing"])) / 1e6
        common.note(f"{name}: {more:+.2f} ms, of the minima {of_minima:+.2f} ms")
        return f"{ratios}, {more:+.1f} ms"

    twin = over_nothing("twin")
    for name in ("portmanager", "backend.services"):
        yield f"`{PROGRAMS[name]}`", "`python -c pass`", over_nothing(name), twin, "below +5 ms"


if __name__ == "__main__":
    common.main(__doc__, measure, rounds=(100, "runs of each"))
