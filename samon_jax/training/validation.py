"""Checks of a config: one clear line for every value that is not allowed."""

import math
import re
from collections.abc import Sequence

from ml_collections import ConfigDict

import samon_jax as samon
from samon_jax import data, models
from samon_jax.errors import UserError
from samon_jax.training.config import (
    BATCH_STATS,
    DECAYS,
    DTYPES,
    MASKS,
    NO_PERTURBATION,
    OPTIMIZERS,
    SCHEDULES,
    SPARSE,
    check_fields,
    get,
)


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
        "sam.sparse_update_epochs",
        "sam.fisher_samples",
        "sam.look_every",
        "checkpoint.every_epochs",
        "checkpoint.keep",
    ):
        _require(config, field, get(config, field) >= 1, "an integer >= 1")
    for field in (
        "steps_per_dispatch",
        "data.train_examples",
        "data.test_examples",
        "data.crop_padding",
        "sam.m",
        "compare.seeds",
    ):
        _require(config, field, get(config, field) >= 0, "an integer >= 0")
    for field in (
        "optimizer.weight_decay",
        "optimizer.clip_norm",
        "schedule.warmup_epochs",
        "schedule.cooldown_epochs",
        "schedule.end_lr",
        "sam.rho",
        "sam.gsam_alpha",
        "sam.look_alpha",
        "log.every_seconds",
    ):
        _require(config, field, 0 <= get(config, field) < math.inf, "a finite number >= 0")
    _require(config, "optimizer.lr", 0 < config.optimizer.lr < math.inf, "a finite number > 0")
    for field in (
        "label_smoothing",
        "norm_dropout",
        "optimizer.momentum",
        "optimizer.b1",
        "optimizer.b2",
    ):
        _require(config, field, 0 <= get(config, field) < 1, "0 <= value < 1")
    for field in ("sam.sparsity", "sam.drop"):
        _require(config, field, 0 <= get(config, field) <= 1, "0 <= value <= 1")
    for field in ("sam.esam_beta", "sam.esam_gamma", "sam.ascent_fraction"):
        _require(config, field, 0 < get(config, field) <= 1, "0 < value <= 1")
    _one_of(config, "data.name", data.names())
    _one_of(config, "optimizer.name", OPTIMIZERS)
    _one_of(config, "optimizer.decay", DECAYS)
    _one_of(config, "schedule.name", SCHEDULES)
    warmup, cooldown = config.schedule.warmup_epochs, config.schedule.cooldown_epochs
    if warmup + cooldown > config.epochs:
        raise UserError(
            f"schedule.warmup_epochs={warmup} and schedule.cooldown_epochs={cooldown} are not "
            f"allowed; their sum must be at most epochs={config.epochs}"
        )
    _validate_sam(config.sam, config.epochs)
    if config.fix_norm and config.train_only_norm:
        raise UserError("fix_norm and train_only_norm are both set: nothing would be trained")
    if config.sam.variant != NO_PERTURBATION:
        _validate_rho_min(config)
        _validate_combinations(config)
    models.create(config.model, num_classes=10)
    _validate_batch(config, num_devices)


def _validate_sam(sam: ConfigDict, epochs: int) -> None:
    config = ConfigDict({"sam": sam})
    _one_of(config, "sam.variant", (*samon.VARIANTS, NO_PERTURBATION))
    if sam.eta is not None:
        _require(config, "sam.eta", 0 <= sam.eta < math.inf, "a finite number >= 0")
    _validate_mask(sam.mask)
    _one_of(config, "sam.batch_stats", BATCH_STATS)
    _one_of(config, "sam.sparse", SPARSE)
    _require(config, "sam.start", 0 <= sam.start <= epochs, f"0 <= value <= {epochs}")
    _require(
        config,
        "sam.stop",
        sam.stop == 0 or sam.start <= sam.stop <= epochs,
        f"0 (to the end) or {sam.start} <= value <= {epochs}",
    )


