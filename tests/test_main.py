"""The command line: a run, an evaluation, and one clear line for every mistake."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import main
from samon_jax import data
from samon_jax.training import cli

ROOT = Path(__file__).parent.parent
DIGITS = f"--config={ROOT}/configs/digits.py"
CIFAR = f"--config={ROOT}/configs/cifar.py"
FAST = ("--config.epochs=2", "--config.batch_size=64", "--config.data.train_examples=128")
FAST += ("--config.sam.rho=0.1",)


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory):
    """Caches and data of our own."""
    folder = tmp_path_factory.mktemp("main")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMON_CACHE_DIR", str(folder / "cache"))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "xla"))
        patch.setenv("TFDS_DATA_DIR", str(folder / "data"))
        yield


def call(*arguments):
    return main.main(["main.py", *map(str, arguments)])


def fails_with_one_line(capsys, *arguments):
    """Runs the command line, which must fail, and returns its one line."""
    assert call(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory, environment):
    """Two epochs of two steps in a process of their own, on its one device."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    silent = "--config.log.every_seconds=0"  # however long it takes
    command = [sys.executable, "main.py", DIGITS, f"--workdir={workdir}", *FAST, silent]
    environ = {**os.environ, "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("=8", "=1")}
    process = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)
    return workdir, process


def test_a_run_prints_its_epochs_and_nothing_else(trained):
    workdir, process = trained
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    lines = process.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/2", "epoch 2/2", "finished"]
    config = json.loads((workdir / "config.json").read_text())
    assert config["sam"]["rho"] == 0.1
    assert (workdir / "summary.json").exists()


@pytest.mark.parametrize("which", ["best", "newest"])
def test_eval_prints_what_the_run_measured(trained, capsys, which):
    workdir, _ = trained
    assert call("--mode=eval", f"--workdir={workdir}", f"--checkpoint={which}") == 0
    captured = capsys.readouterr()
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    wanted = records[-1]
    if which == "best":
        wanted = max(records, key=lambda record: (record["test_accuracy"], record["step"]))
    assert captured.out == (
        f"step {wanted['step']}: test accuracy {100 * wanted['test_accuracy']:.2f} %, "
        f"test loss {wanted['test_loss']:.4f}\n"
    )
    assert captured.err == ""


def test_a_finished_run_says_so(trained, capsys):
    workdir, _ = trained
    assert call(DIGITS, f"--workdir={workdir}", *FAST) == 0
    assert "is finished" in capsys.readouterr().out


