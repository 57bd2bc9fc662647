"""One training step and one evaluation step, as every device runs them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

import samon_jax as samon
from samon_jax.data import augment, autoaugment
from samon_jax.m_sharpness import vary
from samon_jax.models.layers import BATCH_NORM_MOMENTUM
from samon_jax.training.state import TrainState

PyTree = Any


class Examples(NamedTuple):
    """A data set on the device.

    Attributes:
      images: uint8 [n, H, W, C].
      labels: int32 [n].
    """

    images: jax.Array | np.ndarray
    labels: jax.Array | np.ndarray


class StepMetrics(NamedTuple):
    """What a training step reports; every device reports the mean over all devices.

    Attributes:
      loss: float32 scalar, label-smoothed cross-entropy of the clean pass, in nats.
      accuracy: float32 scalar, share of the batch classified correctly in the clean pass.
    """

    loss: jax.Array
    accuracy: jax.Array


class EvalSums(NamedTuple):
    """Sums over evaluated examples; divide by `examples`.

    Attributes:
      loss: float32 scalar, sum of cross-entropies without label smoothing, in nats.
      correct: int32 scalar, examples classified correctly.
      examples: int32 scalar.
    """

    loss: jax.Array
    correct: jax.Array
    examples: jax.Array


class _Aux(NamedTuple):
    batch_stats: PyTree
    correct: jax.Array


def cross_entropy(
    logits: jax.Array, labels: jax.Array | np.ndarray, smoothing: float = 0.0
) -> jax.Array:
    """Cross-entropy of every example with label smoothing.

    Args:
      logits: float [n, classes].
      labels: int [n].
      smoothing: s; the target is 1 - s + s / classes at the label and s / classes elsewhere.

    Returns:
      Float [n], in nats.

    References:
      Szegedy et al. 2016, Rethinking the Inception Architecture, section 7.
    """
    log_p = jax.nn.log_softmax(logits)
    of_label = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    return -(1 - smoothing) * of_label - smoothing * log_p.mean(axis=1)


def make_train_step(
    config: ConfigDict | FrozenConfigDict,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    ascent: optax.GradientTransformation | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    steps_per_epoch: int,
    axis_name: str = "batch",
) -> Callable[[tuple[TrainState, Examples], jax.Array], tuple[TrainState, StepMetrics]]:
    """Builds the training step of one device; run it under `jax.pmap` or `jax.shard_map`.

    Args:
      config: a complete config.
      model: Linen module.
      optimizer: base optimizer.
      ascent: perturbation, or None for the plain gradient.
      mean: per channel, of images in [0, 1].
      std: per channel, of images in [0, 1].
      steps_per_epoch: steps in one epoch.
      axis_name: mapped axis over devices.

    Returns:
      `step((state, train_set), rows) -> (state, metrics)`. `rows` int32 [steps, per_device] are the
      examples of this device for that many steps in a row; the leaves of `metrics` are [steps]. The
      state is the same on every device before and after.
    """

    def loss_fn(params: PyTree, batch: Examples, batch_stats: PyTree) -> tuple[jax.Array, _Aux]:
        variables = {"params": params, "batch_stats": batch_stats}
        logits, updated = model.apply(variables, batch.images, train=True, mutable=["batch_stats"])
        loss = cross_entropy(logits, batch.labels, config.label_smoothing).mean()
        correct = (logits.argmax(axis=1) == batch.labels).sum()
        return loss, _Aux(updated.get("batch_stats", {}), correct)

    grad_fn = _gradient(config, loss_fn, ascent, axis_name)

    def load(state: TrainState, train: Examples, rows: jax.Array) -> Examples:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
        crop_key, flip_key = jax.random.split(key)
        images = train.images[rows]
        if config.data.crop_padding:
            images = augment.random_crop(crop_key, images, config.data.crop_padding)
        if config.data.flip:
            images = augment.random_flip(flip_key, images)
        if config.data.auto_augment:
            # A key of its own: crops and flips stay the same with and without.
            images = autoaugment.auto_augment(jax.random.fold_in(key, 2), images)
        images = augment.normalize(images, mean, std, dtype=jnp.dtype(config.dtype))
        return Examples(images, train.labels[rows])

    def one_step(
        state: TrainState, train: Examples, rows: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        batch = load(state, train, rows)
        loss, correct, batch_stats, grads, ascent_state = grad_fn(state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        loss, batch_stats = jax.lax.pmean((loss, batch_stats), axis_name)
        correct = jax.lax.psum(correct, axis_name)
        examples = rows.size * jax.lax.axis_size(axis_name)
        first_of_epoch = state.step % steps_per_epoch == 0
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            ascent_state=ascent_state,
            loss_sum=jnp.where(first_of_epoch, 0, state.loss_sum) + loss,
            correct_sum=jnp.where(first_of_epoch, 0, state.correct_sum) + correct,
        )
        return state, StepMetrics(loss, correct / examples)

    def step(
        inputs: tuple[TrainState, Examples], rows: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        state, train = inputs
        if len(rows) == 1:
            # Not a loop of one: on CPU, XLA runs convolutions inside a loop several times slower.
            state, metrics = one_step(state, train, rows[0])
            return state, jax.tree.map(lambda x: x[None], metrics)
        return jax.lax.scan(lambda state, rows: one_step(state, train, rows), state, rows)

    return step


def _gradient(
    config: ConfigDict | FrozenConfigDict,
    loss_fn: Callable[..., tuple[jax.Array, _Aux]],
    ascent: optax.GradientTransformation | None,
    axis_name: str,
) -> Callable[[TrainState, Examples], tuple[jax.Array, jax.Array, PyTree, PyTree, PyTree]]:
    """`fn(state, batch) -> (loss, correct, batch_stats, averaged grads, ascent_state)`."""
    if ascent is None:

        def plain(state: TrainState, batch: Examples) -> tuple[Any, ...]:
            params = jax.tree.map(lambda leaf: vary(leaf, axis_name), state.params)
            (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                params, batch, state.batch_stats
            )
            grads = jax.lax.pmean(grads, axis_name)
            return loss, aux.correct, aux.batch_stats, grads, state.ascent_state

        return plain

    sam = config.sam
    sharp_value_and_grad = samon.value_and_grad(
        loss_fn,
        ascent,
        has_aux=True,
        axis_name=axis_name,
        m=sam.m or None,
        batch_argnums=0,
        reuse_prefix=sam.reuse_prefix,
        aux_from="clean" if sam.batch_stats == "clean" else "both",
    )

    def sharp(state: TrainState, batch: Examples) -> tuple[Any, ...]:
        (loss, aux), grads, ascent_state = sharp_value_and_grad(
            state.params, state.ascent_state, batch, state.batch_stats
        )
        if sam.batch_stats == "clean":
            clean, perturbed = aux, aux
        else:
            clean, perturbed = aux
        stats_clean, stats_perturbed = (
            # With m smaller than the batch every part has statistics of its own.
            jax.tree.map(lambda new, old: new.reshape(-1, *old.shape).mean(0), stats, old_stats)
            for stats, old_stats in (
                (clean.batch_stats, state.batch_stats),
                (perturbed.batch_stats, state.batch_stats),
            )
        )
        if sam.batch_stats == "both":
            batch_stats = jax.tree.map(
                _update_by_both, state.batch_stats, stats_clean, stats_perturbed
            )
        else:
            batch_stats = stats_perturbed
        return loss, clean.correct.sum(), batch_stats, grads, ascent_state

    return sharp


def _update_by_both(old: jax.Array, clean: jax.Array, perturbed: jax.Array) -> jax.Array:
    """Running statistics after the clean and then the perturbed pass, as in PyTorch.

    Each pass gives p = a r + (1 - a) s from the same r; one after the other they give
    a (a r + (1 - a) s1) + (1 - a) s2 = a p1 + p2 - a r.
    """
    a = BATCH_NORM_MOMENTUM
    return a * clean + perturbed - a * old


def make_eval_step(
    model: nn.Module,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: str = "float32",
    axis_name: str = "batch",
) -> Callable[[tuple[PyTree, PyTree, Examples], tuple[jax.Array, jax.Array]], EvalSums]:
    """Builds the evaluation step of one device.

    Args:
      model: Linen module.
      mean: per channel, of images in [0, 1].
      std: per channel, of images in [0, 1].
      dtype: of the forward pass.
      axis_name: mapped axis over devices.

    Returns:
      `step((params, batch_stats, examples), (rows, valid)) -> sums` over all devices; `rows` int32
      [n] picks examples and `valid` bool [n] says which of them count.
    """

    def step(
        inputs: tuple[PyTree, PyTree, Examples], batch: tuple[jax.Array, jax.Array]
    ) -> EvalSums:
        params, batch_stats, examples = inputs
        rows, valid = batch
        images = augment.normalize(examples.images[rows], mean, std, dtype=jnp.dtype(dtype))
        variables = {"params": params, "batch_stats": batch_stats}
        logits: Any = model.apply(variables, images, train=False)
        labels = examples.labels[rows]
        sums = EvalSums(
            loss=jnp.where(valid, cross_entropy(logits, labels), 0).sum(),
            correct=((logits.argmax(axis=1) == labels) & valid).sum(),
            examples=valid.sum(),
        )
        return jax.lax.psum(sums, axis_name)

    return step
