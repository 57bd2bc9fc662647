"""The base optimizer and its learning rate, from a config."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import samon_jax as samon
from samon_jax._fields import Field, boolean, integer, number, one_of
from samon_jax.errors import UserError
from samon_jax.training.trainable import trainable_mask

OPTIMIZERS = ("sgd", "adamw", "lion")
DECAYS = ("all", "no_norm", "matrices", "none")
SCHEDULES = ("cosine", "constant", "inverse_sqrt")

# Section `optimizer` of a config.
FIELDS: dict[str, Field] = {
    "name": Field(
        "sgd",
        one_of(*OPTIMIZERS),
        "changes nothing else: lr, weight_decay and b2 below are sgd's, or optax's",
    ),
    "lr": Field(0.1, number(above=True), "A.1; the largest learning rate of the schedule"),
    "momentum": Field(0.9, number(0, 1, below=True), "A.1; of sgd"),
    "b1": Field(0.9, number(0, 1, below=True), "of adamw and lion"),
    "b2": Field(0.999, number(0, 1, below=True), "of adamw and lion (lion's authors use 0.99)"),
    "weight_decay": Field(
        5e-4, number(), "A.1; sgd: added to the gradient; adamw, lion: decoupled"
    ),
    "decay": Field(
        "all",
        one_of(*DECAYS),
        "B.9; what weight decay acts on; matrices, as in timm: neither what has one dimension, "
        "norms and biases, nor positions and class token",
    ),
    "clip_norm": Field(
        0.0, number(), "largest global norm of the descent gradient; 0 = no clipping"
    ),
    "accumulate": Field(1, integer(1), "steps whose gradients are averaged into one update"),
}

# Section `schedule` of a config.
SCHEDULE_FIELDS: dict[str, Field] = {
    "name": Field("cosine", one_of(*SCHEDULES), "section 4; between warm-up and cool-down"),
    "warmup_epochs": Field(0.0, number(), "linear from warmup_lr to lr"),
    "warmup_steps": Field(0, integer(0), "the same in steps; added to warmup_epochs"),
    "warmup_lr": Field(0.0, number(), "learning rate at the first step of a warm-up"),
    "cooldown_epochs": Field(0.0, number(), "at end_lr, the last epochs of the run"),
    "end_lr": Field(0.0, number(), "learning rate after the cosine"),
    "by_epochs": Field(
        False,
        boolean,
        "as in timm: the rate changes once an epoch, and the cosine runs from epoch 0 on, also "
        "where the warm-up hides it",
    ),
}


def check_schedule(config: Any) -> None:
    """Raises a UserError if warm-up and cool-down do not fit into the run."""
    warmup, cooldown = config.schedule.warmup_epochs, config.schedule.cooldown_epochs
    if warmup + cooldown > config.epochs:
        raise UserError(
            f"schedule.warmup_epochs={warmup} and schedule.cooldown_epochs={cooldown} are not "
            f"allowed; their sum must be at most epochs={config.epochs}"
        )
    if config.schedule.by_epochs and config.schedule.warmup_steps:
        raise UserError(
            f"schedule.warmup_steps={config.schedule.warmup_steps} is not allowed with "
            "schedule.by_epochs=True; it must be 0"
        )
    if config.schedule.by_epochs and config.schedule.name == "inverse_sqrt":
        raise UserError(
            "schedule.name='inverse_sqrt' is not allowed with schedule.by_epochs=True; it must be "
            "cosine or constant"
        )


def make_schedule(config: Any, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate as a function of the step: linear warm-up, what its name says, cool-down.

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
    if config.schedule.by_epochs:
        return _schedule_by_epochs(config, steps_per_epoch)
    lr, end, first = config.optimizer.lr, config.schedule.end_lr, config.schedule.warmup_lr
    warmup = round(config.schedule.warmup_epochs * steps_per_epoch) + config.schedule.warmup_steps
    cooldown = round(config.schedule.cooldown_epochs * steps_per_epoch)
    decay = max(config.epochs * steps_per_epoch - warmup - cooldown, 1)
    if config.schedule.name == "cosine":
        main = optax.cosine_decay_schedule(lr, decay, alpha=end / lr)
        pieces = [optax.linear_schedule(first, lr, warmup), main, optax.constant_schedule(end)]
    elif config.schedule.name == "inverse_sqrt":
        main = _inverse_sqrt(lr, max(warmup, 1))
        pieces = [optax.linear_schedule(first, lr, warmup), main, optax.constant_schedule(end)]
    else:
        main = optax.constant_schedule(lr)
        last = optax.constant_schedule(end if cooldown else lr)
        pieces = [optax.linear_schedule(first, lr, warmup), main, last]
    return optax.join_schedules(pieces, [warmup, warmup + decay])


def _schedule_by_epochs(config: Any, steps_per_epoch: int) -> optax.Schedule:
    """The schedule of timm's training script: `CosineLRScheduler` counted in epochs."""
    lr, end, first = config.optimizer.lr, config.schedule.end_lr, config.schedule.warmup_lr
    warmup, cooldown = config.schedule.warmup_epochs, config.schedule.cooldown_epochs
    length = max(config.epochs - cooldown, 1)

    def schedule(step: Any) -> jax.Array:
        epoch = jnp.asarray(step) // steps_per_epoch
        falling = jnp.asarray(lr, jnp.float32)
        if config.schedule.name == "cosine":
            falling = end + (lr - end) * (1 + jnp.cos(jnp.pi * epoch / length)) / 2
        value = jnp.where(epoch < length, falling, end if cooldown else falling)
        rising = first + (lr - first) * epoch / max(warmup, 1)
        return jnp.where(epoch < warmup, rising, value)

    return schedule


def _inverse_sqrt(lr: float, warmup: int) -> optax.Schedule:
    """From lr on, as fairseq writes section 5.3 of Vaswani et al. 2017: lr √(warmup / step)."""
    # Asked for steps before as well, though nobody reads what it says of them.
    return lambda after: lr * jnp.sqrt(warmup / (warmup + jnp.maximum(after, 0)))


def make_optimizer(config: Any, steps_per_epoch: int) -> optax.GradientTransformation:
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
    mask = {"no_norm": _is_no_norm, "matrices": _is_matrix}.get(settings.decay)
    if settings.name == "sgd":
        base = optax.chain(
            optax.add_decayed_weights(weight_decay, mask), optax.sgd(lr, momentum=settings.momentum)
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


def _is_matrix(params: Any) -> Any:
    """All but parameters of one dimension and what a ViT's tokens begin with, as timm has it."""

    def decays(path: Any, leaf: Any) -> bool:
        return leaf.ndim > 1 and path[-1].key not in ("pos_embed", "cls_token")

    return jax.tree_util.tree_map_with_path(decays, params)
