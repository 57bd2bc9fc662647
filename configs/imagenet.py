r"""ImageNet: Tables 2, 4 and 13 of the SAM-ON paper, with the settings of its Table 8.

    python main.py --workdir=runs/resnet50 --config.data.dir=$HOME/tensorflow_datasets \
        --config=configs/imagenet.py:resnet50,variant=layerwise_l2,mask=all

The recipes are resnet50, vit_s32 (with optimizer=adamw or lion) and finetune_vit_s16, which starts
from init_from=<npz file of AugReg's ViT-S/16>, without it from random weights. Without `rho`, the
published one. Any field can be overridden besides: --config.data.name=folder
--config.data.dir=<own pictures>.

What Table 8 does not say is as in timm 0.4.12's training script, whose defaults its first column
equals: label smoothing, colour jitter, crops, learning rates before the warm-up and after the
cosine, no weight decay on parameters of one dimension.
"""

import re

from ml_collections import ConfigDict

import samon_jax as samon
from samon_jax.errors import UserError
from samon_jax.methods import NO_PERTURBATION
from samon_jax.paper import imagenet_recipes
from samon_jax.paper.presets import preset
from samon_jax.training.config import default_config

# The SAM-ON that does best in Tables 2, 4 and 13.
_BEST = {
    "resnet50": ("layerwise_l2", "only_norm"),
    "vit_s32": ("sam", "only_norm"),
    "finetune_vit_s16": ("elementwise_linf", "only_norm"),
}
_OPTIONS = ("variant", "mask", "rho", "optimizer", "init_from")


def get_config(options: str = "") -> ConfigDict:
    """A run on ImageNet.

    Args:
      options: the recipe, then comma-separated `key=value` pairs; keys are variant, mask, rho,
        optimizer (of vit_s32) and init_from (of finetune_vit_s16). By default SAM-ON in the variant
        that does best in the paper's table.

    Raises:
      UserError: an option is unknown or its value not allowed.
    """
    recipe, _, rest = options.partition(",")
    if recipe not in imagenet_recipes.RECIPES:
        raise UserError(
            f"recipe {recipe!r} does not exist; write configs/imagenet.py:<recipe> with one of "
            f"{', '.join(imagenet_recipes.RECIPES)}"
        )
    given = _parse(rest)
    optimizer = given.get("optimizer", "adamw") if recipe == "vit_s32" else "sgd"
    if recipe == "vit_s32" and optimizer not in ("adamw", "lion"):
        raise UserError(f"optimizer={optimizer!r} is not allowed; choose adamw or lion")
    for name, of in (("optimizer", "vit_s32"), ("init_from", "finetune_vit_s16")):
        if name in given and recipe != of:
            raise UserError(f"{name}={given[name]} is not allowed with {recipe}, but with {of}")
    config = default_config()
    config.update_from_flattened_dict(imagenet_recipes.fields(recipe, optimizer))
    config.init_from = given.get("init_from", "")
    variant, mask = _BEST[recipe]
    config.sam.variant = given.get("variant", variant)
    config.sam.mask = given.get("mask", mask)
    architecture = imagenet_recipes.RECIPES[recipe][0]
    _set_rho(config, f"{architecture}-lion" if optimizer == "lion" else architecture, given)
    return config


def _set_rho(config: ConfigDict, architecture: str, given: dict[str, str]) -> None:
    """The radius that is given, else the published one."""
    if config.sam.variant not in (*samon.VARIANTS, NO_PERTURBATION):
        allowed = ", ".join((*samon.VARIANTS, NO_PERTURBATION))
        raise UserError(f"variant={config.sam.variant!r} is not allowed; choose one of {allowed}")
    if "rho" in given:
        try:
            config.sam.rho = float(given["rho"])
        except ValueError:
            raise UserError(f"rho={given['rho']} is not allowed; it must be a number") from None
    elif config.sam.variant != NO_PERTURBATION:
        rho = preset("imagenet", architecture, config.sam.variant, config.sam.mask).rho
        assert rho is not None  # Table 8 reports one for each of its columns
        config.sam.rho = float(rho)


def _parse(options: str) -> dict[str, str]:
    given: dict[str, str] = {}
    # Only a comma before the next key separates; others, as in a{1,2}, belong to the value.
    for pair in re.split(r",(?=\w+=)", options) if options else ():
        key, _, value = pair.partition("=")
        if key not in _OPTIONS or not value:
            raise UserError(
                f"config option {pair!r} is not allowed; write key=value with key one of "
                f"{', '.join(_OPTIONS)}"
            )
        given[key] = value
    return given
