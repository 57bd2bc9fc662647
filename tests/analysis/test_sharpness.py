import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samon_jax as samon
from samon_jax.analysis import losses, sharpness
from samon_jax.errors import UserError

W = {"a": jnp.array([0.5, -2.0, 0.0]), "b": jnp.array([[1.5], [-0.25]])}


def linear_apply(params, inputs):
    w = jnp.concatenate([params["a"], params["b"].ravel()])
    return (inputs @ w)[:, None]


def linear_loss(logits, labels):
    return logits[:, 0]


def squared_apply(params, inputs):
    return inputs * sum((x**2).sum() for x in jax.tree.leaves(params))


def mlp(params, inputs):
    hidden = inputs @ params["dense"]["kernel"]
    hidden = jnp.tanh(hidden * params["norm"]["scale"] + params["norm"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def mlp_problem(examples=40):
    keys = jax.random.split(jax.random.key(0), 6)
    params = {
        "dense": {"kernel": jax.random.normal(keys[0], (5, 8))},
        "norm": {
            "scale": 1 + 0.3 * jax.random.normal(keys[1], (8,)),
            "bias": 0.1 * jax.random.normal(keys[2], (8,)),
        },
        "head": {"kernel": jax.random.normal(keys[3], (8, 4)), "bias": jnp.zeros(4)},
    }
    inputs = jax.random.normal(keys[4], (examples, 5))
    return params, inputs, jax.random.randint(keys[5], (examples,), 0, 4)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("measure", [sharpness.worst_case, sharpness.one_step])
def test_linear_loss_has_its_closed_form(norm, adaptive, measure):
    inputs = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    found = measure(
        linear_apply, W, inputs, np.zeros(6, int), radius=0.3, norm=norm, adaptive=adaptive, m=3,
        loss=linear_loss,
    )  # fmt: skip
    w = np.array([0.5, -2.0, 0.0, 1.5, -0.25])
    expected = []
    for batch in (inputs[:3], inputs[3:]):
        scaled = batch.mean(0) * (np.abs(w) if adaptive else 1)
        # The dual norm of T g: ‖·‖₂ of the ball of ℓ2, ‖·‖₁ of that of ℓ∞.
        expected.append(0.3 * np.linalg.norm(scaled, 2 if norm == "l2" else 1))
    np.testing.assert_allclose(found.per_batch, expected, atol=1e-5)
    assert found.value == pytest.approx(np.mean(expected), abs=1e-5)
    assert found.loss == pytest.approx(float((inputs @ w).mean()), abs=1e-5)
    assert found.examples == 6


@pytest.mark.parametrize(
    ("variant", "norm", "adaptive"),
    [("elementwise_linf", "linf", True), ("elementwise_l2", "l2", True), ("sam", "l2", False)],
)
def test_one_step_is_the_step_of_the_variant(variant, norm, adaptive):
    params, inputs, labels = mlp_problem()
    ascent = samon.variant(variant, 0.07)
    expected = []
    for begin in (0, 20):
        x, y = inputs[begin : begin + 20], labels[begin : begin + 20]

        @jax.jit
        def change(params, x, y):
            def loss(params):
                return losses.cross_entropy(mlp(params, x), y).mean()

            epsilon = ascent.update(jax.grad(loss)(params), ascent.init(params), params)[0]
            return loss(jax.tree.map(jnp.add, params, epsilon)) - loss(params)

        expected.append(float(change(params, x, y)))
    found = sharpness.one_step(
        mlp, params, inputs, labels, radius=0.07, norm=norm, adaptive=adaptive, logit_norm=False,
        m=20,
    )  # fmt: skip
    np.testing.assert_allclose(found.per_batch, expected, atol=1e-6)
    assert found.examples == 40


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_worst_case_is_at_least_one_step_and_grows_with_the_radius(norm):
    params, inputs, labels = mlp_problem()
    values = [
        sharpness.worst_case(mlp, params, inputs, labels, radius=r, norm=norm, m=20).value
        for r in (0.0, 0.02, 0.1)
    ]
    single = sharpness.one_step(mlp, params, inputs, labels, radius=0.1, norm=norm, m=20).value
    assert values[0] == 0
    assert values[0] < values[1] < values[2]
    assert values[2] >= single


def test_weights_that_are_zero_do_not_move():
    # The loss only depends on a weight that is zero: no adaptive perturbation changes it.
    inputs = np.eye(5, dtype=np.float32)[[2, 2]]
    for norm in ("l2", "linf"):
        found = sharpness.worst_case(
            linear_apply, W, inputs, np.zeros(2, int), radius=9.0, norm=norm, loss=linear_loss
        )
        assert found.value == 0


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize(("norm", "variance"), [("l2", 1.0), ("linf", 1 / 3)])
def test_average_case_of_a_quadratic(adaptive, norm, variance):
    # E ‖w + ρ T z‖² - ‖w‖² = ρ² Var(z) Σ T²
    squares = np.array([0.5, 2.0, 0.0, 1.5, 0.25]) ** 2 if adaptive else np.ones(5)
    found = sharpness.average_case(
        squared_apply, W, np.ones((6, 1), np.float32), np.zeros(6, int), radius=2.0, norm=norm,
        adaptive=adaptive, samples=200, m=2, loss=linear_loss,
    )  # fmt: skip
    assert found.value == pytest.approx(4 * variance * squares.sum(), rel=0.2)
    again = sharpness.average_case(
        squared_apply, W, np.ones((6, 1), np.float32), np.zeros(6, int), radius=2.0, norm=norm,
        adaptive=adaptive, samples=200, m=2, loss=linear_loss,
    )  # fmt: skip
    assert again.value == found.value


def test_logit_normalization_ignores_the_scale_of_the_head():
    params, inputs, labels = mlp_problem()
    scaled = params | {"head": jax.tree.map(lambda x: 5 * x, params["head"])}
    first, second = (
        sharpness.worst_case(mlp, p, inputs, labels, radius=0.05, m=20).value
        for p in (params, scaled)
    )
    assert second == pytest.approx(first, rel=1e-3)


def test_small_sets_are_one_batch_and_rests_are_left_out():
    params, inputs, labels = mlp_problem()
    found = sharpness.one_step(mlp, params, inputs, labels, radius=0.1)
    assert (found.examples, len(found.per_batch)) == (40, 1)
    found = sharpness.one_step(mlp, params, inputs, labels, radius=0.1, m=12)
    assert (found.examples, len(found.per_batch)) == (36, 3)


def test_one_program_for_all_batches_radii_steps_and_runs():
    traces = []

    def counting(params, inputs):
        traces.append(1)
        return mlp(params, inputs)

    params, inputs, labels = mlp_problem()
    for scale in (1.0, 2.0):
        weights = jax.tree.map(lambda x, s=scale: s * x, params)
        for radius, steps in ((0.01, 20), (0.1, 3)):
            sharpness.worst_case(counting, weights, inputs, labels, radius=radius, steps=steps, m=8)
        sharpness.one_step(counting, weights, inputs, labels, radius=0.1, m=8)
    sharpness.worst_case(counting, params, inputs, labels, radius=0.1, norm="l2", m=8)
    assert len(traces) == 1
    sharpness.worst_case(counting, params, inputs, labels, radius=0.1, m=10)
    assert len(traces) == 2  # another shape


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": -1.0}, "radius=-1.0"),
        ({"norm": "l3"}, "norm='l3' does not exist"),
        ({"steps": 0}, "steps=0"),
        ({"m": 0}, "m=0"),
        ({"labels": np.zeros(0, int)}, "labels is empty"),
        ({"labels": np.zeros(39, int)}, "labels has 39 entries; there are 40 inputs"),
    ],
)
def test_bad_arguments(change, message):
    params, inputs, labels = mlp_problem()
    arguments = {"radius": 0.1, "labels": labels} | change
    with pytest.raises(UserError, match=message):
        sharpness.worst_case(mlp, params, inputs, **arguments)


@pytest.mark.parametrize(
    "measure", [sharpness.worst_case, sharpness.one_step, sharpness.average_case]
)
def test_a_model_of_nan_is_an_error(measure):
    params, inputs, labels = mlp_problem()
    params = params | {"head": jax.tree.map(lambda x: x * jnp.nan, params["head"])}
    with pytest.raises(UserError, match="the loss at the weights is nan"):
        measure(mlp, params, inputs, labels, radius=0.1, m=20)
