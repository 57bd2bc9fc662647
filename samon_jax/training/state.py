"""Everything that a step changes, as one pytree."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

PyTree = Any


class TrainState(flax.struct.PyTreeNode):
    """The state of a run after `step` steps; a checkpoint is exactly this.

    Attributes:
      step: int32 scalar, steps done.
      seed: uint32 scalar, the seed of the run. It is data, so one compiled step serves every seed.
      rho: float32 scalar, the radius of the perturbation; data for the same reason.
      params: float32 parameters.
      batch_stats: float32 running statistics of the norm layers; {} for models without any.
      opt_state: state of the base optimizer.
      ascent_state: state of the perturbation, with "looksam" around it; () without one.
      loss_sum: float32 scalar, sum of the batch losses since the epoch began.
      correct_sum: int32 scalar, examples classified correctly since the epoch began.
      examples_sum: int32 scalar, examples classified since then; fewer than were trained on if the
        clean pass sees a part of each batch.
    """

    step: jax.Array
    seed: jax.Array
    rho: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ascent_state: PyTree
    loss_sum: jax.Array
    correct_sum: jax.Array
    examples_sum: jax.Array


def initial_state(
    seed: Any,
    rho: Any,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    init_ascent: Callable[[PyTree, Any, Any], PyTree],
    image_shape: tuple[int, int, int],
) -> TrainState:
    """The state before the first step, a function of seed and radius; jit-able.

    Args:
      seed: uint32 scalar.
      rho: float32 scalar, radius of the perturbation.
      model: Linen module, called as `model(images, train=False)`.
      optimizer: base optimizer.
      init_ascent: `init_ascent(params, seed, rho)` gives the state of the perturbation.
      image_shape: (height, width, channels).

    Returns:
      The state, on the default device.
    """
    images = jnp.zeros((1, *image_shape), jnp.float32)
    variables = model.init(jax.random.key(seed), images, train=False)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        rho=jnp.asarray(rho, jnp.float32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
        ascent_state=init_ascent(params, seed, rho),
        loss_sum=jnp.zeros((), jnp.float32),
        correct_sum=jnp.zeros((), jnp.int32),
        examples_sum=jnp.zeros((), jnp.int32),
    )
