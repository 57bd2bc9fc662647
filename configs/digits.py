"""8x8 handwritten digits: a run of about a minute on two CPU cores that tries everything out.

The recipe is the papers' (SGD with momentum, cosine, label smoothing 0.1) at the size of the
problem.

    python main.py --config=configs/digits.py --workdir=runs/digits
    python main.py --config=configs/digits.py:compare --workdir=runs/digits-compare
"""

from ml_collections import ConfigDict

from samon_jax.errors import UserError
from samon_jax.training.config import default_config


def get_config(options: str = "") -> ConfigDict:
    """SAM-ON on digits, or with "compare" four methods over five seeds.

    Args:
      options: "" or "compare".
    """
    config = default_config()
    config.model = "digits-resnet"
    config.num_devices = 1
    config.epochs = 40
    config.batch_size = 64
    config.optimizer.lr = 0.1
    config.schedule.warmup_epochs = 1.0
    config.data.name = "digits"
    config.data.crop_padding = 1
    config.data.flip = False  # a mirrored 2 is no digit
    config.sam.variant = "sam"
    config.sam.mask = "only_norm"
    config.sam.rho = 0.5
    if options == "compare":
        config.compare.seeds = 5
        with config.unlocked():
            config.compare.methods.update(
                {
                    "SGD": {"variant": "none"},
                    "SAM-all": {"variant": "sam", "mask": "all", "rho": 0.1},
                    "SAM-ON": {"variant": "sam", "mask": "only_norm", "rho": 0.5},
                    "no-norm": {"variant": "sam", "mask": "no_norm", "rho": 0.1},
                }
            )
    elif options:
        raise UserError(f"configs/digits.py:{options} does not exist; choose '' or 'compare'")
    return config
