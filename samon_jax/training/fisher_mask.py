"""The mask of SSAM-F from the Fisher information of a few training examples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

import samon_jax as samon
from samon_jax.data import augment
from samon_jax.training.state import TrainState
from samon_jax.training.step import Examples, cross_entropy

PyTree = Any


def make_mask_renewal(
    model: nn.Module,
    *,
    sparsity: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: str = "float32",
) -> Callable[[tuple[TrainState, Examples], jax.Array], TrainState]:
    """Builds the program that renews the mask of `samon_jax.ssam_f`.

    The information of an entry is the mean of its squared gradients, each of the cross-entropy of
    one example, without label smoothing. The network is in evaluation mode: BatchNorm with the
    statistics of a batch of one would normalize the example away, and with those of a larger batch
    the gradient would not be of one example. Images are not augmented.

    Args:
      model: Linen module.
      sparsity: share of entries that the mask leaves out.
      mean: per channel, of images in [0, 1].
      std: per channel, of images in [0, 1].
      dtype: of the forward and backward pass.

    Returns:
      `renew((state, train_set), rows) -> state`; `rows` int32 [1, n] picks the examples. Devices
      that are given the same rows compute the same mask.

    References:
      Mi et al. 2022, algorithm 1 and Eq. 6; SAM-ON paper, section 5.1.
    """

    def renew(inputs: tuple[TrainState, Examples], rows: jax.Array) -> TrainState:
        state, train = inputs

        def loss_fn(params: PyTree, batch: Examples) -> jax.Array:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits: Any = model.apply(variables, batch.images, train=False)
            return cross_entropy(logits, batch.labels).mean()

        images = augment.normalize(train.images[rows[0]], mean, std, dtype=jnp.dtype(dtype))
        examples = Examples(images, train.labels[rows[0]])
        information = samon.fisher_information(loss_fn, state.params, examples)
        mask = samon.top_mask(information, sparsity)
        return state.replace(ascent_state=state.ascent_state._replace(mask=mask))

    return renew
