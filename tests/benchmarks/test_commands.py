"""The benchmarks start as their first lines and the README say, from the root of the project."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = {
    path: found[0]
    for path in sorted((ROOT / "benchmarks").rglob("*.py"))
    if (found := re.findall(r"^    python -m (benchmarks\.\S+)", path.read_text(), re.MULTILINE))
}


def test_modules_name_themselves():
    expected = {
        path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for path in COMMANDS
    }
    assert expected == COMMANDS
    assert {"benchmarks.cost", "benchmarks.sharpness"} <= set(COMMANDS.values())


@pytest.mark.parametrize("module", COMMANDS.values())
def test_command_in_the_docstring_runs(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert end.value.code == 0
    assert "--" in capsys.readouterr().out


def test_they_start_from_the_root_of_the_project():
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-m", "benchmarks.same_bits", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout
