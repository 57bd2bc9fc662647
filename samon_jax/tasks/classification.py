"""Images to classes: augmentation, label-smoothed cross-entropy, accuracy."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from samon_jax import data, models
from samon_jax._passes.collectives import psum
from samon_jax.data import augment, autoaugment, jitter
from samon_jax.data.dataset import Description, Split
from samon_jax.data.source import Examples
from samon_jax.errors import UserError
from samon_jax.tasks.norm_dropout import norm_dropout
from samon_jax.tasks.task import Aux, Variables

PyTree = Any


class Batch(NamedTuple):
    """Augmented examples of one device.

    Attributes:
      images: float [n, H, W, C], normalized.
      labels: int32 [n].
      keys: of `norm_dropout`, uint32 [n, ...]; () without it. They belong to the examples, so that
        every pass that sees an example drops the same of it.
    """

    images: jax.Array
    labels: jax.Array
    keys: jax.Array | tuple[()]


@dataclasses.dataclass(frozen=True)
class Classification:
    """The task of the papers' image experiments; see `tasks.task.Task` for the methods.

    Attributes:
      model: Linen module, called as `model(images, train=...)`.
      images: what it sees.
      label_smoothing: probability mass spread evenly over all classes, in training.
      norm_dropout: rate of dropout after norm layers, in training.
      crop_padding: black pixels around an image before a random crop.
      flip: mirror every second image.
      auto_augment: AutoAugment after crop and flip.
      color_jitter: strength of random brightness, contrast and saturation.
      dtype: of the images, and so of the forward and backward pass.
    """

    model: nn.Module
    images: Description
    label_smoothing: float = 0.0
    norm_dropout: float = 0.0
    crop_padding: int = 0
    flip: bool = False
    auto_augment: bool = False
    color_jitter: float = 0.0
    dtype: str = "float32"

    name = "classification"
    score = "test_accuracy"
    metrics = ("test_accuracy", "test_loss")
    sums = {"correct": jnp.int32, "examples": jnp.int32}  # noqa: RUF012

    def init(self, key: jax.Array) -> Variables:
        """Parameters and, for models with BatchNorm, {"batch_stats": ...}."""
        images = jnp.zeros((1, *self.images.image_shape), jnp.float32)
        return dict(self.model.init(key, images, train=False))

    def prepare(self, key: jax.Array | None, raw: Split, train: bool) -> Batch:
        """Crops, flips, augments (in training) and normalizes uint8 images [n, H, W, C]."""
        images = raw.images
        keys: Any = ()
        if train and key is not None:
            crop_key, flip_key = jax.random.split(key)
            if self.crop_padding:
                images = augment.random_crop(crop_key, images, self.crop_padding)
            # Streamed pictures bring seeds of their own, which no number of devices changes.
            seeds = raw.seeds
            if self.flip and seeds is None:
                images = augment.random_flip(flip_key, images)
            if seeds is not None:
                images = jitter.flip_and_jitter(seeds, images, self.color_jitter, self.flip)
            elif self.color_jitter:
                seeds = jax.random.bits(jax.random.fold_in(key, 4), (len(images),))
                images = jitter.flip_and_jitter(seeds, images, self.color_jitter, mirror=False)
            if self.auto_augment:
                # A key of its own: crops and flips stay the same with and without.
                images = autoaugment.auto_augment(jax.random.fold_in(key, 2), images)
            if self.norm_dropout:
                each = jax.random.split(jax.random.fold_in(key, 3), len(raw.labels))
                keys = jax.random.key_data(each)
        mean, std = self.images.mean, self.images.std
        images = augment.normalize(images, mean, std, dtype=jnp.dtype(self.dtype))
        return Batch(images, raw.labels, keys)

    def losses(self, variables: Variables, batch: Batch, train: bool) -> tuple[jax.Array, Aux]:
        """Cross-entropies [n] in nats, with label smoothing in training."""
        if train:
            collections = [name for name in variables if name != "params"]
            with norm_dropout(self.norm_dropout, batch.keys):
                logits, updated = self.model.apply(
                    variables, batch.images, train=True, mutable=collections
                )
        else:
            logits, updated = self.model.apply(variables, batch.images, train=False), {}
        smoothing = self.label_smoothing if train else 0.0
        losses = cross_entropy(logits, batch.labels, smoothing)
        correct = (logits.argmax(axis=1) == batch.labels).sum()
        examples = jnp.asarray(len(batch.labels), jnp.int32)
        return losses, Aux(dict(updated), {"correct": correct, "examples": examples})

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """{"accuracy": ...}, in [0, 1]."""
        return {"accuracy": int(sums["correct"]) / int(sums["examples"])}

    def evaluate(
        self, variables: Variables, examples: Examples, devices: Any, prefix: str = "test_"
    ) -> dict[str, float]:
        """Mean cross-entropy (nats) and accuracy of a split, every example counted once."""
        program = _evaluation(self, examples.fetch, devices)
        resident = devices.replicate(examples.resident)
        sums = [program((variables, resident), devices.shard(raw)) for raw in examples.batches]
        jax.block_until_ready(sums)  # raises where memory is wanted; to read waits forever
        count = sum(int(s["examples"]) for s in sums)
        loss = float(np.sum([float(s["loss"]) for s in sums])) / count
        accuracy = sum(int(s["correct"]) for s in sums) / count
        return {f"{prefix}loss": loss, f"{prefix}accuracy": accuracy}

    def show(self, metrics: Mapping[str, float]) -> str:
        """For example "accuracy 97.12 %"."""
        return f"accuracy {100 * metrics['accuracy']:.2f} %"


def create(config: Any) -> Classification:
    """The task of a config; reads no examples.

    Raises:
      UserError: the model does not exist, or a field does not fit the images.
    """
    images = data.describe(config)
    if not isinstance(images, Description):
        raise UserError(
            f"data.name={config.data.name!r} is not allowed with task='classification': it holds "
            "no images"
        )
    channels, side = images.image_shape[2], min(images.image_shape[:2])
    for field in ("auto_augment", "color_jitter"):
        if (value := getattr(config.data, field)) and channels != 3:
            raise UserError(
                f"data.{field}={value} is not allowed with data.name={images.name!r}, "
                f"whose images have {channels} channel; it needs 3"
            )
    if config.data.crop_padding > side:
        raise UserError(
            f"data.crop_padding={config.data.crop_padding} is not allowed; it must be at most "
            f"{side}, the side of an image"
        )
    return Classification(
        model=models.create(config.model, images.num_classes, dtype=jnp.dtype(config.dtype)),
        images=images,
        label_smoothing=config.label_smoothing,
        norm_dropout=config.norm_dropout,
        crop_padding=config.data.crop_padding,
        flip=config.data.flip,
        auto_augment=config.data.auto_augment,
        color_jitter=config.data.color_jitter,
        dtype=config.dtype,
    )


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


@functools.lru_cache(maxsize=16)
def _evaluation(task: Classification, fetch: Any, devices: Any) -> Any:
    """The program that evaluates a batch: `((variables, resident), raw)` to sums of all devices."""

    def step(inputs: tuple[Variables, PyTree], raw: dict[str, jax.Array]) -> dict[str, jax.Array]:
        variables, resident = inputs
        valid = raw["valid"]
        batch = task.prepare(None, fetch(resident, raw), train=False)
        logits: Any = task.model.apply(variables, batch.images, train=False)
        sums = {
            "loss": jnp.where(valid, cross_entropy(logits, batch.labels), 0).sum(),
            "correct": ((logits.argmax(axis=1) == batch.labels) & valid).sum(),
            "examples": valid.sum(),
        }
        return psum(sums, devices.axis_name)

    return devices.compile(step)
