"""What a run can vary: the default of every field, and the check of all of them."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

import samon_jax as samon
from samon_jax import data, models
from samon_jax.errors import UserError

DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("sgd", "adamw", "lion")
SCHEDULES = ("cosine", "constant")
BATCH_STATS = ("clean", "perturbed", "both")
MASKS = ("all", "only_norm", "no_norm", "only_norm_in:<regex>", "random:<sparsity>")
NO_PERTURBATION = "none"
_MISSING = object()

# These fields say where things lie, what is kept and what is shown. A run may continue with other
# values; every other field belongs to the identity of the run. That includes steps_per_dispatch
# and eval_batch_size: programs of another size round differently.
REPORTING_FIELDS = ("data.dir", "log.", "checkpoint.")
# What --mode=eval can override.
EVAL_FIELDS = ("data.dir", "eval_batch_size")


def default_config() -> ConfigDict:
    """The settings of the papers' CIFAR runs; sources are in appendix A.1 of the SAM-ON paper.

    Returns:
      A locked `ConfigDict`: an unknown field or a value of another type is an error.

    Example:
      >>> config = default_config()
      >>> config.sam.rho = 0.2
    """
    config = ConfigDict()
    config.seed = 0  # everything random follows from it; 0 <= seed < 2**32
    config.model = "wrn-28-10"  # a name that samon_jax.models.create knows
    config.dtype = "float32"  # of the forward and backward pass; parameters are always float32
    config.num_devices = 0  # 0 = all devices of this machine
    config.epochs = 200  # A.1; passes over the training set, warm-up and cool-down included
    config.batch_size = 128  # examples per step over all devices, as in Kwon et al. 2021
    config.eval_batch_size = 1000  # examples per evaluation step over all devices
    config.label_smoothing = 0.1  # A.1; probability mass spread evenly over all classes
    config.steps_per_dispatch = 0  # steps per call of the program; 0 = 1 on CPU, else <= 50

    config.data = ConfigDict()
    config.data.name = "cifar100"  # "digits", "cifar10" or "cifar100"
    config.data.dir = ""  # TFDS data_dir; "" = TFDS_DATA_DIR, else the default of TFDS
    config.data.crop_padding = 4  # black pixels around an image before a random crop; 0 = no crop
    config.data.flip = True  # mirror every second image, left to right
    config.data.auto_augment = False  # AutoAugment after crop and flip: "+AA" of the papers

    config.optimizer = ConfigDict()
    # "sgd", "adamw" or "lion". Changes nothing else: lr, weight_decay and b2 below are sgd's, or
    # optax's; the option optimizer= of configs/cifar.py sets them as well.
    config.optimizer.name = "sgd"
    config.optimizer.lr = 0.1  # A.1; the largest learning rate of the schedule
    config.optimizer.momentum = 0.9  # A.1; of sgd
    config.optimizer.b1 = 0.9  # of adamw and lion
    config.optimizer.b2 = 0.999  # of adamw and lion (lion's authors use 0.99)
    config.optimizer.weight_decay = 5e-4  # A.1; sgd: added to the gradient; adamw, lion: decoupled
    config.optimizer.clip_norm = 0.0  # largest global norm of the descent gradient; 0 = no clipping
    config.optimizer.accumulate = 1  # steps whose gradients are averaged into one update

    config.schedule = ConfigDict()
    config.schedule.name = "cosine"  # section 4; or "constant", between warm-up and cool-down
    config.schedule.warmup_epochs = 0.0  # linear from 0 to lr
    config.schedule.cooldown_epochs = 0.0  # at end_lr, the last epochs of the run
    config.schedule.end_lr = 0.0  # learning rate after the cosine

    config.sam = ConfigDict()
    # A name that samon_jax.variant knows, or "none": the plain gradient, for which all other fields
    # of this section have no effect.
    config.sam.variant = "layerwise_l2"
    config.sam.rho = 0.2  # radius of the perturbation; each variant has its own scale (Table 7)
    config.sam.eta = config_dict.placeholder(float)  # None = what Table 9 gives for the variant
    config.sam.mask = "only_norm"  # what is perturbed; see MASKS
    config.sam.m = 0  # examples that share one perturbation; 0 = the batch of a device
    config.sam.start = 0  # perturb in epochs start <= epoch < stop, counted from 0
    config.sam.stop = 0  # 0 = to the end
    config.sam.batch_stats = "clean"  # which pass feeds the running statistics: see BATCH_STATS
    config.sam.reuse_prefix = True  # second pass reuses what the perturbation cannot change

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 1
    config.checkpoint.keep = 2  # newest checkpoints; the best one is kept besides

    config.log = ConfigDict()
    config.log.every_seconds = 30.0  # time between progress lines where stdout is not a terminal
    config.log.tensorboard = True

    config.compare = ConfigDict()
    # > 0: train every method with so many seeds (seed, seed + 1, ...) and compare them.
    config.compare.seeds = 0
    # name: the fields of `sam` in which the method differs; methods.update(...) keeps their order.
    config.compare.methods = ConfigDict(sort_keys=False)
    return config.lock()


def check_fields(config: ConfigDict) -> None:
    """Checks that every field of `default_config` is there and has its type.

    Args:
      config: made by anyone.

    Raises:
      UserError: names the fields that are missing, or the first one of another type.
    """
    missing = [field for field, _ in _fields(default_config()) if _get(config, field) is _MISSING]
    if missing:
        shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if missing[6:] else "")
        raise UserError(
            f"the config lacks the fields {shown}; begin with "
            "config = samon_jax.training.config.default_config()"
        )
    for field, default in _fields(default_config()):
        value = _get(config, field)
        wanted = (int, float) if isinstance(default, float) else type(default)
        if default is not None and not isinstance(value, wanted):
            kind = type(default).__name__
            raise UserError(f"{field}={value!r} is not allowed; it must be of type {kind}")


def validate(config: ConfigDict, num_devices: int) -> None:
    """Checks every field that can be checked without data or parameters.

    Args:
      config: a complete config.
      num_devices: number of devices that share a batch.

    Raises:
      UserError: the first field that is not allowed, with its value and what is.
    """
    check_fields(config)
    _require(config, "seed", 0 <= config.seed < 2**32, "0 <= seed < 2**32")
    last_seed = config.seed + max(config.compare.seeds - 1, 0)
    _require(config, "compare.seeds", last_seed < 2**32, "such that seed + seeds <= 2**32")
    _one_of(config, "dtype", DTYPES)
    for field in (
        "epochs",
        "batch_size",
        "eval_batch_size",
        "optimizer.accumulate",
        "checkpoint.every_epochs",
        "checkpoint.keep",
    ):
        _require(config, field, _get(config, field) >= 1, "an integer >= 1")
    for field in ("steps_per_dispatch", "data.crop_padding", "sam.m", "compare.seeds"):
        _require(config, field, _get(config, field) >= 0, "an integer >= 0")
    for field in (
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "schedule.warmup_epochs",
        "schedule.cooldown_epochs",
        "schedule.end_lr",
        "sam.rho",
        "log.every_seconds",
    ):
        _require(config, field, 0 <= _get(config, field) < math.inf, "a finite number >= 0")
    _require(config, "optimizer.lr", 0 < config.optimizer.lr < math.inf, "a finite number > 0")
    for field in ("label_smoothing", "optimizer.momentum", "optimizer.b1", "optimizer.b2"):
        _require(config, field, 0 <= _get(config, field) < 1, "0 <= value < 1")
    _one_of(config, "data.name", data.names())
    _one_of(config, "optimizer.name", OPTIMIZERS)
    _one_of(config, "schedule.name", SCHEDULES)
    warmup, cooldown = config.schedule.warmup_epochs, config.schedule.cooldown_epochs
    if warmup + cooldown > config.epochs:
        raise UserError(
            f"schedule.warmup_epochs={warmup} and schedule.cooldown_epochs={cooldown} are not "
            f"allowed; their sum must be at most epochs={config.epochs}"
        )
    _validate_sam(config.sam, config.epochs)
    models.create(config.model, num_classes=10)
    _validate_batch(config, num_devices)


def _validate_sam(sam: ConfigDict, epochs: int) -> None:
    config = ConfigDict({"sam": sam})
    _one_of(config, "sam.variant", (*samon.VARIANTS, NO_PERTURBATION))
    if sam.eta is not None:
        _require(config, "sam.eta", 0 <= sam.eta < math.inf, "a finite number >= 0")
    _validate_mask(sam.mask)
    _one_of(config, "sam.batch_stats", BATCH_STATS)
    _require(config, "sam.start", 0 <= sam.start <= epochs, f"0 <= value <= {epochs}")
    _require(
        config,
        "sam.stop",
        sam.stop == 0 or sam.start <= sam.stop <= epochs,
        f"0 (to the end) or {sam.start} <= value <= {epochs}",
    )


def _validate_mask(mask: str) -> None:
    name, _, argument = mask.partition(":")
    if name in ("all", "only_norm", "no_norm") and mask == name:
        return
    if name == "only_norm_in" and argument:
        try:
            re.compile(argument)
        except re.error as error:
            raise UserError(f"sam.mask={mask!r} is not a regular expression: {error}") from None
        return
    if name == "random":
        try:
            allowed = 0 <= float(argument) < 1
        except ValueError:
            allowed = False
        if allowed:
            return
        raise UserError(f"sam.mask={mask!r}: the sparsity must be a number with 0 <= value < 1")
    raise UserError(f"sam.mask={mask!r} is not allowed; choose one of {', '.join(MASKS)}")


def _validate_batch(config: ConfigDict, num_devices: int) -> None:
    _require(
        config,
        "batch_size",
        config.batch_size % num_devices == 0,
        f"a multiple of the {num_devices} devices",
    )
    per_device = config.batch_size // num_devices
    m = config.sam.m
    if m:
        _require(
            config,
            "sam.m",
            per_device % m == 0 or (m % per_device == 0 and config.batch_size % m == 0),
            f"0, a divisor of a device's {per_device} examples, or a multiple of them that divides "
            f"batch_size={config.batch_size}",
        )


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield f"{prefix}{name}", value
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _get(config: ConfigDict, field: str) -> Any:
    value = config
    for name in field.split("."):
        if not isinstance(value, ConfigDict) or name not in value:
            return _MISSING
        value = value[name]
    return value


def _require(config: ConfigDict, field: str, condition: bool, allowed: str) -> None:
    if not condition:
        raise UserError(f"{field}={_get(config, field)} is not allowed; it must be {allowed}")


def _one_of(config: ConfigDict, field: str, allowed: Sequence[str]) -> None:
    value = _get(config, field)
    if value not in allowed:
        raise UserError(f"{field}={value!r} is not allowed; choose one of {', '.join(allowed)}")
