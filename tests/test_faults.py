"""Whatever is broken, a command ends with the right result or one clear line."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import main
from samon_jax.processes import environment as environ
from samon_jax.processes import failure
from samon_jax.training import cli
from samon_jax.workdir.lock import locked

ROOT = Path(__file__).parent.parent
RUN = (
    f"--config={ROOT}/configs/digits.py",
    "--config.epochs=1",
    "--config.batch_size=64",
    "--config.data.train_examples=128",
    "--config.data.test_examples=100",
    "--config.log.tensorboard=False",
)


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    (folder / "data").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMON_CACHE_DIR", str(folder / "cache"))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
        patch.setenv("TFDS_DATA_DIR", str(folder / "data"))
        yield


def call(*arguments):
    return main.main(["main.py", *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, environment):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert call(*RUN, f"--workdir={workdir}") == 0
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def accuracy(workdir):
    return json.loads((workdir / "summary.json").read_text())["test_accuracy"]


def one_line(capsys, *words):
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for word in words:
        assert word in captured.err
    return captured.err


@pytest.mark.parametrize(
    "content",
    ["[]", "3", "{", '{"steps": 2}', '{"steps": 2, "test_accuracy": null, "test_loss": 1}', "\xff"],
)
def test_a_broken_summary_is_made_again(finished, workdir, capsys, content):
    (workdir / "summary.json").write_bytes(content.encode("latin-1"))
    assert call(*RUN, f"--workdir={workdir}") == 0
    assert "making it again" in capsys.readouterr().out
    assert accuracy(workdir) == accuracy(finished)


@pytest.mark.parametrize(
    "content", [b"\xff\x00\n", b'{"step": "two"}\n', b'[]\n{"epoch": 1, "step": 2}\n', None]
)
def test_broken_records_are_measured_again(finished, workdir, capsys, content):
    (workdir / "summary.json").unlink()
    metrics = workdir / "metrics.jsonl"
    whole = json.loads(metrics.read_text())
    if content is None:
        metrics.unlink()
    else:
        metrics.write_bytes(content)
    assert call(*RUN, f"--workdir={workdir}") == 0
    again = json.loads(metrics.read_text())
    assert {**whole, "seconds": 0, "examples_per_second": 0} == {
        **again,
        "seconds": 0,
        "examples_per_second": 0,
    }
    assert accuracy(workdir) == accuracy(finished)


def test_good_records_around_a_damaged_one_stay(workdir):
    from samon_jax.workdir import files

    record = json.loads((workdir / "metrics.jsonl").read_text())
    lines = [json.dumps(record | {"epoch": i, "step": 2 * i}) for i in (1, 2, 3)]
    (workdir / "metrics.jsonl").write_text("\n".join([lines[0], lines[1][:40], lines[2]]) + "\n")
    said = []
    assert [r["epoch"] for r in files.read_metrics(workdir, said.append)] == [1, 3]
    assert "1 of 3 lines are damaged" in said[0]


def test_a_run_that_two_wrote_is_recognized(workdir):
    from samon_jax.workdir import files

    record = json.loads((workdir / "metrics.jsonl").read_text())
    order = (1, 1, 2, 3, 2)
    lines = [json.dumps(record | {"epoch": i, "step": 2 * i}) for i in order]
    (workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    said = []
    assert [r["epoch"] for r in files.read_metrics(workdir, said.append)] == [1, 2, 3]
    assert "out of order" in said[0]


def test_metrics_that_are_a_folder(workdir, capsys):
    (workdir / "summary.json").unlink()
    (workdir / "metrics.jsonl").unlink()
    (workdir / "metrics.jsonl").mkdir()
    assert call(*RUN, f"--workdir={workdir}") == 2
    one_line(capsys, "metrics.jsonl cannot be read")


@pytest.mark.parametrize("depth", [150, 900, 100_000])
def test_a_config_nested_very_deep(workdir, capsys, depth):
    text = '{"compare": {"methods": ' + '{"a":' * depth + "1" + "}" * depth + "}}"
    (workdir / "config.json").write_text(text)
    for mode in (RUN, ("--mode=eval",)):
        assert call(*mode, f"--workdir={workdir}") == 2
        one_line(capsys, "config.json cannot be read as JSON")


def test_a_saved_value_that_is_not_allowed(workdir, capsys):
    config = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(config | {"eval_batch_size": 0}))
    assert call("--mode=eval", f"--workdir={workdir}") == 2
    one_line(capsys, "config.json", "eval_batch_size=0 is not allowed")


@pytest.mark.parametrize(
    "command",
    [
        RUN,
        (f"--config={ROOT}/configs/digits.py:compare",),
        ("--mode=reproduce", "--table=17"),
        ("--mode=reproduce", "--table=17", "--scale=smoke"),
    ],
)
def test_one_command_at_a_time_in_a_work_directory(tmp_path, capsys, command):
    with locked(tmp_path):
        assert call(*command, f"--workdir={tmp_path}") == 2
    one_line(capsys, f"is in use by process {os.getpid()} on", "since", "choose another --workdir")


def test_an_encoding_that_lacks_signs(monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    environ.print_anything()
    print("ρ", os.fsdecode(b"\xff"), flush=True)
    assert stdout.buffer.getvalue() == b"\\u03c1 \\udcff\n"


def test_a_cache_of_programs_that_is_full_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr(environ, "_said", set())
    for name in ("one", "two"):
        reason = f"Error writing persistent compilation cache entry for '{name}': OSError: full"
        environ._show_warning(reason, UserWarning, "compiler.py", 834)
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert "cache of compiled programs cannot be written (OSError: full)" in captured.out
    assert captured.err == ""


def test_a_platform_that_is_not_there(monkeypatch, workdir, capsys):
    def devices():
        raise AssertionError  # what JAX says of a known platform

    monkeypatch.setattr("jax.devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert call("--mode=eval", f"--workdir={workdir}") == 2
    one_line(capsys, "JAX_PLATFORMS='cuda' is not allowed here: there is no such device")


def test_the_home_directory_in_a_work_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert cli.parse(["main.py", "--mode=eval", "--workdir=~/x"]).workdirs == ("/home/me/x",)


def test_results_never_stand_under_another_config(workdir, capsys):
    (workdir / "config.json").unlink()
    assert call(*RUN, "--config.sam.rho=0.25", f"--workdir={workdir}") == 2
    one_line(capsys, "summary.json belongs to a run with another config", "sam.rho: 0.5 there")
    (workdir / "config.json").unlink(missing_ok=True)
    (workdir / "summary.json").unlink()
    assert call(*RUN, "--config.seed=3", f"--workdir={workdir}") == 2
    one_line(capsys, "checkpoints", "belongs to a run with another config", "seed: 0 there")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--workdir=" + "x" * 300,), ("File name too long",)),
        (("--workdir=w", "--config.epochs=2147483648"), ("epochs=2147483648",)),
        (("--workdir=w", "--config.epochs=2000000000"), ("epochs=2000000000", "2**31 steps")),
        (("--workdir=w", "--config.optimizer.accumulate=1000"), ("accumulate=1000", "2 steps")),
        (("--workdir=w", "--config.optimizer.lr=1e39"), ("optimizer.lr=1e+39", "float32")),
        (("--workdir=w", "--config.sam.rho=1e39"), ("sam.rho=1e+39", "float32")),
        (("--workdir=w", "--config.data.dir=nowhere"), ("data.dir='nowhere' does not exist",)),
        (("--workdir=w", "--out=there"), ("--out=there has no effect with --mode=train",)),
        (("--workdir=w", "--checkpoint=best"), ("--checkpoint=best has no effect",)),
    ],
)
def test_values_that_go_nowhere(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert call(*RUN, *arguments) == 2
    one_line(capsys, *words)
    assert not list(tmp_path.iterdir())


def test_a_split_of_sets_that_have_one(capsys):
    assert call("--mode=eval", "--workdir=w", "--data=imagenet_a", "--split=val") == 2
    one_line(capsys, "--split=val has no effect with --data")


CONFIGS = {
    "eta of text": ("config.sam.eta = 'x'", ("eta",)),
    "rho_min of text": ("config.sam.rho_min = 'x'", ("rho_min",)),
    "interrupt": ("raise KeyboardInterrupt", ("KeyboardInterrupt",)),
    "exit": ("raise SystemExit(0)", ("SystemExit",)),
    "the system's": ("raise OSError('no', 'way')", ("OSError",)),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config_files_that_are_wrong(tmp_path, capsys, name):
    code, words = CONFIGS[name]
    path = tmp_path / "config.py"
    path.write_text(
        "from samon_jax.training.config import default_config\n"
        f"def get_config():\n    config = default_config()\n    {code}\n    return config\n"
    )
    assert call(f"--config={path}", f"--workdir={tmp_path / 'run'}") == 2
    one_line(capsys, "config.py", *words)


@pytest.mark.parametrize("flag", ["--config=", "--config.data.dir="])
def test_names_that_are_too_long(tmp_path, capsys, flag):
    assert call(*RUN, f"{flag}{'x' * 300}", f"--workdir={tmp_path / 'run'}") == 2
    one_line(capsys, "xxx")


def test_numpy_numbers_in_a_config_file_are_numbers(finished, workdir, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "import importlib.util, numpy as np\n"
        f"spec = importlib.util.spec_from_file_location('digits', r'{ROOT}/configs/digits.py')\n"
        "digits = importlib.util.module_from_spec(spec); spec.loader.exec_module(digits)\n"
        "def get_config():\n    config = digits.get_config()\n"
        "    with config.ignore_type():\n"
        "        config.sam.rho, config.epochs = np.float64(0.5), np.int64(1)\n"
        "    return config\n"
    )
    assert call(f"--config={path}", *RUN[2:], f"--workdir={workdir}") == 0  # the same run


@pytest.mark.parametrize("field", ["sam.rho=1e12", "optimizer.lr=1e5"])
def test_nothing_that_is_not_finite_is_saved(tmp_path, capsys, field):
    workdir = tmp_path / "run"
    many = ("--config.data.train_examples=640", "--config.schedule.warmup_epochs=0")
    assert call(*RUN, *many, f"--config.{field}", f"--workdir={workdir}") == 2
    one_line(capsys, "no checkpoint was saved yet", "smaller optimizer.lr or sam.rho")
    assert not list((workdir / "checkpoints").glob("[0-9]*"))


def test_an_unforeseen_exception_is_one_line_and_a_report(workdir, capsys, monkeypatch):
    (workdir / "summary.json").unlink()

    def broken(*args, **kwargs):
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("samon_jax.training.loop.start_or_resume", broken)
    assert call(*RUN, f"--workdir={workdir}") == 1
    line = one_line(capsys, "ZeroDivisionError: of all things", "error.log")
    report = (workdir / "error.log").read_text()
    assert "in broken" in report
    assert "jax 0." in report
    assert "batch_size: 64" in report
    assert str(workdir) in line
    with pytest.raises(ZeroDivisionError):
        call(*RUN, f"--workdir={workdir}", "--debug")


def test_want_of_memory_names_what_needs_it():
    from samon_jax.training.config import default_config

    error = RuntimeError("RESOURCE_EXHAUSTED: " + "Out of memory\n" * 30)
    line = failure.one_line(error, default_config())
    assert "batch_size=128" in line
    assert "wrn-28-10" in line
    assert "\n" not in line


def test_parameters_that_do_not_fit_in_memory(tmp_path):
    # One kernel of 24 GB is asked for; on CPU, JAX waits forever when its step is read.
    command = [sys.executable, "main.py", *RUN, f"--workdir={tmp_path / 'run'}"]
    command += ["--config.model=wrn-16-400"]
    limited = ["bash", "-c", 'ulimit -v 9000000; exec "$@"', "-", *command]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "out of memory with batch_size=64 and model='wrn-16-400'" in line


@pytest.mark.parametrize("within", ["stop_signals", "raise_on_signals"])
def test_a_second_signal_ends_a_step_that_nothing_interrupts(within):
    code = (
        f"exec(open({str(ROOT / 'samon_jax/processes/signals.py')!r}).read())\n"
        f"import hashlib\nwith {within}():\n    print('at work', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"  # as XLA, without Python's lock
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.5)  # until the step has begun
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGTERM)
    try:
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143
    assert stderr == "SIGTERM again: ended at once; what is on disk is kept\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_before_anything_began(number, status):
    code = (
        "import runpy, os, sys\n"
        "class Import:\n    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == 'jax': os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Import())\n"
        "runpy.run_path('main.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status
    assert done.stderr == f"{signal.Signals(number).name}: stopped before it began\n"


def test_a_config_that_changed_is_not_that_of_the_checkpoint(workdir, capsys):
    path = workdir / "config.json"
    path.write_text(path.read_text().replace('"train_examples": 128', '"train_examples": 129'))
    assert call("--mode=eval", f"--workdir={workdir}") == 2
    one_line(capsys, "checkpoints belongs to", "data.train_examples: 128 there, 129 now")


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_other_modes_too(tmp_path, number, status):
    command = [sys.executable, "main.py", "--mode=reproduce", "--list"]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # it is at work
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert stderr == f"{signal.Signals(number).name}: stopped; what is finished stays\n"


def damage(folder, seed):
    """Damages a random file of a folder in a random way; says what was done."""
    chance = random.Random(seed)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    path = chance.choice(paths)
    content = bytearray(path.read_bytes())
    what = chance.choice(["flip", "cut", "empty", "delete", "noise"])
    if what == "delete":
        path.unlink()
    elif what == "flip" and content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
    elif what == "cut" and content:
        path.write_bytes(content[: chance.randrange(len(content))])
    elif what == "noise":
        path.write_bytes(chance.randbytes(max(len(content), 1)))
    else:
        path.write_bytes(b"")
    return f"{path.relative_to(folder)}: {what}"


def check_damaged(workdir, finished, seed, capsys, folder=None):
    what = damage(folder or workdir, seed)
    expected = accuracy(finished)
    for arguments in (("--mode=eval",), RUN):
        status = call(*arguments, f"--workdir={workdir}")
        captured = capsys.readouterr()
        assert status in (0, 2), (what, captured.err)
        if status == 2:
            assert captured.err.count("\n") == 1, (what, captured.err)
        else:
            assert f"{100 * expected:.2f} %" in captured.out, (what, captured.out)
            assert captured.err == "", (what, captured.err)


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_file_is_survived_or_named(finished, workdir, capsys, seed):
    check_damaged(workdir, finished, seed, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 280))
def test_many_damaged_files(finished, workdir, capsys, seed):
    check_damaged(workdir, finished, seed, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_damaged_data(finished, workdir, tmp_path, monkeypatch, capsys, seed):
    copy = shutil.copytree(os.environ["TFDS_DATA_DIR"], tmp_path / "data")
    monkeypatch.setenv("TFDS_DATA_DIR", str(copy))
    check_damaged(workdir, finished, seed, capsys, folder=copy)
