"""What a run can vary, what of it is allowed, and when two runs are the same.

Every field is declared where the thing is built that it configures; here they become a config.
"""

import json
import math
import numbers
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict, config_dict

from samon_jax import data, methods, tasks
from samon_jax._fields import Field, integer, refuse, to_float
from samon_jax.errors import UserError
from samon_jax.training import devices, init_from, optimizers, trainable
from samon_jax.workdir import checkpoints, progress

_RUN: dict[str, Field] = {
    "seed": Field(0, integer(0, 2**32 - 1), "everything random follows from it"),
    "epochs": Field(
        200, integer(1), "A.1; passes over the training set, warm-up and cool-down included"
    ),
    "batch_size": Field(
        128, integer(1), "examples per step over all devices, as in Kwon et al. 2021"
    ),
    "eval_batch_size": Field(1000, integer(1), "examples per evaluation step over all devices"),
}


def _methods_to_compare(name: str, value: Any) -> None:
    for method, fields in value.items():
        folder = Path(str(method))
        if not str(method).isprintable() or folder.is_absolute() or ".." in folder.parts:
            raise refuse(name, str(method), "names of folders in the work directory")
        if not isinstance(fields, Mapping | ConfigDict):
            raise refuse(f"{name}.{method}", fields, "fields of sam and their values")
        unknown = [field for field in fields if field not in methods.FIELDS]
        if unknown:
            raise UserError(
                f"{name}.{method} does not fit the fields of sam: {unknown[0]!r} is none of "
                f"{', '.join(methods.FIELDS)}"
            )


_COMPARE: dict[str, Field] = {
    "seeds": Field(
        0,
        integer(0, 2**31),
        "> 0: train every method with so many seeds (seed, seed + 1, ...) and compare them",
    ),
    "methods": Field(
        ConfigDict(sort_keys=False),
        _methods_to_compare,
        "name: the fields of `sam` in which the method differs; methods.update(...) keeps order",
    ),
}


def sections() -> dict[str, dict[str, Field]]:
    """The fields of a config by section; those of "" stand at the top."""
    return {
        "": _RUN | tasks.FIELDS | trainable.FIELDS | devices.FIELDS | init_from.FIELDS,
        "data": data.FIELDS,
        "optimizer": optimizers.FIELDS,
        "schedule": optimizers.SCHEDULE_FIELDS,
        "sam": methods.FIELDS,
        "devices": devices.LAYOUT_FIELDS,
        "checkpoint": checkpoints.FIELDS,
        "log": progress.FIELDS,
        "compare": _COMPARE,
        **{name: entry.fields for name, entry in tasks.TASKS.items() if entry.fields},
    }


# These fields say where things lie, what is kept and what is shown. A run may continue with other
# values; every other field belongs to the identity of the run. That includes steps_per_dispatch
# and eval_batch_size: programs of another size round differently.
REPORTING_FIELDS = ("data.dir", "data.threads", "log.", "checkpoint.")
# What --mode=translate can override, and --mode=eval.
TRANSLATE_FIELDS = ("translation.beam", "translation.length_penalty", "translation.eval_tokens")
EVAL_FIELDS = ("data.dir", "data.threads", "data.held_back", "eval_batch_size", *TRANSLATE_FIELDS)


def default_config() -> ConfigDict:
    """The settings of the papers' CIFAR runs; sources are in appendix A.1 of the SAM-ON paper.

    Returns:
      A locked `ConfigDict`: an unknown field or a value of another type is an error.

    Example:
      >>> config = default_config()
      >>> config.sam.rho = 0.2
    """
    config = ConfigDict()
    for section, fields in sections().items():
        node = config
        if section:
            config[section] = node = ConfigDict()
        for name, field in fields.items():
            node[name] = _initial(field.default)
    return config.lock()


def _initial(default: Any) -> Any:
    if default is None:
        return config_dict.placeholder(float)
    if isinstance(default, ConfigDict):
        return ConfigDict(default.to_dict(), sort_keys=False)  # its own copy would sort
    return default


