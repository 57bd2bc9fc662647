import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from samon_jax import methods
from samon_jax.methods import PLAIN
from samon_jax.training.run import set_up
from samon_jax.training.trainable import hold_fixed, trainable_mask

NORMS, WEIGHTS = ("stage1_norm", "stage2_norm"), ("stem", "middle", "head")


def changed(before, after):
    """Names of the layers of which every parameter has changed, and of those with one unchanged."""
    moved = {
        name: [
            not np.array_equal(old, new)
            for old, new in zip(
                jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True
            )
        ]
        for name in before
    }
    return {n for n, m in moved.items() if all(m)}, {n for n, m in moved.items() if not any(m)}


def test_fix_norm_keeps_scales_1_and_biases_0():
    """Also with weight decay, which AdamW applies apart, and a perturbation of everything."""
    run = set_up(tiny.config(fix_norm=True, sam__mask="all", sam__rho=0.5, optimizer__name="adamw"))
    state, _ = tiny.walk(run, 3)
    for norm in NORMS:
        np.testing.assert_array_equal(state.params[norm]["scale"], np.ones(16))
        np.testing.assert_array_equal(state.params[norm]["bias"], np.zeros(16))
    assert changed(tiny.start(run).params, state.params)[0] == set(WEIGHTS)


def test_train_only_norm_leaves_the_weights_as_initialized():
    run = set_up(tiny.config(train_only_norm=True, sam__mask="all"))
    state, _ = tiny.walk(run, 3)
    assert changed(tiny.start(run).params, state.params) == (set(NORMS), set(WEIGHTS))


def test_one_step_of_fix_norm_written_out():
    """ε is normalized by the gradient of what is trained; the rest is SGD with weight decay."""
    config = tiny.config(
        fix_norm=True, sam__mask="all", sam__rho=0.3, sam__variant="sam", data__crop_padding=0
    )
    run = set_up(config)
    before = tiny.start(run)
    after, _ = tiny.trained(run)
    rows = tiny.batch_rows(run)
    images = run.source.dataset.train.images[rows] / 255.0
    images = ((images - run.source.dataset.mean) / run.source.dataset.std).astype(np.float32)
    targets = 0.9 * np.eye(10)[run.source.dataset.train.labels[rows]] + 0.01
    fixed = {norm: jax.device_get(before.params[norm]) for norm in NORMS}

    def loss_fn(weights):
        variables = {"params": fixed | weights, "batch_stats": before.model_state["batch_stats"]}
        logits, _ = tiny.Tiny(10).apply(variables, images, True, mutable=["batch_stats"])
        return -(targets * jax.nn.log_softmax(logits)).sum(1).mean()

    weights = {name: jax.device_get(before.params[name]) for name in WEIGHTS}
    gradient = jax.jit(jax.grad(loss_fn))
    grads = gradient(weights)
    length = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(grads)))
    sharp = gradient(jax.tree.map(lambda w, g: w + 0.3 * g / length, weights, grads))
    expected = jax.tree.map(lambda w, g: w - 0.1 * (g + 5e-4 * w), weights, sharp)
    tiny.assert_trees_close(
        {name: after.params[name] for name in WEIGHTS}, expected, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("fields", "selected"),
    [
        ({"fix_norm": True, "sam__mask": "all"}, set(WEIGHTS)),
        ({"train_only_norm": True, "sam__mask": "all"}, set(NORMS)),
        ({"train_only_norm": True, "sam__mask": "only_norm_in:stage2"}, {"stage2_norm"}),
        ({"fix_norm": True, "sam__mask": "random:0.5"}, set(WEIGHTS)),
    ],
)
def test_only_what_is_trained_is_perturbed(fields, selected):
    """The loss is linear, so its gradient is 1 everywhere; where it is taken tells ε."""
    shapes = jax.eval_shape(
        lambda: tiny.Tiny(10).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), False)["params"]
    )
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    config = tiny.config(sam__rho=0.5, **fields)
    method = methods.from_fields(
        dict(config.sam), epochs=2, steps_per_epoch=11, trainable=trainable_mask(config)
    )
    now, seen = methods.Now(np.uint32(0), np.float32(0.5), np.int32(0)), []

    def losses(weights, batch, train=True):
        jax.debug.callback(seen.append, weights)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(weights)) * jnp.ones(2), ()

    method.gradient(losses, params, method.init(params, now), jnp.zeros(2), now, methods.SHARP)
    jax.effects_barrier()
    epsilon = jax.tree.map(lambda a, b: jnp.asarray(a) - b, seen[-1], params)
    assert {name for name, leaves in epsilon.items() if optax.tree.norm(leaves) > 0} == selected
    np.testing.assert_allclose(optax.tree.norm(epsilon), 0.5, rtol=1e-4)


def test_gradients_of_fixed_weights_are_not_computed():
    """Of 3 units of a plain step (forward, two products backward), one for each layer goes."""

    def flops(**fields):
        run = set_up(tiny.config(sam__variant="none", **fields))
        raw = tiny.first_calls(run)[0].raw
        program = run.programs.step(PLAIN).lower((run.template(), run.resident), raw)
        return program.compile().cost_analysis()["flops"]

    products = 64 * 16 + 16 * 16 + 16 * 10  # of one example and one pass
    saved = flops() - flops(train_only_norm=True)
    assert saved > 0.99 * 2 * 128 * products


def test_hold_fixed_cuts_the_gradient_alone():
    params = {"dense": {"kernel": jnp.ones(2)}, "norm": {"scale": jnp.full(2, 3.0)}}

    def mask(params):
        return {"dense": {"kernel": False}, "norm": {"scale": True}}

    def loss(params):
        held = hold_fixed(params, mask)
        return jnp.sum(held["dense"]["kernel"] * held["norm"]["scale"])

    value, grads = jax.value_and_grad(loss)(params)
    assert value == 6
    np.testing.assert_array_equal(grads["dense"]["kernel"], [0, 0])
    np.testing.assert_array_equal(grads["norm"]["scale"], [1, 1])
    assert hold_fixed(params, None) is params
