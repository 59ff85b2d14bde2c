"""The examples of bind_port run as they are, end well, and leave nothing on stderr."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("bind_*.py")), ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    if "uvicorn" in path.stem:
        pytest.importorskip("uvicorn", reason="the example is one for uvicorn")
    # Programs started by hand have no test runner among their ancestors, nor its folder.
    command = [sys.executable, "-W", "default::ResourceWarning", str(path)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "port" in done.stdout
