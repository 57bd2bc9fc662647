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

from ml_collections import ConfigDict

from samon_jax import methods
from samon_jax.errors import UserError
from samon_jax.methods import NO_PERTURBATION
from samon_jax.paper.presets import DATASETS, published_rho
from samon_jax.training.cli import override
from samon_jax.training.config import default_config

# Options are short names of fields: variant=sam is --config.sam.variant=sam.
FIELDS = {
    "dataset": "data.name",
    "model": "model",
    "variant": "sam.variant",
    "mask": "sam.mask",
    "rho": "sam.rho",
    "optimizer": "optimizer.name",
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "batch_size": "batch_size",
    "epochs": "epochs",
    "seed": "seed",
}

# What optimizer=<name> sets besides the name, unless another option says otherwise.
# sgd: appendix A.1 for ResNets, as in default_config.
# adamw: appendix A.1 for Vision Transformers; "the other settings remain unchanged".
# lion: not used on CIFAR by the papers. Its authors (Chen et al. 2023, section 5) advise a learning
# rate 3-10 times smaller and a weight decay 3-10 times larger than AdamW's, and b2 = 0.99.
OPTIMIZERS: dict[str, dict[str, float]] = {
    "sgd": {},
    "adamw": {"optimizer.lr": 1e-4, "batch_size": 64},
    "lion": {
        "optimizer.lr": 2e-5,
        "optimizer.weight_decay": 2.5e-3,
        "optimizer.b2": 0.99,
        "batch_size": 64,
    },
}


def get_config(options: str = "") -> ConfigDict:
    """A run on CIFAR.

    Args:
      options: comma-separated `key=value` pairs; keys are those of `FIELDS`. Without `rho`, the
        published one; `optimizer` brings its own defaults, see `OPTIMIZERS`. A value may hold
        commas.

    Raises:
      UserError: an option is unknown or its value not allowed.
    """
    config = default_config()
    given = _read(options)
    optimizer = given.get("optimizer", config.optimizer.name)
    if optimizer not in OPTIMIZERS:
        raise UserError(
            f"optimizer={optimizer!r} is not allowed; choose one of {', '.join(OPTIMIZERS)}"
        )
    config.update_from_flattened_dict(OPTIMIZERS[optimizer])
    for name, value in given.items():
        flag = f"--config.{FIELDS[name]}={value}"
        try:
            override(config, [flag])
        except UserError as error:
            raise UserError(str(error).replace(flag, f"{name}={value}")) from None
    if config.data.name not in DATASETS:
        raise UserError(
            f"dataset={config.data.name!r} is not allowed; choose one of {', '.join(DATASETS)}"
        )
    if "rho" in given or config.sam.variant == NO_PERTURBATION:
        return config
    methods.FIELDS["variant"].check("variant", config.sam.variant)
    if config.model.startswith("vit"):
        raise UserError(
            f"rho is missing: the papers mark no value for model={config.model}; add rho=<number> "
            "to the options (Table 7 lists what was tried)"
        )
    config.sam.rho = published_rho(config.data.name, config.sam.variant, config.sam.mask)
    return config


def _read(options: str) -> dict[str, str]:
    """The options by their short names."""
    given = {}
    # Only a comma before the next key separates; others, as in a{1,2}, belong to the value.
    for pair in re.split(r",(?=\w+=)", options) if options else ():
        key, _, value = pair.partition("=")
        if key not in FIELDS or not value:
            raise UserError(
                f"config option {pair!r} is not allowed; write key=value with key one of "
                f"{', '.join(FIELDS)}"
            )
        given[key] = value
    return given
