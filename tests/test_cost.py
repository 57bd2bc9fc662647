"""What a step costs, counted by XLA's own analysis of the compiled program: exact, not timed.

SGD is 1. A training step is a forward pass and two backward products per layer, 3 units in all; the
clean pass of SAM-ON leaves out the gradients of the weights, 1 unit of 3. What decides is XLA's
passes over the graph, which run here too; how its instructions are compiled changes no count.
"""

import jax
import jax.numpy as jnp
import optax
import pytest

import samon_jax as samon
from samon_jax import models

BATCH = 64


class Costs:
    """A WRN-16-2 on 32x32 images and the costs of one SGD step with it."""

    def __init__(self):
        self.model = models.create("wrn-16-2", 10)
        self.images = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), jnp.float32)
        self.labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
        variables = jax.eval_shape(
            lambda x: self.model.init(jax.random.key(0), x, train=False), self.images
        )
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.sgd = self.measure(lambda params, _, *args: self.gradient_step(params, *args))

    def loss(self, params, stats, x, y):
        logits, new = self.model.apply(
            {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return loss, new["batch_stats"]

    def gradient_step(self, params, *args):
        (loss, stats), grads = jax.value_and_grad(self.loss, has_aux=True)(params, *args)
        return self.descend(params, grads), stats, loss

    def descend(self, params, grads):
        return jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)

    def measure(self, step, state=()):
        """Flops and peak bytes of a compiled step."""
        args = self.params, state, self.stats, self.images, self.labels
        compiled = jax.jit(step).lower(*args).compile()
        memory = compiled.memory_analysis()
        peak = (
            memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes
        )
        return compiled.cost_analysis()["flops"], peak

    def sharp(self, mask, ascent=None, **options):
        """The same for a step of `samon.value_and_grad`."""
        ascent = samon.perturbation(0.1, mask=mask) if ascent is None else ascent
        compute = samon.value_and_grad(self.loss, ascent, has_aux=True, **options)

        def step(params, state, *args):
            (loss, stats), grads, state = compute(params, state, *args)
            return self.descend(params, grads), stats, loss, state

        return self.measure(step, jax.eval_shape(ascent.init, self.params))

    def ratio(self, measured):
        return measured[0] / self.sgd[0]


@pytest.fixture(scope="module")
def costs():
    return Costs()


@pytest.fixture(scope="module")
def sam_on(costs):
    return costs.sharp(samon.only_norm)


def test_sam_on_costs_five_thirds(costs, sam_on):
    assert 1.6 < costs.ratio(sam_on) <= 1.67


@pytest.mark.parametrize("mask", [samon.only_norm, samon.all_params])
def test_a_single_pass_costs_what_sgd_does(costs, mask):
    """Its memory too, but for what it remembers: with all parameters, the model once more."""
    ascent = samon.single_pass(samon.perturbation(0.1, mask=mask))
    flops, peak = costs.sharp(mask, ascent=ascent)
    state = jax.eval_shape(ascent.init, costs.params)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    assert flops <= 1.01 * costs.sgd[0]
    assert peak - 2 * size * (mask is samon.all_params) <= 1.01 * costs.sgd[1]


def test_sam_on_needs_no_more_memory(costs, sam_on):
    assert sam_on[1] <= 1.05 * costs.sgd[1]


@pytest.mark.parametrize(
    ("mask", "lower", "upper"),
    [
        (samon.all_params, 1.95, 2.01),
        (samon.only_norm_in("stage[23]|norm_out"), 1.35, 1.44),
        (samon.only_norm_in("stage3|norm_out"), 1.15, 1.22),
    ],
)
def test_cost_depends_on_how_early_the_first_perturbed_layer_is(costs, mask, lower, upper):
    assert lower < costs.ratio(costs.sharp(mask)) <= upper


def test_m_sharpness_is_free_with_sam_on(costs, sam_on):
    parts = costs.sharp(samon.only_norm, m=BATCH // 4, batch_argnums=(1, 2))
    assert parts[0] <= 1.03 * sam_on[0]


def test_the_optimizer_saves_the_gradients_nobody_reads(costs):
    tx = samon.sam(optax.sgd(0.1), samon.perturbation(0.1, mask=samon.only_norm))

    def step(params, state, *args):
        def gradient(params):
            return jax.grad(lambda params: self_loss(params)[0])(params)

        def self_loss(params):
            return costs.loss(params, *args)

        (loss, stats), grads = jax.value_and_grad(self_loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params, grad_fn=gradient)
        return optax.apply_updates(params, updates), stats, loss, state

    measured = costs.measure(step, jax.eval_shape(tx.init, costs.params))
    assert 1.6 < costs.ratio(measured) <= 1.67


def test_without_a_prefix_reuse_costs_the_same():
    """The first operation is perturbed: nothing to share, nothing lost."""
    params = {"norm": {"scale": jnp.ones(64)}, "dense": {"kernel": jnp.ones((64, 64))}}
    ascent = samon.perturbation(0.1, mask=samon.only_norm)

    def loss_fn(params, x):
        return jnp.mean(jnp.tanh(x * params["norm"]["scale"] @ params["dense"]["kernel"]))

    def flops(**options):
        f = samon.value_and_grad(loss_fn, ascent, **options)
        args = params, ascent.init(params), jnp.ones((32, 64))
        return jax.jit(f).lower(*args).compile().cost_analysis()["flops"]

    assert flops(reuse_prefix=True) == flops(reuse_prefix=False)
