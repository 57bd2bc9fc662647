import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from samon_jax.training import setup
from samon_jax.training.ascent import make_ascent

PARAMS = {"w": jnp.arange(1.0, 5)}


def radius(config, step, rho):
    ascent = make_ascent(config, steps_per_epoch=10)(0, rho, step)
    epsilon, _ = ascent.update(PARAMS, ascent.init(PARAMS), PARAMS)
    return float(optax.tree.norm(epsilon))


def test_a_constant_radius_is_data():
    config = tiny.config(sam__mask="all", sam__rho=0.2)
    assert radius(config, 3, 0.7) == pytest.approx(0.7, rel=1e-5)


@pytest.mark.parametrize(("warmup", "end_lr"), [(0.0, 0.0), (0.0, 0.02), (1.0, 0.02)])
def test_radius_follows_the_learning_rate(warmup, end_lr):
    """Zhuang et al. 2022: rho_min + (rho_max - rho_min) (lr - lr_min) / (lr_max - lr_min)."""
    config = tiny.config(sam__mask="all", sam__rho=0.5, sam__rho_min=0.1, epochs=4)
    config.schedule.warmup_epochs, config.schedule.end_lr = warmup, end_lr
    start = round(10 * warmup)
    smallest = 0.0 if warmup else end_lr
    for step in (0, 5, 10, 25, 39):
        progress = (step - start) / (40 - start)
        lr = end_lr + (0.1 - end_lr) * (1 + math.cos(math.pi * progress)) / 2
        lr = 0.1 * step / start if step < start else lr
        expected = 0.1 + 0.4 * (lr - smallest) / (0.1 - smallest)
        assert radius(config, step, 99.0) == pytest.approx(expected, rel=1e-4)


def test_sparse_masks_are_drawn_with_the_seed():
    config = tiny.config(sam__mask="all", sam__sparse="ssam_f", sam__sparsity=0.5)
    params = {"w": jnp.ones(200)}
    ascent = make_ascent(config, 10)
    masks = [
        jax.jit(lambda seed: ascent(seed, 0.1, 0).init(params).mask)(s)["w"] for s in (0, 0, 1)
    ]
    assert [int(mask.sum()) for mask in masks] == [100] * 3
    np.testing.assert_array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


@pytest.mark.parametrize(("start", "stop", "epochs"), [(0, 0, 2), (1, 0, 1)])
def test_ssam_d_exchanges_its_share_along_the_cosine(start, stop, epochs):
    """T of the cosine are the perturbed steps; the mask changes once per epoch."""
    config = tiny.config(
        sam__mask="all", sam__sparse="ssam_d", sam__drop=0.81, sam__start=start, sam__stop=stop
    )
    config.sam.sparse_update_epochs = 1
    steps_per_epoch, count = 4, 1000
    params = {"w": jnp.arange(1.0, 1 + count)}
    ascent = make_ascent(config, steps_per_epoch)(0, 0.1, 0)
    state = ascent.init(params)
    for step in range(4 * epochs):
        before = state.mask["w"]
        _, state = ascent.update(params, state, params)
        left = int((before & ~state.mask["w"]).sum())
        due = step > 0 and step % steps_per_epoch == 0
        share = 0.81 / 2 * (1 + math.cos(math.pi * step / (4 * epochs)))
        assert left == (math.floor(share * count / 2) if due else 0)


def test_runs_that_differ_in_seed_and_radius_share_one_program():
    """A sweep over ρ compiles once; ρ still does what it says."""
    fields = [{"sam__rho": 0.1}, {"sam__rho": 0.4}, {"sam__rho": 0.1, "seed": 3}]
    runs = [setup.set_up(tiny.config(**f)) for f in fields]
    assert all(run.programs is runs[0].programs for run in runs)
    first, _ = tiny.trained(runs[0])
    with tiny.compilations() as compiled:
        second, _ = tiny.trained(runs[1])
        tiny.trained(runs[2])
    assert not compiled
    assert [float(state.rho) for state in (first, second)] == pytest.approx([0.1, 0.4])
    assert not np.array_equal(*(s.params["stem"]["kernel"] for s in (first, second)))


def test_a_radius_that_falls_is_part_of_the_program():
    one, other = (
        setup.set_up(tiny.config(sam__rho=rho, sam__rho_min=0.1)).programs for rho in (0.2, 0.4)
    )
    assert one is not other
