"""The steps that the benchmarks time: of every kind of model, each doing what its name says."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from benchmarks import cost, sharpness, steps, timing
from samon_jax import models
from samon_jax.models import VisionTransformer, layers


class Stages(nn.Module):
    """Three stages with a norm each, and one after them."""

    @nn.compact
    def __call__(self, images, train):
        x = images.reshape(len(images), -1)
        for stage in (1, 2, 3):
            x = nn.Dense(4, name=f"stage{stage}_dense")(x)
            x = nn.relu(layers.batch_norm(train, dtype=None, name=f"stage{stage}_norm")(x))
        x = layers.batch_norm(train, dtype=None, name="norm_out")(x)
        return nn.Dense(3, name="head")(x)


@pytest.fixture
def small_vit(monkeypatch):
    """A Vision Transformer that compiles quickly stands for every name."""

    def create(name, classes, *, dtype=jnp.float32):
        return VisionTransformer(classes, width=4, heads=2, depth=1, patch=16, dtype=dtype)

    monkeypatch.setattr(models, "create", create)


@pytest.mark.parametrize("command", [cost, sharpness], ids=["cost", "sharpness"])
def test_models_without_batch_norm(small_vit, monkeypatch, capsys, command):
    size = {"cost": ["--batch=4"], "sharpness": ["--examples=4", "--m=4", "--steps=2"]}
    name = command.__name__.rpartition(".")[2]
    monkeypatch.setattr(sys, "argv", [name, "--model=vit-t", "--rounds=1", *size[name]])
    command.main()
    out = capsys.readouterr().out
    assert ("| SAM-ON | 1." if name == "cost" else "2-step sharpness costs") in out


def test_steps_descend_with_the_gradients_that_they_name():
    model = Stages()
    images, labels = steps.random_examples((2, 2, 1), 8, 3)
    variables = model.init(jax.random.key(0), images, train=False)
    params = variables["params"]
    loss_fn = steps.loss_of(model, variables)

    gradient = jax.jit(jax.grad(lambda params: loss_fn(params, images, labels)[0]))

    def ascended(chosen):
        grads = jax.tree_util.tree_map_with_path(
            lambda path, g: g * chosen(jax.tree_util.keystr(path)), gradient(params)
        )
        length = optax.tree.norm(grads)
        return jax.tree.map(lambda w, g: w + steps.RHO * g / length, params, grads)

    expected = {
        "SGD": params,
        "optax.contrib.sam": ascended(lambda path: True),
        "SAM-all": ascended(lambda path: True),
        "SAM-ON": ascended(lambda path: "norm" in path),
        "SAM-ON, last two stages": ascended(lambda path: "norm" in path and "stage1" not in path),
        "SAM-ON, last stage": ascended(
            lambda path: "norm_out" in path or ("norm" in path and "stage3" in path)
        ),
        "SAM-ON in one pass": params,  # in the first step there is nothing to remember
    }
    rows = steps.all_steps(model, variables, lr=0.25)
    assert [row.name for row in rows] == list(expected)
    for row in rows:
        got, _ = jax.jit(row.step)(params, row.state, images, labels)
        want = jax.tree.map(lambda w, g: w - 0.25 * g, params, gradient(expected[row.name]))
        jax.tree.map(
            lambda a, b, name=row.name: np.testing.assert_allclose(
                a, b, rtol=1e-3, atol=2e-5, err_msg=name
            ),
            got,
            want,
        )


@pytest.mark.parametrize(
    ("names", "count", "expected"),
    [
        (["stem", "stage1_block0", "stage4_block2", "stage3_block0", "stage2_block0"], 2, "34"),
        (["stem", "norm1"], 1, None),
        (["stage1_block0"], 1, None),
    ],
)
def test_last_stages(names, count, expected):
    found = steps.last_stages(dict.fromkeys(names), count)
    if expected is None:
        assert found is None
    else:
        assert found == "^(" + "".join(f"stage{i}_|" for i in expected) + "norm_out)"


def test_take_turns_alternates_and_stops():
    calls = []
    rows = [
        lambda steps, name=name: calls.append((name, steps)) or float(len(calls)) for name in "ab"
    ]
    seconds = timing.take_turns(rows, rounds=5, steps=3, stop=lambda: len(calls) >= 4)
    assert calls == [("a", 3), ("b", 3)] * 2
    assert seconds == [[1.0, 3.0], [2.0, 4.0]]
    assert timing.ratio(seconds[1], seconds[0]) == pytest.approx((2 + 4 / 3) / 2)


def test_program_counts_and_goes_on_from_its_own_result():
    def step(params, state, images, labels):
        return params + images @ images, state + 1

    program = timing.Program(
        steps.Step("row", step, jnp.zeros(())), jnp.zeros((8, 8)), jnp.ones((8, 8)), jnp.zeros(1)
    )
    assert program.flops == pytest.approx(2 * 8**3 + 64 + 1, rel=0.02)
    assert program.peak_bytes >= 3 * 8 * 8 * 4
    assert program(4) > 0
    np.testing.assert_array_equal(program._carry[0], np.full((8, 8), 32.0))
    assert program.finite
    program.forget()
    program(1)
    np.testing.assert_array_equal(program._carry[0], np.full((8, 8), 8.0))
