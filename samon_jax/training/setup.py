"""What every run builds from its config: data on the devices, model, optimizer, compiled steps."""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging as absl_logging
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from samon_jax import data, models
from samon_jax.data.cache import cache_dir
from samon_jax.data.dataset import Dataset, Split
from samon_jax.errors import UserError
from samon_jax.training import batches
from samon_jax.training.ascent import Ascent, make_ascent
from samon_jax.training.config import NO_PERTURBATION
from samon_jax.training.fisher_mask import make_mask_renewal
from samon_jax.training.gradient import make_ascent_init
from samon_jax.training.optimizers import make_optimizer
from samon_jax.training.state import TrainState, initial_state
from samon_jax.training.step import Examples, make_eval_step, make_train_step
from samon_jax.training.validation import validate

PyTree = Any


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, unless JAX_COMPILATION_CACHE_DIR already says where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))


def quiet_libraries() -> None:
    """Silences the notices of Orbax and absl; ours go to stdout.

    Errors too: they arrive as exceptions besides, and Orbax logs each with several tracebacks.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)
    # Imported late by TFDS or Orbax, these would otherwise print through Python's last-resort
    # handler.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def resolve(config: ConfigDict) -> ConfigDict:
    """A checked copy of a config in which the number of devices is no longer "all".

    Raises:
      UserError: a field is not allowed.
    """
    config = ConfigDict(config.to_dict())
    available = jax.local_device_count()
    if not 0 <= config.num_devices <= available:
        raise UserError(
            f"num_devices={config.num_devices} is not allowed; it must be 0 (all) to {available}"
        )
    config.num_devices = config.num_devices or available
    validate(config, config.num_devices)
    return config


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled functions of a run; runs that differ in seed and ρ alone share them.

    Attributes:
      init: `init(seed, rho) -> state` on the default device; see `Run.initial_state`.
      train: `train((state, train_set), rows) -> (state, metrics)` with perturbation; `rows` int32
        [devices, steps, per_device].
      train_plain: the same with the plain gradient, for epochs that are not perturbed.
      evaluate: `evaluate((params, batch_stats, test_set), (rows, valid)) -> sums`.
      step: what `train` runs on every device; see `make_train_step`.
      step_plain: what `train_plain` runs.
      look: for LookSAM, else None: (plain, sharp), the two kinds of steps that `train` chooses
        from, for callers that know which is due. On CPU, XLA runs convolutions inside the branches
        of a program several times slower.
      renew_mask: `renew_mask((state, train_set), rows) -> state` for "ssam_f", else None; `rows`
        int32 [devices, 1, samples].
      renew_step: what `renew_mask` runs.
    """

    init: Callable[..., TrainState]
    train: Any
    train_plain: Any
    evaluate: Callable[..., Any]
    step: Callable[..., Any]
    step_plain: Callable[..., Any]
    look: tuple[Any, Any] | None = None
    renew_mask: Any = None
    renew_step: Any = None


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first to the last step.

    Attributes:
      config: complete, resolved and checked.
      dataset: on the host.
      train_set: on every device.
      test_set: on every device.
      devices: that share each batch.
      steps_per_epoch: batches in one epoch.
      programs: compiled functions.
    """

    config: ConfigDict
    dataset: Dataset
    train_set: Examples
    test_set: Examples
    devices: tuple[jax.Device, ...]
    steps_per_epoch: int
    programs: Programs

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    def initial_state(self) -> TrainState:
        """The state before the first step, on the default device."""
        return self.programs.init(np.uint32(self.config.seed), np.float32(self.config.sam.rho))

    def template(self) -> TrainState:
        """Shapes and dtypes of the state, without computing anything."""
        return jax.eval_shape(self.programs.init, np.uint32(0), np.float32(0))


def set_up(config: ConfigDict) -> Run:
    """Loads the data and builds the programs; writes nothing.

    Args:
      config: a complete config.

    Returns:
      What the loop needs.

    Raises:
      UserError: a field is not allowed, data are missing, or the mask selects nothing.
    """
    config = resolve(config)
    dataset = data.load(config.data.name, config.data.dir or None)
    dataset = dataclasses.replace(
        dataset,
        train=_first(dataset.train, config, "train_examples"),
        test=_first(dataset.test, config, "test_examples"),
    )
    num_examples = len(dataset.train.labels)
    renews_mask = config.sam.sparse == "ssam_f" and config.sam.variant != NO_PERTURBATION
    for field, count in (
        ("batch_size", config.batch_size),
        ("sam.fisher_samples", config.sam.fisher_samples if renews_mask else 0),
    ):
        if count > num_examples:
            raise UserError(
                f"{field}={count} is not allowed; data.name={config.data.name!r} has "
                f"{num_examples} training examples"
                + (" with data.train_examples" if config.data.train_examples else "")
            )
    channels = dataset.train.images.shape[3]
    if config.data.auto_augment and channels != 3:
        raise UserError(
            f"data.auto_augment=True is not allowed with data.name={config.data.name!r}, whose "
            f"images have {channels} channel; it needs 3"
        )
    side = min(dataset.train.images.shape[1:3])
    if config.data.crop_padding > side:
        raise UserError(
            f"data.crop_padding={config.data.crop_padding} is not allowed; it must be at most "
            f"{side}, the side of an image"
        )
    steps_per_epoch = num_examples // config.batch_size
    devices = tuple(jax.local_devices()[: config.num_devices])
    programs = _programs(
        _program_config(config),
        num_classes=dataset.num_classes,
        image_shape=dataset.train.images.shape[1:],
        mean=tuple(dataset.mean),
        std=tuple(dataset.std),
        steps_per_epoch=steps_per_epoch,
        devices=devices,
    )
    jax.eval_shape(programs.init, np.uint32(0), np.float32(0))  # does the mask select anything?
    train_set, test_set = (
        batches.replicate(Examples(split.images, split.labels), devices)
        for split in (dataset.train, dataset.test)
    )
    return Run(config, dataset, train_set, test_set, devices, steps_per_epoch, programs)


def _first(split: Split, config: ConfigDict, field: str) -> Split:
    """The first examples of a split, as many as the field of `config.data` says; 0 = all."""
    count, available = config.data[field], len(split.labels)
    if count > available:
        raise UserError(
            f"data.{field}={count} is not allowed; data.name={config.data.name!r} has {available}"
        )
    return Split(split.images[:count], split.labels[:count]) if count else split


def _program_config(config: ConfigDict) -> FrozenConfigDict:
    """The part of a config that the programs depend on; seed and ρ are data in the state."""
    config = ConfigDict(config.to_dict())
    config.seed = 0
    if config.sam.rho_min is None:
        config.sam.rho = 0.0
    for section in ("log", "checkpoint", "compare"):
        del config[section]
    return FrozenConfigDict(config)


def make_model(config: ConfigDict | FrozenConfigDict, num_classes: int) -> nn.Module:
    """The model a config names."""
    return models.create(config.model, num_classes, dtype=jnp.dtype(config.dtype))


@functools.lru_cache(maxsize=16)
def _programs(
    config: FrozenConfigDict,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    steps_per_epoch: int,
    devices: tuple[jax.Device, ...],
) -> Programs:
    model = make_model(config, num_classes)
    optimizer = make_optimizer(config, steps_per_epoch)
    ascent = make_ascent(config, steps_per_epoch, axis_name="batch")

    def train_step(ascent: Ascent | None, look: str = "value_and_grad") -> Callable[..., Any]:
        return make_train_step(
            config,
            model=model,
            optimizer=optimizer,
            ascent=ascent,
            mean=mean,
            std=std,
            steps_per_epoch=steps_per_epoch,
            look=look,
        )

    init = functools.partial(
        initial_state,
        model=model,
        optimizer=optimizer,
        init_ascent=make_ascent_init(config, ascent),
        image_shape=image_shape,
    )
    look = None
    if ascent is not None and config.sam.look_every > 1:
        plain, sharp = (parallel(train_step(ascent, kind), devices) for kind in ("plain", "sharp"))
        look = plain, sharp
    renew_step = None
    if ascent is not None and config.sam.sparse == "ssam_f":
        renew_step = make_mask_renewal(
            model, sparsity=config.sam.sparsity, mean=mean, std=std, dtype=config.dtype
        )
    step, step_plain = train_step(ascent), train_step(None)
    eval_step = make_eval_step(model, mean=mean, std=std, dtype=config.dtype)
    return Programs(
        init=jax.jit(init),
        train=parallel(step, devices),
        train_plain=parallel(step_plain, devices),
        evaluate=parallel(eval_step, devices, out_axes=None),
        step=step,
        step_plain=step_plain,
        look=look,
        renew_mask=parallel(renew_step, devices, out_axes=None) if renew_step else None,
        renew_step=renew_step,
    )


def parallel(
    step: Callable[..., Any], devices: tuple[jax.Device, ...], out_axes: Any = (None, 0)
) -> Callable[..., Any]:
    """A step on all devices: its first argument is the same on each, the second is divided."""
    return jax.pmap(step, axis_name="batch", in_axes=(None, 0), out_axes=out_axes, devices=devices)