def check(config: ConfigDict) -> None:
    """Checks every field that can be checked without data, parameters or devices.

    Args:
      config: made by anyone.

    Raises:
      UserError: names the fields that are missing, or the first one that is not allowed, with its
        value and what is.
    """
    check_fields(config)
    if config.seed + max(config.compare.seeds - 1, 0) >= 2**32:
        raise UserError(
            f"compare.seeds={config.compare.seeds} is not allowed; it must be such that seed + "
            "seeds <= 2**32"
        )
    optimizers.check_schedule(config)
    if config.fix_norm and config.train_only_norm:
        raise UserError("fix_norm and train_only_norm are both set: nothing would be trained")
    methods.check(
        dict(config.sam),
        **method_context(config),
        batch_size=tasks.rows(config),
        num_devices=config.num_devices or 1,
    )


def method_context(config: Any) -> dict[str, Any]:
    """What the rest of a config tells `methods.check` and `methods.from_fields`.

    Args:
      config: a complete config.
    """
    schedule = config.schedule
    falls = schedule.name != "constant" or schedule.cooldown_epochs > 0
    warms_up = schedule.warmup_epochs > 0 or schedule.warmup_steps > 0
    highest = config.optimizer.lr
    rises = falls and schedule.end_lr >= highest
    lowest = schedule.warmup_lr if warms_up and not rises else schedule.end_lr
    return {
        "epochs": config.epochs,
        "learning_rate": methods.LearningRate(
            None,
            lowest if falls or warms_up else highest,
            highest,
        ),
        "trainable": trainable.trainable_mask(config),
    }


def check_fields(config: ConfigDict) -> None:
    """Checks that every field is there, is known, and has an allowed value of its own."""
    known = list(_declared())
    missing = [name for name, _ in known if get(config, name) is MISSING]
    if missing:
        shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if missing[6:] else "")
        raise UserError(
            f"the config lacks the fields {shown}; begin with "
            "config = samon_jax.training.config.default_config()"
        )
    names = {name for name, _ in known}
    for name in _names(config):
        if name not in names and not name.startswith("compare.methods."):
            raise UserError(f"{name} is no field of a config; {_nearby(name, names)}")
    for name, field in known:
        value = get(config, name)
        if isinstance(field.default, ConfigDict) and not isinstance(value, ConfigDict):
            raise UserError(f"{name}={value!r} is not allowed; it must be of type ConfigDict")
        field.check(name, value)


def plain(tree: Any) -> Any:
    """The same with Python's numbers in the place of NumPy's and JAX's, as JSON needs them.

    Example:
      >>> import numpy as np
      >>> plain({"sam": {"rho": np.float64(0.5)}, "epochs": np.int64(3)})
      {'sam': {'rho': 0.5}, 'epochs': 3}
    """
    if isinstance(tree, dict):
        return {name: plain(value) for name, value in tree.items()}
    if isinstance(tree, numbers.Integral) and not isinstance(tree, bool):
        return int(tree)
    real = to_float(tree)
    return tree if isinstance(tree, bool) or math.isnan(real) else real


def identity(config: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    """What a run is: the fields that differ from their defaults, but for what is only reported.

    A field that is added later, with a default that changes nothing, changes no identity. Where the
    run is not perturbed, the fields of `sam` but the variant have no effect and are left out.

    Args:
      config: a complete config, or the content of a config.json, whose missing fields have their
        defaults.
      without: further fields to leave out, "seed" or "data.name".

    Returns:
      Field to value, sorted by name, as JSON holds it; equal for two configs of the same run.

    Example:
      >>> config = default_config()
      >>> config.seed, config.log.tensorboard = 3, False
      >>> identity(config)
      {'seed': 3}
    """
    tree = json.loads(config.to_json()) if not isinstance(config, Mapping) else config
    defaults = {name: _plain(field.default) for name, field in _declared()}
    found: dict[str, Any] = {}
    for name, value in sorted(flat(tree, defaults)):
        default = defaults.get(name)
        same = value == default and isinstance(value, bool) == isinstance(default, bool)
        if not same and not name.startswith((*REPORTING_FIELDS, *without)):
            found[name] = value
    if found.get("sam.variant") == methods.NO_PERTURBATION:
        found = {
            name: value
            for name, value in found.items()
            if not name.startswith("sam.") or name == "sam.variant"
        }
    return found


def differences(
    saved: Mapping[str, Any], ours: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Fields in which two identities differ, with both values; a missing one has its default.

    Example:
      >>> list(differences({"seed": 1}, {}))
      [('seed', 1, 0)]
    """
    defaults = {name: _plain(field.default) for name, field in _declared()}
    for name in sorted({*saved, *ours}):
        theirs, mine = (side.get(name, defaults.get(name)) for side in (saved, ours))
        if theirs != mine:
            yield name, theirs, mine


def changes(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Differences that make a run another one than that of a work directory.

    The number of devices may change where `sam.m` says how many examples share an ε: what is
    computed is then the same but for rounding, for the draws of the augmentation and, where `m` is
    more than a device's share, for statistics of BatchNorm, which are of one device's examples.
    Not so where batches differ in rows: these are multiples of `m` on every device.

    Example:
      >>> changes({"num_devices": 4}, {"num_devices": 2})
      [('num_devices', 4, '2 (sam.m=0: an ε belongs to the examples of a device)')]
      >>> changes({"num_devices": 4, "sam.m": 16}, {"num_devices": 2, "sam.m": 16})
      []
      >>> changes({"num_devices": 4, "sam.variant": "none"}, {"sam.variant": "none"})
      [('num_devices', 4, '0 (statistics of BatchNorm belong to the examples of a device)')]
    """
    found, fixed_rows = [], not tasks.TASKS[ours.get("task", "classification")].rows_differ
    for name, theirs, mine in differences(saved, ours):
        if name == "num_devices" and ours.get("sam.m") and fixed_rows:
            continue
        if name == "num_devices":
            plain = ours.get("sam.variant") == methods.NO_PERTURBATION
            m = ours.get("sam.m", 0)
            what = f"sam.m={m}: an ε belongs" if not plain else "statistics of BatchNorm belong"
            mine = f"{mine} ({what} to the examples of a device)"
        found.append((name, theirs, mine))
    return found


def check_identity(saved: Any, ours: Mapping[str, Any], where: Path) -> None:
    """Refuses results of another run: config.json may have been deleted or replaced.

    Args:
      saved: identity beside the results; anything else says nothing.
      ours: that of the run.
      where: the results are.

    Raises:
      UserError: the run is another one.
    """
    changed = changes(saved, ours) if isinstance(saved, dict) else []
    if changed:
        field, theirs, mine = changed[0]
        raise UserError(
            f"{where} belongs to a run with another config ({field}: {theirs!r} there, {mine!r} "
            "now); choose another --workdir"
        )


MISSING = object()


def get(config: ConfigDict, field: str) -> Any:
    """The value of a field such as "sam.rho"; `MISSING` if there is none."""
    value = config
    for name in field.split("."):
        if not isinstance(value, ConfigDict | FrozenConfigDict) or name not in value:
            return MISSING
        value = value[name]
    return value


def _declared() -> Iterator[tuple[str, Field]]:
    for section, fields in sections().items():
        for name, field in fields.items():
            yield (f"{section}.{name}" if section else name), field


def _names(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict) and f"{prefix}{name}" != "compare.methods":
            yield from _names(value, f"{prefix}{name}.")
        else:
            name = f"{prefix}{name}"
            yield name if name.isprintable() else ascii(name)


def _nearby(name: str, names: set[str]) -> str:
    section = name.rpartition(".")[0]
    beside = sorted(n.rpartition(".")[2] for n in names if n.rpartition(".")[0] == section)
    return f"the fields there are {', '.join(beside)}" if beside else f"there is no {section!r}"


def flat(
    tree: Mapping[str, Any], leaves: Container[str] = (), prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """The fields of a config as JSON holds it; those in `leaves` stay whole."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and f"{prefix}{name}" not in leaves:
            yield from flat(value, leaves, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _plain(default: Any) -> Any:
    return json.loads(default.to_json()) if isinstance(default, ConfigDict) else default