def _validate_rho_min(config: ConfigDict) -> None:
    rho, rho_min = config.sam.rho, config.sam.rho_min
    if rho_min is None:
        return
    _require(config, "sam.rho_min", 0 <= rho_min <= rho, f"0 <= value <= sam.rho={rho}")
    schedule = config.schedule
    ends_at_end_lr = schedule.name == "cosine" or schedule.cooldown_epochs > 0
    falls = schedule.end_lr < config.optimizer.lr if ends_at_end_lr else schedule.warmup_epochs > 0
    if not falls:
        raise UserError(
            f"sam.rho_min={rho_min} is not allowed with schedule.name={schedule.name!r} and "
            f"schedule.end_lr={schedule.end_lr}: rho follows the learning rate, which does not fall"
        )


def _validate_combinations(config: ConfigDict) -> None:
    """Refuses switches that contradict each other; a run without perturbation ignores them all."""
    sam = config.sam
    selects_norms_only = sam.mask.startswith("only_norm")
    frozen = "fix_norm" if config.fix_norm else "train_only_norm"
    looks = sam.look_every > 1
    selects_examples = sam.esam_gamma < 1
    for together, field, other, reason in (
        (
            config.fix_norm and selects_norms_only,
            "sam.mask",
            "fix_norm",
            "the norm parameters are fixed, so nothing would be perturbed",
        ),
        (
            config.train_only_norm and sam.mask == "no_norm",
            "sam.mask",
            "train_only_norm",
            "only norm parameters are trained, so nothing would be perturbed",
        ),
        (
            sam.sparse != "none" and sam.mask != "all",
            "sam.mask",
            "sam.sparse",
            "it is normalized by the whole gradient and masked afterwards; choose 'all'",
        ),
        (
            sam.sparse != "none" and (config.fix_norm or config.train_only_norm),
            frozen,
            "sam.sparse",
            "its sparsity counts all parameters, fixed ones included",
        ),
        (
            looks and sam.sparse != "none",
            "sam.sparse",
            "sam.look_every",
            "the steps between would keep a direction of another mask",
        ),
        (
            looks and sam.gsam_alpha > 0,
            "sam.gsam_alpha",
            "sam.look_every",
            "both add a direction of their own to the same gradient",
        ),
        (
            looks and selects_examples,
            "sam.esam_gamma",
            "sam.look_every",
            "the direction that is reused must come from the whole batch",
        ),
        (
            looks and sam.ascent_fraction < 1,
            "sam.ascent_fraction",
            "sam.look_every",
            "the direction that is reused must come from the whole batch",
        ),
        (
            looks and sam.batch_stats != "clean",
            "sam.batch_stats",
            "sam.look_every",
            "most steps have no perturbed pass",
        ),
        (
            selects_examples and sam.m > 0,
            "sam.m",
            "sam.esam_gamma",
            "it chooses among all examples of a device, which share one perturbation",
        ),
        (
            selects_examples and sam.gsam_alpha > 0,
            "sam.gsam_alpha",
            "sam.esam_gamma",
            "the two gradients would belong to different examples",
        ),
        (
            selects_examples and sam.ascent_fraction < 1,
            "sam.ascent_fraction",
            "sam.esam_gamma",
            "it needs the clean loss of every example",
        ),
    ):
        if together:
            raise UserError(
                f"{field}={get(config, field)!r} is not allowed with "
                f"{other}={get(config, other)!r}: {reason}"
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


def _require(config: ConfigDict, field: str, condition: bool, allowed: str) -> None:
    if not condition:
        raise UserError(f"{field}={get(config, field)} is not allowed; it must be {allowed}")


def _one_of(config: ConfigDict, field: str, allowed: Sequence[str]) -> None:
    value = get(config, field)
    if value not in allowed:
        raise UserError(f"{field}={value!r} is not allowed; choose one of {', '.join(allowed)}")
