"""The benchmarks start as their first lines and the README say, from the root of the project."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_command_in_the_docstring_runs(name):
    text = (ROOT / "benchmarks" / f"{name}.py").read_text()
    (module,) = re.findall(r"^    python -m (\S+)", text, re.MULTILINE)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--rounds" in done.stdout
