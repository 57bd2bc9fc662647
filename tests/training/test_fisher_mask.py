import signal

import jax
import numpy as np
import pytest
import tiny

from samon_jax.methods import RENEW
from samon_jax.training import loop
from samon_jax.training import run as runs
from samon_jax.training.run import set_up
from samon_jax.workdir import checkpoints

FIELDS = {"sam__mask": "all", "sam__sparse": "ssam_f", "sam__sparsity": 0.9, "epochs": 3}


def numpy_fisher(params, stats, images, labels):
    """Mean square of the gradient of one example's cross-entropy, backpropagated by hand."""
    weight = {k: np.asarray(v["kernel"], np.float64) for k, v in params.items() if "kernel" in v}
    norms = ("stage1_norm", "stage2_norm")
    deviation = {n: np.sqrt(np.asarray(stats[n]["var"], np.float64) + 1e-5) for n in norms}
    squares = jax.tree.map(lambda leaf: np.zeros(leaf.shape), jax.device_get(params))

    def add(layer, name, gradient):
        squares[layer][name] += gradient**2 / len(labels)

    for x, label in zip(images, labels, strict=True):
        inputs, normalized, outputs = {}, {}, {}
        for layer, norm in (("stem", norms[0]), ("middle", norms[1])):
            inputs[layer] = x
            normalized[norm] = (x @ weight[layer] - stats[norm]["mean"]) / deviation[norm]
            outputs[norm] = normalized[norm] * params[norm]["scale"] + params[norm]["bias"]
            x = np.maximum(outputs[norm], 0)
        logits = x @ weight["head"] + params["head"]["bias"]
        back = np.exp(logits - logits.max())
        back = back / back.sum() - np.eye(10)[label]
        add("head", "kernel", np.outer(x, back))
        add("head", "bias", back)
        back = weight["head"] @ back
        for layer, norm in (("middle", norms[1]), ("stem", norms[0])):
            back = back * (outputs[norm] > 0)
            add(norm, "scale", back * normalized[norm])
            add(norm, "bias", back)
            back = back * params[norm]["scale"] / deviation[norm]
            add(layer, "kernel", np.outer(inputs[layer], back))
            back = weight[layer] @ back
    return squares


def test_the_mask_is_the_top_of_the_fisher_information():
    """Of the first 20 examples of each device; it is renewed before the step itself."""
    config = tiny.config(
        num_devices=2, data__crop_padding=0, label_smoothing=0.0, **FIELDS, sam__fisher_samples=40
    )
    run = set_up(config)
    state = tiny.start(run)
    # Scales, biases and statistics that a network has after some training.
    shake = np.random.default_rng(0).uniform(0.5, 1.5, 16).astype(np.float32)
    stats = state.model_state["batch_stats"]
    for norm in ("stage1_norm", "stage2_norm"):
        state.params[norm]["bias"] = state.params[norm]["bias"] + 0.1 * shake
        state.params[norm]["scale"] = state.params[norm]["scale"] * shake[::-1]
        stats[norm]["var"] = stats[norm]["var"] * shake
    call = tiny.first_calls(run)[0]
    assert call.kind == RENEW
    renewed, _ = run.programs.step(RENEW)((state, run.resident), call.raw)

    rows = call.raw["rows"][:, 0, :20].reshape(-1)
    data = run.source.dataset
    images = ((data.train.images[rows] / 255.0 - data.mean) / data.std).reshape(40, 64)
    params, stats = jax.device_get((state.params, stats))
    fisher = numpy_fisher(params, stats, images, data.train.labels[rows])
    scores = np.concatenate([np.ravel(x) for x in jax.tree.leaves(fisher)])
    mask = np.concatenate([np.ravel(x) for x in jax.tree.leaves(renewed.method_state.mask)])
    assert mask.sum() == round(0.1 * mask.size)
    # Entries as good as equal may change places by rounding.
    threshold = np.sort(scores)[-mask.sum()]
    clear = abs(scores - threshold) > 1e-3 * threshold
    assert clear.sum() > 0.99 * mask.size
    np.testing.assert_array_equal(mask[clear], (scores > threshold)[clear])
    first = state.method_state.mask
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, first, renewed.method_state.mask)))


def test_an_interrupted_run_ends_the_same_and_renews_no_mask_in_between(tmp_path, monkeypatch):
    """Masks are renewed in epochs 0 and 2; the second run begins inside epoch 2."""
    config = tiny.config(**FIELDS, sam__sparse_update_epochs=2, sam__fisher_samples=16)
    calls, kinds = runs.Run.calls, []

    def recorded(self, epoch, start):
        for call in calls(self, epoch, start):
            kinds.append(call.kind)
            yield call

    monkeypatch.setattr(runs.Run, "calls", recorded)
    loop.train(config, tmp_path / "whole")
    assert [step for step, kind in enumerate(kinds) if kind == RENEW] == [0, 22]
    with pytest.MonkeyPatch.context() as patch:
        tiny.signal_after(patch, 26, signal.SIGINT)
        with pytest.raises(SystemExit):
            loop.train(config, tmp_path / "broken")
    assert 22 < checkpoints.saved_steps(tmp_path / "broken")[-1] < 33
    kinds.clear()
    loop.train(config, tmp_path / "broken")
    assert RENEW not in kinds
    run = set_up(config)
    states = [tiny.final_state(run, tmp_path / name) for name in ("whole", "broken")]
    jax.tree.map(np.testing.assert_array_equal, *states)
    mask = np.concatenate([np.ravel(x) for x in jax.tree.leaves(states[0].method_state.mask)])
    assert mask.sum() == round(0.1 * mask.size)


@pytest.mark.parametrize(
    ("fields", "epochs"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"sam__sparse_update_epochs": 2}, [0, 2, 4]),
        ({"sam__sparse_update_epochs": 2, "sam__start": 1}, [1, 3]),
        ({"sam__stop": 2}, [0, 1]),
        ({"sam__sparse": "ssam_d"}, []),
        ({"sam__variant": "none"}, []),
    ],
)
def test_epochs_that_renew_the_mask(fields, epochs):
    """In their first step, which is a call of its own."""
    run = set_up(tiny.config(**FIELDS | {"epochs": 5, "steps_per_dispatch": 4} | fields))
    for epoch in range(5):
        kinds = [(call.kind, call.steps) for call in run.calls(epoch, 0)]
        assert (kinds[0] == (RENEW, 1)) == (epoch in epochs)
        assert RENEW not in [kind for kind, _ in kinds[1:]]
