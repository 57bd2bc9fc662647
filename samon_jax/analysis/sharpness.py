"""Sharpness of the weights: how far the loss can rise close to them (Eq. 6, appendix B.10)."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from samon_jax._fields import integer
from samon_jax.analysis import autopgd
from samon_jax.analysis.balls import check_norm
from samon_jax.analysis.losses import cross_entropy, normalized_cross_entropy
from samon_jax.errors import UserError
from samon_jax.perturbation import check_radius

PyTree = Any
Apply = Callable[[PyTree, Any], jax.Array]
Loss = Callable[[jax.Array, jax.Array], jax.Array]

M = 128  # examples that share one perturbation
STEPS = 20
SAMPLES = 20


class Sharpness(NamedTuple):
    """Result of a sharpness measurement.

    Attributes:
      value: mean over the batches of the change in loss, in nats.
      per_batch: float [batches], the changes.
      loss: mean loss at the weights, in nats.
      examples: number of examples used, a multiple of m.
    """

    value: float
    per_batch: np.ndarray
    loss: float
    examples: int


def worst_case(
    apply: Apply,
    params: PyTree,
    inputs: Any,
    labels: Any,
    *,
    radius: float,
    norm: str = "linf",
    adaptive: bool = True,
    logit_norm: bool = True,
    steps: int = STEPS,
    m: int = M,
    loss: Loss | None = None,
) -> Sharpness:
    """Largest change in loss that AutoPGD finds close to the weights, averaged over batches.

    For every batch of m examples, the maximum over ‖T⁻¹ ε‖_p <= radius of L(w + ε) - L(w), with
    T = |w| if `adaptive` and 1 if not. The search runs in the coordinates u = T⁻¹ ε, where the ball
    is round: no projection onto an ellipsoid is needed, and weights that are zero do not move. It
    starts at w itself, so the value is never negative.

    Args:
      apply: `apply(params, inputs) -> logits` [n, classes] in evaluation mode.
      params: float32 parameters w.
      inputs: array [n, ...] that `apply` takes; images normalized, without augmentation.
      labels: int [n].
      radius: ρ >= 0.
      norm: "l2" or "linf".
      adaptive: perturb every weight in proportion to its magnitude.
      logit_norm: normalize the logits first; ignored if `loss` is given.
      steps: steps of AutoPGD, >= 1.
      m: examples per batch, >= 1; a rest that fills no batch is left out, and a smaller data set is
        one batch.
      loss: `loss(logits, labels) -> [n]` instead of the cross-entropy.

    Returns:
      A `Sharpness`.

    Raises:
      UserError: an argument is not allowed, or the loss at the weights is not finite.

    References:
      Müller et al. 2023, Eq. 6 and Tables 6, 18, 19; Andriushchenko et al. 2023.
    """
    integer(1)("steps", steps)
    objectives = _objectives(
        apply, params, inputs, labels, radius, norm, adaptive, logit_norm, m, loss
    )
    found = _search(objectives, params, radius, norm, steps)
    return _summarize([(f.start_value, f.value) for f in found], labels, m)


def one_step(
    apply: Apply,
    params: PyTree,
    inputs: Any,
    labels: Any,
    *,
    radius: float,
    norm: str = "linf",
    adaptive: bool = True,
    logit_norm: bool = True,
    m: int = M,
    loss: Loss | None = None,
) -> Sharpness:
    """Change in loss after a single gradient step to the boundary of the ball.

    That is the ε of SAM itself: with `adaptive`, ρ T sign(g) for "linf" (the variant
    "elementwise_linf") and ρ T² g / ‖T g‖₂ for "l2" ("elementwise_l2"); without it, "l2" is "sam".
    The value can be negative. Arguments, returns and errors as in `worst_case`.
    """
    # AutoPGD's first step has twice the radius, so that its end is projected to the boundary.
    objectives = _objectives(
        apply, params, inputs, labels, radius, norm, adaptive, logit_norm, m, loss
    )
    found = _search(objectives, params, radius, norm, 1)
    return _summarize([(f.start_value, f.last_value) for f in found], labels, m)


def average_case(
    apply: Apply,
    params: PyTree,
    inputs: Any,
    labels: Any,
    *,
    radius: float,
    norm: str = "l2",
    adaptive: bool = True,
    logit_norm: bool = True,
    samples: int = SAMPLES,
    m: int = M,
    loss: Loss | None = None,
    seed: int = 0,
) -> Sharpness:
    """Mean change in loss under random perturbations of the weights.

    Every weight is perturbed by T times a normal variable with standard deviation `radius` ("l2")
    or a uniform one in [-radius, radius] ("linf"), as in Andriushchenko et al.: the expected length
    of the former is radius √d for d weights, not radius.

    Args:
      apply: as in `worst_case`, like the arguments not listed here.
      params: float32 parameters.
      inputs: array [n, ...].
      labels: int [n].
      radius: ρ >= 0.
      norm: "l2" or "linf".
      adaptive: T = |w| instead of 1.
      logit_norm: normalize the logits first.
      samples: perturbations per batch, >= 1.
      m: examples per batch.
      loss: instead of the cross-entropy.
      seed: of the perturbations.

    Returns:
      A `Sharpness`; its value can be negative.

    Raises:
      UserError: as in `worst_case`.
    """
    integer(1)("samples", samples)
    start = jax.tree.map(jnp.zeros_like, params)
    objectives = _objectives(
        apply, params, inputs, labels, radius, norm, adaptive, logit_norm, m, loss
    )
    rows = []
    for number, objective in enumerate(objectives):
        key = jax.random.fold_in(jax.random.key(seed), number)
        clean = _perturbed(objective, start, key, np.float32(0), norm=norm)
        values = [
            _perturbed(
                objective, start, jax.random.fold_in(key, sample), np.float32(radius), norm=norm
            )
            for sample in range(samples)
        ]
        rows.append((clean, jnp.stack(values).mean()))
    return _summarize(rows, labels, m)


def batches(inputs: Any, labels: Any, m: int) -> Iterator[tuple[Any, Any]]:
    """Batches of m examples in their order; the rest is left out, a smaller set is one batch.

    Raises:
      UserError: m < 1, there is no example, or not a label for each.
    """
    integer(1)("m", m)
    n = len(labels)
    if n == 0:
        raise UserError("labels is empty; at least one example is needed")
    if len(inputs) != n:
        raise UserError(f"labels has {n} entries; there are {len(inputs)} inputs")
    size = min(m, n)
    for begin in range(0, n - size + 1, size):
        yield inputs[begin : begin + size], jnp.asarray(labels[begin : begin + size])


def _search(
    objectives: Iterator[Partial], params: PyTree, radius: float, norm: str, steps: int
) -> list[autopgd.Maximum]:
    """What AutoPGD finds on every batch, without the points, which would fill the memory."""
    start = jax.tree.map(jnp.zeros_like, params)
    return [
        autopgd.maximize(f, start, radius, norm=norm, steps=steps)._replace(point=None)
        for f in objectives
    ]


@jax.jit(static_argnames="norm")
def _perturbed(
    objective: Callable[[PyTree], jax.Array],
    like: PyTree,
    key: jax.Array,
    radius: jax.Array,
    *,
    norm: str,
) -> jax.Array:
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    if norm == "l2":
        noise = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    else:
        noise = [
            jax.random.uniform(k, x.shape, x.dtype, minval=-1)
            for k, x in zip(keys, leaves, strict=True)
        ]
    return objective(jax.tree.unflatten(treedef, [radius * x for x in noise]))


def _objectives(
    apply: Apply,
    params: PyTree,
    inputs: Any,
    labels: Any,
    radius: float,
    norm: str,
    adaptive: bool,
    logit_norm: bool,
    m: int,
    loss: Loss | None,
) -> Iterator[Partial]:
    """The mean loss of each batch as a function of u; UserError for a radius or norm."""
    check_norm(norm)
    check_radius("radius", radius)
    scale = jax.tree.map(jnp.abs, params) if adaptive else None
    loss = loss or (normalized_cross_entropy if logit_norm else cross_entropy)
    functions = autopgd.as_partial(apply), autopgd.as_partial(loss)
    for x, y in batches(inputs, labels, m):
        yield Partial(_mean_loss, *functions, params, scale, x, y)


def _mean_loss(
    apply: Apply,
    loss: Loss,
    params: PyTree,
    scale: PyTree | None,
    inputs: Any,
    labels: Any,
    u: PyTree,
) -> jax.Array:
    if scale is None:
        weights = jax.tree.map(jnp.add, params, u)
    else:
        weights = jax.tree.map(lambda w, t, u: w + t * u, params, scale, u)
    return loss(apply(weights, inputs), labels).mean()


def _summarize(rows: list[tuple[jax.Array, jax.Array]], labels: Any, m: int) -> Sharpness:
    """The result from (loss at the weights, loss nearby) of every batch."""
    losses, nearby = (np.array(jax.device_get(column), float) for column in zip(*rows, strict=True))
    if not np.isfinite(losses).all():
        raise UserError(
            f"the loss at the weights is {losses[~np.isfinite(losses)][0]}; "
            "sharpness needs a model whose logits are finite"
        )
    changes = nearby - losses
    examples = len(rows) * min(m, len(labels))
    return Sharpness(float(changes.mean()), changes, float(losses.mean()), examples)
