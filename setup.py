"""The C extension; everything else about the package is in pyproject.toml."""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

# One abi3 build serves every CPython that has a GIL; a free-threaded one has no limited API.
# PORTMANAGER_ABI=version builds for this interpreter alone; benchmarks/bench_abi.py compares.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED") and (
    os.environ.get("PORTMANAGER_ABI") != "version"
)
FLOOR = "0x030A0000"

# A platform is a file: core's portable sources, and the platform's own beside them.
PLATFORM_SUFFIXES = {"linux": "_linux"}
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wstrict-prototypes"]


def sources() -> list[str]:
    suffix = PLATFORM_SUFFIXES.get(sys.platform)
    if suffix is None:
        sys.exit(f"portmanager: {sys.platform} is not supported yet, only {set(PLATFORM_SUFFIXES)}")
    # The platform suffixes that a file of core may carry; all but ours are left out.
    others = tuple(s for s in ("_linux", "_macos", "_windows", "_posix") if s != suffix)
    files = [*Path("csrc/core").glob("*.c"), *Path("csrc/ext").glob("*.c")]
    return sorted(str(f) for f in files if not f.stem.endswith(others))


class BuildWithoutTests(build_py):
    """Leaves out what lies beside the modules for the checkout's sake: backend/services' tests."""

    NOT_INSTALLED = ("test_port_manager", "example_port_manager_usage")

    def find_package_modules(self, package, package_dir):
        found = super().find_package_modules(package, package_dir)
        return [module for module in found if module[1] not in self.NOT_INSTALLED]


setup(
    cmdclass={"build_py": BuildWithoutTests},
    ext_modules=[
        Extension(
            "portmanager._native",
            sources=sources(),
            depends=sorted(str(f) for f in Path("csrc").rglob("*.h")),
            include_dirs=["csrc"],
            define_macros=[
                ("_GNU_SOURCE", "1"),
                *([("Py_LIMITED_API", FLOOR)] if LIMITED else []),
            ],
            extra_compile_args=["-std=c11", "-fvisibility=hidden", *WARNINGS],
            py_limited_api=LIMITED,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED else {},
)
