"""One training step and one evaluation step, as every device runs them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from samon_jax.data import augment, autoaugment
from samon_jax.training.ascent import Ascent
from samon_jax.training.gradient import Aux, plain_gradient, sharp_gradient
from samon_jax.training.norm_dropout import norm_dropout
from samon_jax.training.state import TrainState
from samon_jax.training.trainable import hold_fixed, trainable_mask

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
      accuracy: float32 scalar, share of the examples in the clean pass that it classifies
        correctly.
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


class _Batch(NamedTuple):
    """Augmented examples of one device; images [n, H, W, C], labels [n].

    `keys` are those of `norm_dropout`, () without it: they belong to the examples, so that every
    pass that sees an example drops the same of it.
    """

    images: jax.Array
    labels: jax.Array
    keys: jax.Array | tuple[()]


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
    ascent: Ascent | None,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    steps_per_epoch: int,
    axis_name: str = "batch",
    look: str = "value_and_grad",
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
      look: with LookSAM, "sharp" or "plain" builds a step that is always of that kind.

    Returns:
      `step((state, train_set), rows) -> (state, metrics)`. `rows` int32 [steps, per_device] are the
      examples of this device for that many steps in a row; the leaves of `metrics` are [steps]. The
      state is the same on every device before and after.
    """
    trainable = trainable_mask(config)

    def losses_fn(params: PyTree, batch: _Batch, batch_stats: PyTree) -> tuple[jax.Array, Aux]:
        variables = {"params": hold_fixed(params, trainable), "batch_stats": batch_stats}
        with norm_dropout(config.norm_dropout, batch.keys):
            logits, updated = model.apply(
                variables, batch.images, train=True, mutable=["batch_stats"]
            )
        losses = cross_entropy(logits, batch.labels, config.label_smoothing)
        correct = (logits.argmax(axis=1) == batch.labels).sum()
        examples = jnp.asarray(len(batch.labels), jnp.int32)
        return losses, Aux(updated.get("batch_stats", {}), correct, examples)

    if ascent is None:
        gradient = plain_gradient(losses_fn, axis_name)
    else:
        gradient = sharp_gradient(config, losses_fn, ascent, axis_name, look)

    def load(state: TrainState, train: Examples, rows: jax.Array) -> _Batch:
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
        keys: Any = ()
        if config.norm_dropout:
            keys = jax.random.key_data(jax.random.split(jax.random.fold_in(key, 3), len(rows)))
        return _Batch(images, train.labels[rows], keys)

    def one_step(
        state: TrainState, train: Examples, rows: jax.Array
    ) -> tuple[TrainState, StepMetrics]:
        batch = load(state, train, rows)
        loss, aux, grads, ascent_state = gradient(state, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        loss, batch_stats = jax.lax.pmean((loss, aux.batch_stats), axis_name)
        correct, examples = jax.lax.psum((aux.correct, aux.examples), axis_name)
        first_of_epoch = state.step % steps_per_epoch == 0
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
            ascent_state=ascent_state,
            loss_sum=jnp.where(first_of_epoch, 0, state.loss_sum) + loss,
            correct_sum=jnp.where(first_of_epoch, 0, state.correct_sum) + correct,
            examples_sum=jnp.where(first_of_epoch, 0, state.examples_sum) + examples,
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
