"""What a run can vary: every field with its default, unit and source."""

from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict, config_dict

from samon_jax.errors import UserError

DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("sgd", "adamw", "lion")
DECAYS = ("all", "no_norm", "none")
SCHEDULES = ("cosine", "constant")
BATCH_STATS = ("clean", "perturbed", "both")
MASKS = ("all", "only_norm", "no_norm", "only_norm_in:<regex>", "random:<sparsity>")
SPARSE = ("none", "ssam_f", "ssam_d")
NO_PERTURBATION = "none"
MISSING = object()

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
    config.fix_norm = False  # B.7; norm scales stay 1 and norm biases 0; the rest is trained
    config.train_only_norm = False  # B.8; everything but the norm parameters stays as initialized
    # B.9; share of the outputs of the normalization layers that a training step sets to 0.
    config.norm_dropout = 0.0
    config.steps_per_dispatch = 0  # steps per call of the program; 0 = 1 on CPU, else <= 50

    config.data = ConfigDict()
    config.data.name = "cifar100"  # a name that samon_jax.data.names() lists
    config.data.dir = ""  # TFDS data_dir; "" = TFDS_DATA_DIR, else the default of TFDS
    config.data.train_examples = 0  # only so many, the first of the data set; 0 = all
    config.data.test_examples = 0  # only so many, the first of the data set; 0 = all
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
    config.optimizer.decay = "all"  # B.9; what weight decay acts on: see DECAYS
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
    # None = constant radius; else it follows the learning rate, from rho at the largest one to
    # rho_min at the smallest (GSAM, Zhuang et al. 2022, section 4.2).
    config.sam.rho_min = config_dict.placeholder(float)
    config.sam.eta = config_dict.placeholder(float)  # None = what Table 9 gives for the variant
    config.sam.mask = "only_norm"  # what is perturbed; see MASKS
    config.sam.m = 0  # examples that share one perturbation; 0 = the batch of a device
    config.sam.start = 0  # perturb in epochs start <= epoch < stop, counted from 0
    config.sam.stop = 0  # 0 = to the end
    config.sam.batch_stats = "clean"  # which pass feeds the running statistics: see BATCH_STATS
    config.sam.reuse_prefix = True  # second pass reuses what the perturbation cannot change
    # Sparse perturbations with a mask that changes (Mi et al. 2022; tables 5 and 12): see SPARSE.
    config.sam.sparse = "none"
    config.sam.sparsity = 0.5  # share of the parameters' entries that is left unperturbed
    config.sam.sparse_update_epochs = 1  # epochs between two changes of the mask
    config.sam.fisher_samples = 128  # ssam_f: training examples behind the Fisher information
    config.sam.drop = 0.5  # ssam_d: share of the mask exchanged at first; falls along a cosine to 0
    # GSAM (Zhuang et al. 2022): weight of the part of the clean gradient that is orthogonal to the
    # perturbed one; 0 = SAM.
    config.sam.gsam_alpha = 0.0
    # ESAM (Du et al. 2022); 1 = SAM.
    config.sam.esam_beta = 1.0  # probability with which an entry of the perturbation is kept
    config.sam.esam_gamma = 1.0  # share of the batch in the second pass: the most sensitive part
    # LookSAM (Liu et al. 2022).
    config.sam.look_every = 1  # steps between two perturbed ones; 1 = SAM
    config.sam.look_alpha = 0.7  # length of the reused direction, relative to the gradient's
    config.sam.ascent_fraction = 1.0  # share of the batch from which the perturbation is computed

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
    missing = [field for field, _ in _fields(default_config()) if get(config, field) is MISSING]
    if missing:
        shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if missing[6:] else "")
        raise UserError(
            f"the config lacks the fields {shown}; begin with "
            "config = samon_jax.training.config.default_config()"
        )
    for field, default in _fields(default_config()):
        value = get(config, field)
        wanted = (int, float) if isinstance(default, float) else type(default)
        if default is not None and not isinstance(value, wanted):
            kind = type(default).__name__
            raise UserError(f"{field}={value!r} is not allowed; it must be of type {kind}")


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield f"{prefix}{name}", value
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def get(config: ConfigDict, field: str) -> Any:
    """The value of a field such as "sam.rho"; `MISSING` if there is none."""
    value = config
    for name in field.split("."):
        if not isinstance(value, ConfigDict) or name not in value:
            return MISSING
        value = value[name]
    return value
