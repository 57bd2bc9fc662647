"""The methods built on SAM, in whole training steps of the tiny model."""

import jax
import jax.flatten_util
import numpy as np
import pytest
import tiny

from samon_jax.methods import PLAIN, REUSE, SHARP
from samon_jax.training.run import set_up

ALL = {"sam__mask": "all", "sam__rho": 0.3}


@pytest.fixture(scope="module")
def sam():
    """Three steps of SAM."""
    return tiny.walk(set_up(tiny.config(**ALL)), 3)


@pytest.mark.parametrize(
    "fields",
    [
        # These shares round to the whole batch.
        {"sam__gsam_alpha": 1e-9, "sam__esam_beta": 1 - 1e-9},
        {"sam__ascent_fraction": 0.999},
        {"sam__esam_gamma": 0.999, "sam__sparse": "ssam_d", "sam__sparsity": 0.0},
    ],
)
def test_at_trivial_settings_it_is_sam(sam, fields):
    state, losses = tiny.walk(set_up(tiny.config(**ALL, **fields)), 3)
    tiny.assert_trees_close(state.params, sam[0].params, rtol=1e-3, atol=1e-5)
    tiny.assert_trees_close(
        state.model_state["batch_stats"], sam[0].model_state["batch_stats"], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(losses, sam[1], rtol=1e-4)
    assert int(state.sums["correct"]) == int(sam[0].sums["correct"])
    assert int(state.sums["examples"]) == 3 * 128


def test_looksam_written_out():
    """Liu et al. 2022, algorithm 1: g_s, then g + α ‖g‖ / ‖g_v‖ g_v with the last g_v."""
    run = set_up(
        tiny.config(**ALL, sam__look_every=2, data__crop_padding=0, optimizer__momentum=0.0)
    )
    assert [call.kind for call in tiny.first_calls(run, 4)] == [SHARP, REUSE, SHARP, REUSE]
    start, (first, _), (second, _) = tiny.start(run), tiny.walk(run, 1), tiny.walk(run, 2)
    g, g_sharp = gradients(run, start, tiny.batch_rows(run), 0.3)
    g_v = g_sharp - (g_sharp @ g) / (g @ g) * g
    w = flat(start.params)
    expected = w - 0.1 * (g_sharp + 5e-4 * w)
    np.testing.assert_allclose(flat(first.params), expected, rtol=1e-3, atol=1e-5)
    g, _ = gradients(run, first, tiny.batch_rows(run, 1), 0.3)
    g = g + 0.7 * np.linalg.norm(g) / np.linalg.norm(g_v) * g_v
    w = flat(first.params)
    lr = 0.05 * (1 + np.cos(np.pi / run.total_steps))
    np.testing.assert_allclose(flat(second.params), w - lr * (g + 5e-4 * w), rtol=2e-3, atol=2e-5)


def test_looksam_counts_from_the_first_perturbed_step():
    """Also where a call holds several steps: it ends where the kind of step changes."""
    for fields in ({}, {"steps_per_dispatch": 4}):
        run = set_up(tiny.config(sam__look_every=5, sam__start=1, **fields))
        calls = [*run.calls(0, 0), *run.calls(1, 0)]
        kinds = [call.kind for call in calls for _ in range(call.steps)]
        assert kinds[:11] == [PLAIN] * 11
        assert kinds[11:] == [REUSE if i % 5 else SHARP for i in range(11)]
    assert max(call.steps for call in calls) == 4


def test_flops_of_looksam_are_the_mean_over_its_steps():
    """A sharp step is two of SGD, since it needs both whole gradients."""
    run = set_up(tiny.config(**ALL, sam__look_every=5))
    ratio = run.flops_per_step() / run.flops_per_step(perturb=False)
    assert pytest.approx(ratio, abs=0.05) == 1.2


def test_gsam_written_out():
    """Zhuang et al. 2022, algorithm 1."""
    run = set_up(tiny.config(**ALL, sam__gsam_alpha=0.4, data__crop_padding=0))
    start = tiny.start(run)
    after, _ = tiny.trained(run)
    g, g_sharp = gradients(run, start, tiny.batch_rows(run), 0.3)
    orthogonal = g - (g @ g_sharp) / (g_sharp @ g_sharp) * g_sharp
    w = flat(start.params)
    expected = w - 0.1 * (g_sharp - 0.4 * orthogonal + 5e-4 * w)
    np.testing.assert_allclose(flat(after.params), expected, rtol=1e-3, atol=1e-5)


def test_esam_descends_on_the_examples_whose_loss_rises_most():
    run = set_up(tiny.config(**ALL, sam__esam_gamma=0.25, data__crop_padding=0))
    start = tiny.start(run)
    after, metrics = tiny.trained(run)
    rows = tiny.batch_rows(run)
    losses = losses_of(run, start, rows)
    params, unflatten = jax.flatten_util.ravel_pytree(jax.device_get(start.params))
    g = np.asarray(jax.grad(lambda w: losses(unflatten(w)).mean())(params))
    moved = params + 0.3 * g / np.linalg.norm(g)
    rise = np.asarray(losses(unflatten(moved)) - losses(unflatten(params)))
    chosen = np.argsort(-rise)[:32]
    of_chosen = losses_of(run, start, rows[chosen])
    g_sharp = np.asarray(jax.grad(lambda w: of_chosen(unflatten(w)).mean())(moved))
    expected = params - 0.1 * (g_sharp + 5e-4 * params)
    np.testing.assert_allclose(flat(after.params), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics.loss, [losses(unflatten(params)).mean()], rtol=1e-5)
    assert int(after.sums["examples"]) == 128  # the clean pass sees them all


def test_a_fraction_for_the_ascent_counts_what_it_sees():
    """Accuracy and loss are those of the first 32 of 128 examples, the gradient is of all."""
    config = tiny.config(**ALL, sam__ascent_fraction=0.25, data__crop_padding=0)
    run = set_up(config)
    start = tiny.start(run)
    after, metrics = tiny.trained(run)
    rows = tiny.batch_rows(run)
    first, whole = losses_of(run, start, rows[:32]), losses_of(run, start, rows)
    params, unflatten = jax.flatten_util.ravel_pytree(jax.device_get(start.params))
    g = np.asarray(jax.grad(lambda w: first(unflatten(w)).mean())(params))
    moved = params + 0.3 * g / np.linalg.norm(g)
    g_sharp = np.asarray(jax.grad(lambda w: whole(unflatten(w)).mean())(moved))
    expected = params - 0.1 * (g_sharp + 5e-4 * params)
    np.testing.assert_allclose(flat(after.params), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics.loss, [first(unflatten(params)).mean()], rtol=1e-5)
    assert int(after.sums["examples"]) == 32
    assert metrics.sums["examples"].tolist() == [32]
    assert metrics.sums["correct"].tolist() == [int(after.sums["correct"])]


@pytest.mark.parametrize(
    "fields",
    [
        {"sam__mask": "all", "sam__gsam_alpha": 0.4, "sam__rho_min": 0.05, "sam__m": 64},
        {"sam__mask": "all", "sam__esam_beta": 0.6, "sam__esam_gamma": 0.5, "norm_dropout": 0.1},
        {"sam__mask": "only_norm", "sam__look_every": 3},
        {
            "sam__mask": "all",
            "sam__sparse": "ssam_d",
            "sam__sparsity": 0.9,
            "sam__ascent_fraction": 0.25,
            "sam__batch_stats": "both",
        },
    ],
)
def test_on_two_devices_the_loss_falls_and_the_devices_agree(fields):
    run = set_up(tiny.config(num_devices=2, **fields))
    state, losses = tiny.walk(run, 11)
    assert np.mean(losses[-3:]) < 0.95 * losses[0]
    for leaf in jax.tree.leaves(state):
        one, other = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        np.testing.assert_array_equal(one, other)


def test_both_passes_drop_the_same_and_evaluation_nothing():
    """With ρ = 0 the second pass of SAM is the first: the step is that of plain SGD."""
    run = set_up(tiny.config(norm_dropout=0.3, sam__rho=0.0))
    sharp, losses = tiny.walk(run, 2)
    plain, plain_losses = tiny.walk(run, 2, PLAIN)
    tiny.assert_trees_close(sharp.params, plain.params, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(losses, plain_losses, rtol=1e-5)
    without = set_up(tiny.config())
    variables = tiny.start(run).variables
    # Two programs: they may round differently, but dropout would show in the first digits.
    mine, theirs = (
        own.task.evaluate(variables, own.examples(), own.devices) for own in (run, without)
    )
    assert mine["test_accuracy"] == theirs["test_accuracy"]
    np.testing.assert_allclose(mine["test_loss"], theirs["test_loss"], rtol=1e-5)


def losses_of(run, state, rows):
    """Label-smoothed losses of some training examples as a function of the parameters."""
    images = run.source.dataset.train.images[rows] / 255.0
    images = ((images - run.source.dataset.mean) / run.source.dataset.std).astype(np.float32)
    targets = 0.9 * np.eye(10)[run.source.dataset.train.labels[rows]] + 0.01

    return lambda params: _losses(params, state.model_state["batch_stats"], images, targets)


@jax.jit  # one by one, its operations take far longer to compile
def _losses(params, batch_stats, images, targets):
    variables = {"params": params, "batch_stats": batch_stats}
    logits, _ = tiny.Tiny(10).apply(variables, images, True, mutable=["batch_stats"])
    return -(targets * jax.nn.log_softmax(logits)).sum(1)


def gradients(run, state, rows, rho):
    """Flat gradients at w and at w + ρ g / ‖g‖."""
    losses = losses_of(run, state, rows)
    params, unflatten = jax.flatten_util.ravel_pytree(jax.device_get(state.params))
    gradient = jax.grad(lambda w: losses(unflatten(w)).mean())
    g = np.asarray(gradient(params))
    return g, np.asarray(gradient(params + rho * g / np.linalg.norm(g)))


def flat(params):
    return np.asarray(jax.flatten_util.ravel_pytree(jax.device_get(params))[0])
