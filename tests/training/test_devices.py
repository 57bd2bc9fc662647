"""The two kinds of programs, and parameters that are divided among devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from samon_jax.errors import UserError
from samon_jax.training import devices, run
from samon_jax.training.journal import first_state


def walked(steps=3, **fields):
    trained = run.set_up(tiny.config(sam__rho=0.3, **fields))
    state = first_state(trained)
    for call in tiny.first_calls(trained, steps):
        state, _ = trained.programs.step(call.kind)((state, trained.resident), call.raw)
    return trained, state


@pytest.mark.parametrize("m", [0, 64])
def test_pmap_and_jit_do_the_same_to_the_bit(m):
    _, one = walked(num_devices=4, sam__m=m)
    _, other = walked(num_devices=4, sam__m=m, devices__parallel="jit")
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(("mask", "groups"), [("only_norm", 2), ("all", 1)])
def test_divided_parameters_do_the_same(mask, groups, monkeypatch):
    monkeypatch.setattr(devices, "_DIVIDED_ELEMENTS", 64)
    fields = {"devices__parallel": "jit", "devices__fsdp": 2, "sam__mask": mask}
    trained, one = walked(num_devices=2 * groups, **fields)
    _, other = walked(num_devices=groups, sam__mask=mask)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)
    kernel, norm = one.params["middle"]["kernel"], one.params["stage1_norm"]["scale"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 2
    assert norm.sharding.is_fully_replicated
    momentum = next(x for x in jax.tree.leaves(one.opt_state) if x.shape == kernel.shape)
    assert momentum.sharding == kernel.sharding
    test = trained.task.evaluate(one.variables, trained.examples(), trained.devices)
    assert 0 <= test["test_accuracy"] <= 1

    # After the first step, momentum is the gradient.
    _, one = walked(1, num_devices=2 * groups, **fields)
    _, other = walked(1, num_devices=groups, sam__mask=mask)
    one, other = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.opt_state)])
        for state in (one, other)
    )
    assert np.abs(one - other).max() <= 1e-6 * np.abs(other).max()


def test_the_first_state_is_made_where_it_lies(monkeypatch):
    monkeypatch.setattr(devices, "_DIVIDED_ELEMENTS", 64)
    fields = {"devices__parallel": "jit", "devices__fsdp": 2, "optimizer__name": "adamw"}
    trained = run.set_up(tiny.config(num_devices=4, **fields))
    ours, theirs = first_state(trained), trained.devices.place(trained.initial_state())
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert [x.sharding for x in jax.tree.leaves(ours)] == [
        x.sharding for x in jax.tree.leaves(theirs)
    ]


def test_many_calls_may_be_queued():
    """Without a limit, XLA ends the program here: its devices wait for each other forever."""

    def step(same, own):
        for _ in range(3):
            same = jnp.tanh(jax.lax.pmean(own @ same, "batch").T @ own)
        return same

    program = devices.take(8).compile(step)
    weights, own = np.eye(64, dtype=np.float32), np.ones((8, 64, 64), np.float32)
    results = [program(weights, own) for _ in range(200)]
    assert np.isfinite(results[-1]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9,), "num_devices=9 is not allowed; it must be 0 (all) to 8"),
        ((4, "pmap", 2), "devices.fsdp=2 is not allowed; it needs devices.parallel='jit'"),
        ((4, "jit", 3), "devices.fsdp=3 is not allowed; it must divide the 4 devices"),
        ((4, "vmap"), "devices.parallel='vmap' is not allowed; it must be one of pmap, jit"),
    ],
)
def test_devices_that_there_are_not(arguments, message):
    with pytest.raises(UserError) as error:
        devices.take(*arguments)
    assert message in str(error.value)
