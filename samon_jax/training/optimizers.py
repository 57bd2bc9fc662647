"""The base optimizer and its learning rate, from a config."""

from typing import Any

import jax
import optax
from ml_collections import ConfigDict, FrozenConfigDict

import samon_jax as samon
from samon_jax.training.trainable import trainable_mask


def make_schedule(config: ConfigDict | FrozenConfigDict, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate as a function of the step: linear warm-up, cosine or constant, cool-down.

    Args:
      config: a complete config.
      steps_per_epoch: steps in one epoch.

    Returns:
      An optax schedule of the number of steps done.

    Example:
      >>> from samon_jax.training.config import default_config
      >>> schedule = make_schedule(default_config(), steps_per_epoch=10)
      >>> print(f"{schedule(1000):.3f}")  # half way
      0.050
    """
    lr, end = config.optimizer.lr, config.schedule.end_lr
    warmup = round(config.schedule.warmup_epochs * steps_per_epoch)
    cooldown = round(config.schedule.cooldown_epochs * steps_per_epoch)
    decay = max(config.epochs * steps_per_epoch - warmup - cooldown, 1)
    if config.schedule.name == "cosine":
        main = optax.cosine_decay_schedule(lr, decay, alpha=end / lr)
        pieces = [optax.linear_schedule(0.0, lr, warmup), main, optax.constant_schedule(end)]
    else:
        main = optax.constant_schedule(lr)
        last = optax.constant_schedule(end if cooldown else lr)
        pieces = [optax.linear_schedule(0.0, lr, warmup), main, last]
    return optax.join_schedules(pieces, [warmup, warmup + decay])


def make_optimizer(
    config: ConfigDict | FrozenConfigDict, steps_per_epoch: int
) -> optax.GradientTransformation:
    """SGD with momentum and coupled weight decay as in PyTorch, AdamW, or Lion.

    Clipping acts on the gradient before weight decay is added. Parameters that are not trained get
    no update and no weight decay, have no state and do not count for the norm that is clipped.

    Args:
      config: a complete config.
      steps_per_epoch: steps in one epoch.

    Returns:
      An optax transform whose updates are added to the parameters.
    """
    settings = config.optimizer
    schedule = make_schedule(config, steps_per_epoch)

    def lr(updates_done: int) -> float:
        # With accumulation an update happens every `accumulate` steps; the schedule counts steps.
        return schedule(updates_done * settings.accumulate)

    weight_decay = 0.0 if settings.decay == "none" else settings.weight_decay
    mask = _is_no_norm if settings.decay == "no_norm" else None
    if settings.name == "sgd":
        base = optax.chain(
            optax.add_decayed_weights(weight_decay, mask),
            optax.sgd(lr, momentum=settings.momentum),
        )
    elif settings.name == "adamw":
        base = optax.adamw(lr, settings.b1, settings.b2, weight_decay=weight_decay, mask=mask)
    else:
        base = optax.lion(lr, settings.b1, settings.b2, weight_decay=weight_decay, mask=mask)
    if settings.clip_norm:
        base = optax.chain(optax.clip_by_global_norm(settings.clip_norm), base)
    if settings.accumulate > 1:
        base = optax.MultiSteps(base, settings.accumulate).gradient_transformation()
    trainable = trainable_mask(config)
    if trainable is not None:
        base = optax.partition(
            {True: base, False: optax.set_to_zero()},
            lambda params: jax.tree.map(bool, trainable(params)),
        )
    return base


def _is_no_norm(params: Any) -> Any:
    """As `samon_jax.no_norm`, but may select nothing: where only norm parameters are trained."""
    return jax.tree.map(lambda label: not label.startswith("norm"), samon.label_params(params))