def test_another_config_in_the_same_workdir(trained, capsys):
    workdir, _ = trained
    line = fails_with_one_line(
        capsys, DIGITS, f"--workdir={workdir}", *FAST, "--config.epochs=3", "--config.sam.rho=0.5"
    )
    assert "epochs: 2 there, 3 now" in line
    assert "sam.rho: 0.1 there, 0.5 now" in line
    assert "batch_size" not in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([DIGITS, "--config.sam.rhoo=1"], ["--config.sam.rhoo=1", "rhoo", "batch_stats", "rho"]),
        ([DIGITS, "--config.speed=1"], ["--config.speed=1", "batch_size"]),
        ([DIGITS, "--config.batch_size=abc"], ["batch_size", "abc"]),
        ([DIGITS, "--config.batch_size=1.5"], ["batch_size", "1.5"]),
        ([DIGITS, "--config.sam.variant=gsam"], ["sam.variant='gsam'", "layerwise_l2"]),
        ([DIGITS, "--config.model=vgg"], ["vgg", "digits-resnet"]),
        ([DIGITS, "--config.sam.mask=bn"], ["sam.mask='bn'", "only_norm"]),
        ([DIGITS, "--config.data.name=mnist"], ["mnist", "cifar100"]),
        ([DIGITS, "--config.sam.rho=-1"], ["sam.rho=-1.0", ">= 0"]),
        ([DIGITS, "--config.sam.rho=nan"], ["sam.rho=nan"]),
        ([DIGITS, "--config.sam.eta=-1"], ["sam.eta=-1.0", ">= 0"]),
        ([DIGITS, "--config.sam.mask=only_norm_in:b9"], ["b9", "stage1_block0"]),
        ([DIGITS, "--config.num_devices=3"], ["batch_size=64", "3 devices"]),
        ([DIGITS, "--config.num_devices=99"], ["num_devices=99", "8"]),
        ([DIGITS, "--config.sam.m=7"], ["sam.m=7", "64"]),
        ([DIGITS, "--config.batch_size=2000"], ["batch_size=2000", "1437"]),
        ([f"{DIGITS}:fast"], ["fast", "compare"]),
        ([CIFAR, "--config.data.dir=/nowhere"], ["data.dir='/nowhere' does not exist"]),
        ([f"{CIFAR}:dataset=svhn"], ["svhn", "cifar10, cifar100"]),
        ([f"{DIGITS}:compare", "--config.compare.seeds=-1"], ["compare.seeds=-1", "0 <= value"]),
        ([DIGITS, "--config.data.flip=maybe"], ["--config.data.flip=maybe", "true or false"]),
        ([DIGITS, "--config.epochs=1e3"], ["--config.epochs=1e3", "an integer"]),
        ([DIGITS, "--config.sam.rho=big"], ["--config.sam.rho=big", "a number"]),
        ([DIGITS, "--config.sam.eta=0.1"], ["sam.eta=0.1", "'sam'"]),
        ([DIGITS, "--config.data.crop_padding=1000000"], ["data.crop_padding=1000000", "8"]),
        (["--config"], ["--config"]),
        ([f"{CIFAR}:optimizer=adam"], ["optimizer='adam'", "adamw"]),
        ([f"{CIFAR}:speed=3"], ["speed=3", "dataset, model, variant"]),
        ([f"{CIFAR}:epochs=many"], ["epochs=many", "integer"]),
        ([f"{CIFAR}:variant=gsam"], ["gsam", "layerwise_l2"]),
        ([f"{CIFAR}:variant=fisher,mask=all"], ["rho", "fisher", "all"]),
        (["--config=nowhere.py"], ["nowhere.py"]),
        (["--config=nowhere.py", "--config.epochs=1"], ["nowhere.py"]),
        ([], ["--config is missing"]),
        ([DIGITS, "--mode=test"], ["mode", "train", "eval"]),
        ([DIGITS, "--speed=1"], ["speed"]),
        ([DIGITS, "train"], ["'train'"]),
        (["--mode=eval"], ["config.json is missing"]),
        (["--mode=eval", DIGITS], ["digits.py is not allowed with --mode=eval", "data.dir"]),
        (["--mode=eval", "--config.sam.rho=1"], ["--config.sam.rho", "--config.data.dir"]),
        (["--mode=eval", "--config.speed=1"], ["--config.speed=1", "batch_size"]),
    ],
)
def test_each_mistake_is_one_line(tmp_path, capsys, arguments, words):
    workdir = tmp_path / "run"
    line = fails_with_one_line(capsys, *arguments, f"--workdir={workdir}")
    for word in words:
        assert word in line
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", ["get_config"]),
        ("import nonexisting", ["ModuleNotFoundError", "'nonexisting'"]),
        ("def get_config(): raise ValueError('two\\nlines')", ["ValueError: two lines"]),
        ("def get_config(): return 3", ["int", "ConfigDict"]),
        ("def get_config(", ["SyntaxError"]),
        (
            "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'lr': 1})",
            ["batch_size", "default_config()"],
        ),
    ],
)
def test_a_config_file_that_is_none(tmp_path, capsys, text, words):
    file = tmp_path / "own.py"
    file.write_text(text)
    for overrides in ([], ["--config.epochs=1"]):
        line = fails_with_one_line(capsys, f"--config={file}", "--workdir=x", *overrides)
        for word in (f"--config={file}: ", *words):
            assert word in line


def test_a_flag_in_place_of_a_value(capsys):
    line = fails_with_one_line(capsys, "--config", "--workdir=x")
    assert "--config is missing its value" in line
    assert "'--workdir=x'" in line


def test_workdir_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for mode in ([DIGITS], ["--mode=eval"]):
        line = fails_with_one_line(capsys, *mode, f"--workdir={tmp_path / 'file'}")
        assert line.startswith(f"error: workdir='{tmp_path / 'file'}'")
        assert "not a directory" in line


def test_eval_takes_data_from_elsewhere(trained, tmp_path, capsys, monkeypatch):
    """The saved data.dir may be gone: the flag wins, then TFDS_DATA_DIR."""
    workdir = tmp_path / "moved"
    shutil.copytree(trained[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["dir"] = str(tmp_path / "gone")
    (workdir / "config.json").write_text(json.dumps(config))
    seen = []
    make = data.make_source

    def listen(config, **settings):
        seen.append(config.data.dir)
        return make(config, **settings)

    monkeypatch.setattr(data, "make_source", listen)
    other = tmp_path / "other"
    other.mkdir()
    flags = ("--config.eval_batch_size=7", f"--config.data.dir={other}")
    for arguments in ((), flags):
        assert call("--mode=eval", f"--workdir={workdir}", *arguments) == 0
    assert seen == ["", str(other)]
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert not (tmp_path / "gone").exists()


def test_workdir_is_needed(capsys):
    assert "--workdir is missing" in fails_with_one_line(capsys, DIGITS)


def test_eval_before_the_first_checkpoint(tmp_path, capsys):
    (tmp_path / "config.json").write_text(
        cli.parse(["main.py", DIGITS, "--workdir=x"]).config.to_json()
    )
    line = fails_with_one_line(capsys, "--mode=eval", f"--workdir={tmp_path}")
    assert "holds no checkpoint yet" in line


def test_overrides_reach_the_config():
    arguments = cli.parse(
        ["main.py", f"{CIFAR}:rho=0.3", "--config.sam.rho=0.5", "--workdir", "here"]
    )
    assert (arguments.config.sam.rho, arguments.workdirs, arguments.mode) == (
        0.5,
        ("here",),
        "train",
    )


def test_help_shows_the_flags(capsys):
    with pytest.raises(SystemExit) as stopped:
        call("--help")
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for flag in ("--config", "--workdir", "--mode", "--checkpoint"):
        assert flag in out
