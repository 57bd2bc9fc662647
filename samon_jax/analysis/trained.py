"""A trained model from its work directory, ready to be measured."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.tree_util import Partial
from ml_collections import ConfigDict

from samon_jax import data, tasks
from samon_jax.analysis import sentences
from samon_jax.data import augment
from samon_jax.data.dataset import Description
from samon_jax.data.resident import ResidentSource
from samon_jax.errors import UserError
from samon_jax.tasks import Task
from samon_jax.tasks.classification import Classification
from samon_jax.tasks.translation import Translation
from samon_jax.training import devices, reading

PyTree = Any


class _Mode(NamedTuple):
    """Equal for equal models, so that runs of one architecture share compiled programs.

    With `train`, it normalizes by the batch, as the training step does.
    """

    model: nn.Module
    train: bool

    def __call__(self, batch_stats: PyTree, params: PyTree, inputs: Any) -> Any:
        variables = {"params": params, "batch_stats": batch_stats}
        if self.train:
            return self.model.apply(variables, inputs, train=True, mutable=["batch_stats"])[0]
        return self.model.apply(variables, inputs, train=False)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's model at one checkpoint.

    Attributes:
      name: of the run, unique in a report.
      config: of the run.
      step: of the checkpoint.
      task: that computes in float32, whatever the run computed in.
      params: parameters on the default device.
      model_state: of the model, such as {"batch_stats": ...}.
    """

    name: str
    config: ConfigDict
    step: int
    task: Task
    params: PyTree
    model_state: dict[str, PyTree]

    @property
    def classifies_images(self) -> bool:
        """Whether there is anything to attack."""
        return isinstance(self.task, Classification)

    @property
    def translation(self) -> Translation | None:
        """The task of a run that translates, else None."""
        return self.task if isinstance(self.task, Translation) else None

    @property
    def has_logits(self) -> bool:
        """Whether there are `apply` and `examples`."""
        return self.classifies_images or self.translation is not None

    @property
    def images(self) -> Description:
        """What it classifies."""
        return self._classification.images

    @property
    def model(self) -> nn.Module:
        """Linen module."""
        return self._classification.model

    @property
    def apply(self) -> Partial:
        """`apply(params, inputs) -> logits` of `examples`, with the running statistics."""
        if self.translation is not None:
            return Partial(sentences.Logits(self.translation.model))
        return Partial(_Mode(self.model, train=False), self._batch_stats)

    @property
    def apply_train_mode(self) -> Partial:
        """The same with the statistics of the batch; the same where there are none."""
        if self.translation is not None:
            return self.apply
        return Partial(_Mode(self.model, train=True), self._batch_stats)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The task's metrics on the whole test set."""
        variables = {"params": self.params, **self.model_state}
        read = reading.Trained(self.config, self.task, variables, self.step)
        return reading.evaluate(read, devices.take(1))

    def normalizer(self) -> Partial:
        """Maps images in [0, 1] to the model's inputs."""
        mean, std = (jnp.asarray(x, jnp.float32) for x in (self.images.mean, self.images.std))
        return Partial(_normalize, mean, std)

    def examples(self, split: str, limit: int, seed: int = 0) -> tuple[jax.Array, np.ndarray]:
        """Normalized images, not augmented, and labels of at most `limit` examples; or sentences.

        Args:
          split: "train" or "test".
          limit: number of examples, as for `subset`.
          seed: of the draw; runs on the same data set get the same examples.

        Returns:
          Float32 [n, H, W, C] and int32 [n]; of sentences as `sentences.draw`.
        """
        if self.translation is not None:
            return sentences.draw(self.config, self.translation, split, limit, seed)
        images, labels = self.subset(split, limit, seed)
        return augment.normalize(jnp.asarray(images), self.images.mean, self.images.std), labels

    def subset(self, split: str, limit: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """At most `limit` examples: uint8 images and labels.

        They are drawn at random without repetition; of data that are streamed they are the first.
        """
        if isinstance(self._source, ResidentSource):
            whole = self._source.dataset.split(split)
            rows = np.random.default_rng(seed).permutation(len(whole.labels))[:limit]
            return whole.images[rows], whole.labels[rows]
        examples = self._source.evaluation(split)
        found: list[Any] = []
        count = 0
        for raw in examples.batches:
            own = examples.fetch(examples.resident, raw)
            found.append([np.asarray(x)[raw["valid"]] for x in (own.images, own.labels)])
            count += len(found[-1][1])
            if count >= limit:
                break
        images, labels = (np.concatenate(parts)[:limit] for parts in zip(*found, strict=True))
        return images, labels

    @property
    def num_train(self) -> int:
        """Size of the training set."""
        return self._source.num_examples

    @cached_property
    def _source(self) -> data.Source:
        return data.make_source(self.config)

    @property
    def _classification(self) -> Classification:
        if not isinstance(self.task, Classification):
            raise UserError(f"task={self.task.name!r} has no images to be classified")
        return self.task

    @property
    def _batch_stats(self) -> PyTree:
        return self.model_state.get("batch_stats", {})


def load(directory: Path, *, name: str | None = None, which: str = "newest") -> Trained:
    """Reads a run's config and checkpoint; its data are read when they are first needed.

    Args:
      directory: work directory.
      name: shown in the report; by default the name of the folder.
      which: checkpoint, as for `reading.read`.

    Raises:
      UserError: there is no run, or no checkpoint that can be read.
    """
    found = reading.read(directory, which)
    exact = ConfigDict(found.config.to_dict())
    exact.dtype = "float32"
    variables = dict(jax.device_put(found.variables))
    return Trained(
        name=name or directory.resolve().name,
        config=found.config,
        step=found.step,
        task=tasks.create(exact, directory),
        params=variables.pop("params"),
        model_state=variables,
    )


def load_all(directories: Sequence[Path], *, which: str = "newest") -> list[Trained]:
    """Reads several runs; names are as many last parts of the paths as make them unique.

    Raises:
      UserError: there is no directory, one is named twice, or one cannot be read.
    """
    if not directories:
        raise UserError("--workdir is missing; name at least one run")
    paths = [directory.resolve() for directory in directories]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"--workdir={path.name} is given twice")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return [load(path, name="/".join(path.parts[-depth:]), which=which) for path in paths]


def _normalize(mean: jax.Array, std: jax.Array, images: jax.Array) -> jax.Array:
    return (images - mean) / std
