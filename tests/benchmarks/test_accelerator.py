"""The command for an accelerator, at toy size and with what may be missing there missing."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import steps
from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import device, peer, plan, profile, speed
from benchmarks.accelerator.budget import Budget
from benchmarks.accelerator.report import Report
from samon_jax.errors import UserError

ROOT = Path(__file__).parents[2]
# What an accelerator's machine may lack.
MISSING = (
    "ml_collections",
    "tensorflow_datasets",
    "tensorflow",
    "sklearn",
    "array_record",
    "matplotlib",
    "tensorboardX",
    "tqdm",
)


def test_runs_without_what_may_be_missing(tmp_path):
    code = f"import sys; sys.modules.update(dict.fromkeys({MISSING}))\n"
    code += "from benchmarks.accelerator import peer\n"
    # As where PyTorch is missing, whether it is or not.
    code += "peer._WORKER = [sys.executable, '-c', 'import a_module_that_is_missing']\n"
    code += "from benchmarks.accelerator.__main__ import main\n"
    code += "sys.exit(main(sys.argv[1:]))"
    arguments = ["--tiny", "--minutes=0.5", f"--out={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "matplotlib is not installed" in done.stdout
    assert "no rows of PyTorch: " in done.stdout
    found = list(map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines()))
    planned = [job.key for job in plan.jobs(tiny=True)]
    assert [result["key"] for result in found] == planned[: len(found)]
    assert len(found) == len(planned) or "the time " in done.stdout  # on a busy machine
    measured, *others = found
    rows = {row["name"]: row for row in measured["rows"]}
    assert rows["SGD"]["operations"] == rows["SGD"]["time"] == 1
    assert rows["SAM-all"]["operations"] == pytest.approx(2, abs=0.02)
    stages = [f"SAM-ON{stages}" for stages in (", last stage", ", last two stages", "")]
    operations = [rows[name]["operations"] for name in ("SGD", *stages, "SAM-all")]
    assert operations == sorted(operations)
    assert len(set(operations)) == len(operations)
    assert rows["SAM-ON in one pass"]["operations"] == pytest.approx(1, abs=0.01)
    for row in rows.values():
        assert row["images_per_second"] == pytest.approx(8e3 / row["ms"])
        assert row["share"] is None  # nobody knows the peak of this device
    ours = [row for row in rows.values() if row["framework"] == "ours"]
    least = min(ours, key=lambda row: row["flops"] / row["ms"])
    for result in others:
        if result["kind"] == "profile":
            assert result["name"] == least["name"]
            assert sum(result["kinds"].values()) > 0
        else:
            base = {row["name"]: row["time"] for row in result["rows"]}[result["base"]]
            assert base == 1
    page = (tmp_path / "report.md").read_text()
    assert "SAM-ON costs" in page
    assert "| SAM-ON, last stage |" in page


def say_nothing(results):
    return f"{len(results)} results"


def report_in(path, device_name="a device"):
    return Report(path, device_name, {"speed": say_nothing}, lambda results, out: None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes=0"], "error: --minutes=0 is not allowed; it must be above 0"),
        (["--minutes=nan"], "error: --minutes=nan is not allowed; it must be above 0"),
        (["--only=speed,all"], "--only=all is not allowed; choose from speed, extras"),
        (["--data=/nowhere", "--only=cifar"], "error: --data=/nowhere is not there"),
        (["--minutes=1e-6"], "--minutes=1e-06 is too little for the first result"),
        (["--out=/proc/none/out"], "error: --out=/proc/none/out cannot be written"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, message):
    assert command.main([f"--out={tmp_path}", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_time_over_ends_the_process_in_the_middle(tmp_path):
    code = (
        "import time; from benchmarks.accelerator import budget\n"
        "budget.GRACE_SECONDS = 0.1\n"
        "b = budget.Budget(0.001)\n"
        "b.stop_then(lambda: print('last words', flush=True) or 5)\n"
        "time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (5, "last words\n")


def test_budget():
    budget = Budget(10)
    passed = budget.share(0)
    time.sleep(0.01)
    assert passed()
    assert not budget.over
    assert not budget.share(0.5)()
    assert 590 < budget.left < 600


def test_a_row_without_memory_is_said_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    def good(params, state, images, labels):
        return params + images @ images, state

    def full(*_):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte")

    def no_peer():
        raise peer.PeerError("PyTorch is not installed")

    rows = [steps.Step(name, step, ()) for name, step in (("SGD", good), ("SAM-all", full))]
    rows.append(steps.Step("SAM-ON", good, ()))
    monkeypatch.setattr(steps, "create", lambda *_: (None, {"params": jnp.ones((4, 4))}))
    monkeypatch.setattr(steps, "random_examples", lambda *_: (jnp.eye(4), jnp.ones(4)))
    monkeypatch.setattr(steps, "all_steps", lambda *_, lr: rows)
    monkeypatch.setattr(speed, "Peer", no_peer)
    report = report_in(tmp_path)
    speed.run(speed.Setting("wrn-10-1", "float32", 4), report, Budget(1))
    found = {row["name"]: row for row in report.results[0]["rows"]}
    assert found["SAM-all"]["note"] == "out of memory"
    assert "ms" not in found["SAM-all"]
    assert found["SAM-ON"]["operations"] == 1
    assert found["SAM-ON"]["ms"] > 0
    assert "no rows of PyTorch: PyTorch is not installed" in capsys.readouterr().out


def test_ratios(monkeypatch):
    monkeypatch.setattr(device, "kind", lambda: "NVIDIA H200")
    abouts = [
        {"name": "SGD", "framework": "ours", "flops": 989e9, "seconds": [2e-3, 2e-3, 4e-3]},
        {"name": "SAM-ON", "framework": "ours", "flops": 2 * 989e9, "seconds": [3e-3, 4e-3, 6e-3]},
        {"name": "SGD", "framework": "PyTorch 2", "seconds": [4e-3, 4e-3, 8e-3]},
        {"name": "SAM-ON", "framework": "PyTorch 2", "seconds": [9e-3, 8e-3, 12e-3]},
        {"name": "SAM", "framework": "PyTorch 2", "note": "out of memory"},
    ]
    sgd, on, torch_sgd, torch_on, torch_sam = speed.finished(abouts, 64, "bfloat16")
    assert (sgd["time"], on["time"], torch_sgd["time"], torch_on["time"]) == (1, 1.5, 1, 2)
    assert (sgd["share"], on["share"]) == pytest.approx((0.5, 0.5))
    assert torch_on["share"] == pytest.approx(2 / 9)  # by our count of the same method
    assert (sgd["speedup"], on["speedup"]) == pytest.approx((2, 2))
    assert on["images_per_second"] == pytest.approx(16_000)
    assert "ms" not in torch_sam
    text = speed.headline([sgd, on, torch_sgd, torch_on, torch_sam])
    assert text == (
        "SAM-ON costs 1.50 times SGD (2.00 counted); it is 2.00 times as fast as PyTorch's SAM-ON; "
        "50 % of the device's peak"
    )
    result = {"model": "wrn", "dtype": "bfloat16", "batch": 64, "rows": [sgd, on, torch_sam]}
    assert "| PyTorch 2: SAM | – | 2" not in speed.show([result])
    assert "out of memory |" in speed.show([result])


def test_peaks():
    assert device.peak("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert device.peak("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert device.peak("NVIDIA A100-SXM4-80GB", "float32") == 156e12
    assert device.peak("TPU v5 lite", "bfloat16") == 197e12
    assert device.peak("TPU v5p", "bfloat16") == 459e12
    assert device.peak("NVIDIA GeForce RTX 2080", "float32") is None


def test_report_goes_on(tmp_path):
    first = report_in(tmp_path)
    first.add("speed", "a", rows=[])
    again = report_in(tmp_path)
    assert again.find("a")["kind"] == "speed"
    assert again.find("b") is None
    again.add("speed", "a", rows=[1])
    assert [r["rows"] for r in report_in(tmp_path).results] == [[1]]
    other = report_in(tmp_path, "another device")
    assert other.find("a") is None
    other.add("speed", "a", rows=[])
    assert other.page() == "# a device\n\n1 results\n\n# another device\n\n1 results\n"
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"results\.jsonl holds something else; move it away"):
        report_in(tmp_path)


def test_kinds_of_kernels():
    names = {
        "sm90_xmma_fprop_implicit_gemm_bf16": "convolution, matrix product",
        "nvjet_tst_128x256": "convolution, matrix product",
        "input_reduce_fusion": "reduction",
        "loop_convert_fusion": "other fusion",
        "wrapped_transpose": "transposition, copy",
        "MemcpyD2D": "transposition, copy",
        "cudnn_generated_fort_native_sdpa_flash_bprop": "attention",
        "something": "other",
    }
    for name, kind in names.items():
        assert profile.by_kind(Counter({name: 1.0})) == {kind: 1.0}, name


def test_plan_begins_with_what_matters_most():
    keys = [job.key for job in plan.jobs(tiny=False)]
    assert keys[:2] == ["speed wrn-28-10 bfloat16 128", "profile speed wrn-28-10 bfloat16 128"]
    assert len(set(keys)) == len(keys)
    settings = [job.key for job in plan.jobs(tiny=False) if job.key.startswith("speed")]
    assert len(settings) == 3 * 2 * 2
    assert {job.part for job in plan.jobs(tiny=True)} == {"speed", "extras"}


def test_pytorch_takes_the_same_steps():
    torch = pytest.importorskip("torch")
    import jax

    from benchmarks.accelerator import torch_models, torch_steps

    model, variables = steps.create("wrn-10-1", 5, "float32", (8, 8, 3))
    params = variables["params"]
    images, labels = steps.random_examples((8, 8, 3), 6, 5)
    rows = {row.name: row for row in steps.all_steps(model, variables, lr=0.25)}
    nchw = torch.tensor(np.array(images)).permute(0, 3, 1, 2)
    for method, ours in speed.SAME.items():
        row = rows[ours]
        step = jax.jit(row.step)
        want, state = step(params, row.state, images, labels)
        want, _ = step(want, state, images, labels)
        network = torch_models.create("wrn-10-1", 5)
        torch_models.load(network, jax.tree.map(np.asarray, params))
        trainer = torch_steps.Trainer(
            network, method, nchw, torch.tensor(np.array(labels)).long(), lr=0.25
        )
        trainer.step()
        trainer.step()
        torch_models.load(reference := torch_models.create("wrn-10-1", 5), _arrays(want))
        for (name, a), b in zip(network.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4, msg=f"{method}, {name}")


def _arrays(tree):
    return {k: _arrays(v) if isinstance(v, dict) else np.array(v) for k, v in tree.items()}


@pytest.mark.parametrize("name", ["three-stages", "imagenet-resnet-50", "vit-s-16", "vit-t"])
def test_pytorch_has_the_same_networks(name):
    pytest.importorskip("torch")
    import jax

    from benchmarks.accelerator import torch_models
    from samon_jax import models

    shape = steps.image_shape(name)
    shapes = jax.eval_shape(
        lambda: models.create(name, 10).init(
            jax.random.key(0), jnp.zeros((1, *shape)), train=False
        )["params"]
    )
    params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)
    torch_models.load(torch_models.create(name, 10), params)  # strict: names and shapes


def test_worker_answers_one_line_a_request():
    pytest.importorskip("torch")
    worker = peer.Peer()
    try:
        request = {"model": "wrn-10-1", "classes": 5, "dtype": "float32", "batch": 2}
        built = worker.ask(do="build", method="SAM-ON", shape=(8, 8, 3), compile=False, **request)
        assert built["row"] == 0
        assert worker.seconds(0, 2) > 0
        with pytest.raises(peer.PeerError, match="KeyError"):
            worker.ask(do="build", method="SGD", shape=(8, 8, 3), **(request | {"model": "no"}))
        assert worker.seconds(0, 1) > 0
    finally:
        worker.close()
