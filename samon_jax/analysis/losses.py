"""Losses that attacks and sharpness measures maximize, one value per example."""

import jax
import jax.numpy as jnp

from samon_jax.tasks import translation
from samon_jax.tasks.classification import cross_entropy as smoothed_cross_entropy

IGNORED = -1  # the label of what is no sub-word


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of every example, in nats.

    Args:
      logits: float [n, classes]; of sentences [n, length, classes].
      labels: int [n]; of sentences [n, length], `IGNORED` where there is no sub-word.

    Returns:
      Float [n]; of sentences so weighted that the mean is the mean over all sub-words.

    Example:
      >>> cross_entropy(jnp.zeros((2, 3, 4)), jnp.array([[1, -1, -1], [0, 3, 2]])).mean()
      Array(1.3862944, dtype=float32)
    """
    if labels.ndim == 1:
        return smoothed_cross_entropy(logits, labels)
    real = labels != IGNORED
    words = jnp.where(real, translation.cross_entropy(logits, labels, 0.0)[0], 0)
    return words.sum(1) * (len(labels) / real.sum())


def normalized_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of logit vectors that are centred and scaled to length 1.

    The SAM-ON paper normalizes "with respect to their ℓ2-norm"; that the mean is subtracted before
    is how Andriushchenko et al. do it, whose measure this is. The value does not depend on the
    scale of the network and lies, for K classes, in a narrow band around ln K.

    Args:
      logits: as for `cross_entropy`.
      labels: likewise.

    Returns:
      Float [n], in nats.

    References:
      Müller et al. 2023, appendix B.10; Andriushchenko et al. 2023, A modern look at the
      relationship between sharpness and generalization.
    """
    centred = logits - logits.mean(axis=-1, keepdims=True)
    squares = (centred**2).sum(axis=-1, keepdims=True)
    constant = squares == 0  # there the square root has no gradient
    length = jnp.sqrt(jnp.where(constant, 1, squares))
    return cross_entropy(centred / length, labels)


def dlr(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Difference-of-logits-ratio loss, which is positive exactly where the label is not on top.

    With z the logits, z_1 >= z_2 >= z_3 the largest of them and y the label,

        -(z_y - max_{i ≠ y} z_i) / (z_1 - z_3)

    which does not change when the logits are shifted or scaled.

    Args:
      logits: float [n, classes], at least three classes.
      labels: int [n].

    Returns:
      Float [n].

    References:
      Croce and Hein 2020, Eq. 6; 1e-12 in the denominator is from their code.
    """
    top = jax.lax.top_k(logits, 3)[0]
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    is_label = jnp.arange(logits.shape[1]) == labels[:, None]
    of_others = jnp.where(is_label, -jnp.inf, logits).max(axis=1)
    return -(of_label - of_others) / (top[:, 0] - top[:, 2] + 1e-12)
