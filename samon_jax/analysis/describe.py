"""What tells a run from plain SGD, in words."""

from ml_collections import ConfigDict

from samon_jax import methods, tasks


def describe(config: ConfigDict) -> str:
    """The method of a run, with every setting that is not the default.

    Args:
      config: of the run.

    Example:
      >>> from samon_jax.training.config import default_config
      >>> config = default_config()
      >>> config.sam.gsam_alpha = 0.4
      >>> describe(config)
      'layerwise_l2, only_norm, ρ = 0.2, GSAM with α = 0.4'
    """
    method = methods.describe(
        config.sam.to_dict(), epochs=config.epochs, batch_size=tasks.rows(config)
    )
    others = {
        "norm parameters fixed": config.fix_norm,
        "only norm parameters trained": config.train_only_norm,
        f"norm dropout {config.norm_dropout:g}": config.norm_dropout > 0,
        "weight decay on all but norms": config.optimizer.decay == "no_norm",
        "no weight decay": config.optimizer.decay == "none",
        f"first {config.data.train_examples} training examples": config.data.train_examples > 0,
    }
    return ", ".join([method, *(text for text, holds in others.items() if holds)])
