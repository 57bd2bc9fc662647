"""SSAM-F: ε under a mask of the entries of largest Fisher information (Mi et al. 2022)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from samon_jax._checks import Ascent, check_inner
from samon_jax._fields import Field, integer
from samon_jax._passes.calls import Options
from samon_jax._passes.collectives import pmean
from samon_jax._passes.examples import count_examples
from samon_jax._passes.m_sharpness import AxisName, vary
from samon_jax._passes.trees import widen
from samon_jax.masks import SPARSITY
from samon_jax.methods import _sparse
from samon_jax.methods._recipe import Fields, Member, Passes, Recipe, Setting, keys_of
from samon_jax.methods._sparse import SparseState, initial_state, masked_step, top_mask
from samon_jax.methods.method import RENEW, SHARP, LossesFn, Now

PyTree = Any


def ssam_f(
    ascent: optax.GradientTransformation, sparsity: float, key: jax.Array
) -> optax.GradientTransformation:
    """SSAM-F: the mask keeps the entries of largest Fisher information.

    The mask starts at random and changes when told to: every few epochs, estimate the information
    with `fisher_information` and store `state._replace(mask=top_mask(information, sparsity))`.

    Args:
      ascent: transform from gradients to ε of all parameters, for example `variant("sam", 0.1)`.
      sparsity: share of entries left unperturbed, in [0, 1); published are 0.5 and 0.9995 (Table
        5).
      key: concrete `jax.random.key` of the first mask.

    Returns:
      An optax transform from gradients to ε.

    Raises:
      UserError: sparsity is outside [0, 1), or leaves nothing to perturb.

    Example:
      >>> import jax, jax.numpy as jnp, samon_jax as samon
      >>> params = {"w": jnp.ones(4)}
      >>> ascent = samon.ssam_f(samon.variant("sam", 0.1), sparsity=0.5, key=jax.random.key(0))
      >>> state = ascent.init(params)
      >>> scores = {"w": jnp.array([3.0, 1.0, 4.0, 2.0])}
      >>> state = state._replace(mask=samon.top_mask(scores, 0.5))
      >>> ascent.update({"w": jnp.ones(4)}, state, params)[0]["w"].tolist()
      [0.05000000074505806, 0.0, 0.05000000074505806, 0.0]

    References:
      Mi et al. 2022, Make Sharpness-Aware Minimization Stronger: A Sparsified Perturbation
      Approach, algorithm 1 (SSAM-F); Table 5 of the SAM-ON paper.
    """
    check_inner(ascent)
    SPARSITY("sparsity", sparsity)

    return Ascent(partial(initial_state, ascent, sparsity, key), partial(masked_step, ascent))


def fisher_information(
    loss_fn: Callable[[PyTree, PyTree], jax.Array], params: PyTree, examples: PyTree
) -> PyTree:
    """Diagonal of the empirical Fisher matrix: the mean of squared per-example gradients.

    Args:
      loss_fn: `loss_fn(params, batch)`, the scalar mean loss of a batch; it gets batches of one
        example.
      params: pytree of parameters.
      examples: pytree of arrays [n, ...]; Mi et al. use n = 128 drawn at random.

    Returns:
      A pytree of `params`' structure and shapes, in float32 or wider: half precision would lose
      what is added to a sum. One gradient at a time is held in memory.

    References:
      Mi et al. 2022, Eq. 6.
    """
    count = len(jax.tree.leaves(examples)[0])

    def add(total: PyTree, example: PyTree) -> tuple[PyTree, None]:
        grads = jax.grad(loss_fn)(params, jax.tree.map(lambda x: x[None], example))
        return jax.tree.map(lambda t, g: t + widen(g) ** 2, total, grads), None

    zeros = jax.tree.map(lambda leaf: widen(jnp.zeros_like(leaf)), params)
    total, _ = jax.lax.scan(add, zeros, examples)
    return jax.tree.map(lambda t: t / count, total)


FIELDS = {
    **_sparse.FIELDS,
    "fisher_samples": Field(
        128,
        integer(1),
        "SSAM-F: examples behind the Fisher information, the first of the batch; at most all of "
        "it.",
    ),
}


def _build(recipe: Recipe, fields: Fields, setting: Setting) -> Recipe:
    inner, sharp, due = recipe.ascent, recipe.passes[SHARP], recipe.due
    period = fields["sparse_update_epochs"] * setting.steps_per_epoch

    def ascent(now: Now) -> optax.GradientTransformation:
        return ssam_f(inner(now), fields["sparsity"], keys_of(now)[1])

    def kind(perturbed_steps: int) -> str:
        return due(perturbed_steps) if perturbed_steps % period else RENEW

    passes = recipe.passes | {RENEW: _renewing(sharp, fields)}
    return recipe._replace(ascent=ascent, passes=passes, due=kind)


def _renewing(sharp: Passes, fields: Fields) -> Passes:
    """The passes of `sharp` after the mask has been renewed."""

    def make(
        losses_fn: LossesFn, ascent: optax.GradientTransformation, options: Options
    ) -> Callable[..., Any]:
        fn = sharp(losses_fn, ascent, options)

        def renew(params: PyTree, state: SparseState, batch: PyTree) -> tuple[Any, PyTree, PyTree]:
            scores = _information(
                losses_fn, params, batch, fields["fisher_samples"], options.axis_name
            )
            mask = top_mask(scores, fields["sparsity"])
            return fn(params, state._replace(mask=mask), batch)

        return renew

    return make


def _information(
    losses_fn: LossesFn, params: PyTree, batch: PyTree, samples: int, axis_name: AxisName | None
) -> PyTree:
    """Fisher information of the first examples of every device's batch, averaged over devices.

    The network is in evaluation mode: BatchNorm with the statistics of a batch of one would
    normalize the example away, and with those of a larger batch the gradient would not be of one
    example. Each device takes its share of the examples, rounded up.
    """
    devices = 1
    if axis_name is not None:
        devices = jax.lax.axis_size(axis_name)
        params = jax.tree.map(lambda leaf: vary(leaf, axis_name), params)
    count = min(-(-samples // devices), count_examples(batch, f"fisher_samples={samples}"))
    examples = jax.tree.map(lambda x: x[:count], batch)

    def loss_fn(params: PyTree, example: PyTree) -> jax.Array:
        return losses_fn(params, example, train=False)[0].mean()

    information = fisher_information(loss_fn, params, examples)
    return information if axis_name is None else pmean(information, axis_name)


def _describe(fields: Fields) -> list[str]:
    samples = fields["fisher_samples"]
    default = samples == FIELDS["fisher_samples"].default
    return _sparse.describe(fields) + ([] if default else [f"information of {samples} examples"])


MEMBER = Member(
    fields=FIELDS,
    used=lambda fields: fields["sparse"] == "ssam_f",
    build=_build,
    describe=_describe,
    conflicts=_sparse.CONFLICTS,
)
