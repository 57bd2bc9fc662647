r"""CIFAR-10 and CIFAR-100: Tables 1 and 10 of the SAM-ON paper (settings: appendix A.1).

    python main.py --workdir=runs/wrn \
        --config=configs/cifar.py:dataset=cifar100,model=wrn-28-10,variant=layerwise_l2,mask=only_norm

Vision Transformers with AdamW as in appendix A.1 (ρ: search space in Table 7):

    python main.py --workdir=runs/vit \
        --config=configs/cifar.py:model=vit-t,optimizer=adamw,variant=sam,mask=only_norm,rho=5

Any field can be overridden besides, as those of the ablations (B.7 to B.9) and of other methods:
--config.fix_norm=True --config.sam.mask=all, --config.optimizer.decay=no_norm,
--config.sam.sparse=ssam_f --config.sam.mask=all; see default_config. Quote what the shell would
change: --config='configs/cifar.py:mask=only_norm_in:stage[23]'.
"""

import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

import samon_jax as samon
from samon_jax.errors import UserError
from samon_jax.paper.presets import DATASETS, published_rho
from samon_jax.training.config import NO_PERTURBATION, default_config

# What optimizer=<name> sets besides the name, unless another option says otherwise.
# sgd: appendix A.1 for ResNets, as in default_config.
# adamw: appendix A.1 for Vision Transformers; "the other settings remain unchanged".
# lion: not used on CIFAR by the papers. Its authors (Chen et al. 2023, section 5) advise a learning
# rate 3-10 times smaller and a weight decay 3-10 times larger than AdamW's, and b2 = 0.99.
OPTIMIZERS: dict[str, dict[str, float]] = {
    "sgd": {},
    "adamw": {"lr": 1e-4, "batch_size": 64},
    "lion": {"lr": 2e-5, "batch_size": 64, "weight_decay": 2.5e-3, "b2": 0.99},
}

_OPTIONS: dict[str, Callable[[str], Any]] = {
    "dataset": str,
    "model": str,
    "variant": str,
    "mask": str,
    "rho": float,
    "optimizer": str,
    "lr": float,
    "weight_decay": float,
    "batch_size": int,
    "epochs": int,
    "seed": int,
}


def get_config(options: str = "") -> ConfigDict:
    """A run on CIFAR.

    Args:
      options: comma-separated `key=value` pairs; keys are dataset, model, variant, mask, rho,
        optimizer, lr, weight_decay, batch_size, epochs, seed. Without `rho`, the published one;
        `optimizer` brings its own defaults, see `OPTIMIZERS`. A value may hold commas.

    Raises:
      UserError: an option is unknown or its value not allowed.
    """
    given = _parse(options)
    config = default_config()
    config.data.name = given.get("dataset", config.data.name)
    config.model = given.get("model", config.model)
    config.sam.variant = given.get("variant", config.sam.variant)
    config.sam.mask = given.get("mask", config.sam.mask)
    config.optimizer.name = given.get("optimizer", config.optimizer.name)
    if config.optimizer.name not in OPTIMIZERS:
        raise UserError(
            f"optimizer={config.optimizer.name!r} is not allowed; choose one of "
            f"{', '.join(OPTIMIZERS)}"
        )
    settings = OPTIMIZERS[config.optimizer.name] | given
    config.batch_size = settings.get("batch_size", config.batch_size)
    for field in ("lr", "weight_decay", "b2"):
        config.optimizer[field] = settings.get(field, config.optimizer[field])
    config.epochs = given.get("epochs", config.epochs)
    config.seed = given.get("seed", config.seed)
    if config.data.name not in DATASETS:
        raise UserError(
            f"dataset={config.data.name!r} is not allowed; choose one of {', '.join(DATASETS)}"
        )
    if config.sam.variant not in (*samon.VARIANTS, NO_PERTURBATION):
        allowed = ", ".join((*samon.VARIANTS, NO_PERTURBATION))
        raise UserError(f"variant={config.sam.variant!r} is not allowed; choose one of {allowed}")
    if "rho" in given:
        config.sam.rho = given["rho"]
    elif config.model.startswith("vit") and config.sam.variant != NO_PERTURBATION:
        raise UserError(
            f"rho is missing: the papers mark no value for model={config.model}; add rho=<number> "
            "to the options (Table 7 lists what was tried)"
        )
    elif config.sam.variant != NO_PERTURBATION:
        config.sam.rho = published_rho(config.data.name, config.sam.variant, config.sam.mask)
    return config


def _parse(options: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    # Only a comma before the next key separates; others, as in a{1,2}, belong to the value.
    for pair in re.split(r",(?=\w+=)", options) if options else ():
        key, _, value = pair.partition("=")
        if key not in _OPTIONS or not value:
            raise UserError(
                f"config option {pair!r} is not allowed; write key=value with key one of "
                f"{', '.join(_OPTIONS)}"
            )
        try:
            given[key] = _OPTIONS[key](value)
        except ValueError:
            kind = "a number" if _OPTIONS[key] is float else "an integer"
            raise UserError(
                f"config option {pair!r} is not allowed; {key} must be {kind}"
            ) from None
    return given
