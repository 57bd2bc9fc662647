"""Trains several methods with several seeds and compares their scores."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from samon_jax import drawing, tasks
from samon_jax.errors import UserError
from samon_jax.training.follower import agree, fields_of, machine
from samon_jax.training.run import resolve
from samon_jax.training.sweep import at_once_pays, train_all
from samon_jax.workdir import files
from samon_jax.workdir.lock import locked
from samon_jax.workdir.progress import say


def compare(config: ConfigDict, directory: Path) -> dict[str, list[float]]:
    """Trains `config.compare.methods` with the seeds `config.seed`, `config.seed` + 1, ...

    The run of seed k goes to `directory/<method>/seed<k>`.
    Runs that are finished are read, not repeated, so an interrupted comparison continues. On
    accelerators all seeds of a method are trained at once, see `sweep.train_together`.

    Args:
      config: complete config with `compare.seeds` > 0; a method overrides fields of `config.sam`.
      directory: of the comparison; afterwards it holds compare.md, compare.json and compare.png.

    Returns:
      Values of the task's score by method, one per seed.

    Raises:
      UserError: as `loop.train`, a method names an unknown field, or another command works there.
    """
    resolve(config)
    agree("the machines", machine)  # as a single run does: one process may be told to train one
    agree("the settings", lambda: fields_of(config))
    configs = {name: _of_method(config, name) for name in config.compare.methods}
    if not configs:
        raise UserError("compare.methods is empty; name at least one method")
    for method in configs.values():
        resolve(method)
    score = tasks.create(config).score
    scores: dict[str, list[float]] = {name: [] for name in configs}
    seeds = range(config.seed, config.seed + config.compare.seeds)
    first = jax.process_index() == 0  # of several processes, this one writes and says
    with locked(directory, say) if first else contextlib.nullcontext():
        for chosen in [list(seeds)] if at_once_pays() else [[seed] for seed in seeds]:
            for name, method in configs.items():
                if first:
                    say(f"{name}, seed {', '.join(map(str, chosen))}")
                results = train_all(
                    [with_seed(method, seed) for seed in chosen],
                    [directory / name / f"seed{seed}" for seed in chosen],
                )
                for result in results:
                    if isinstance(result, UserError):
                        raise result
                    scores[name].append(result[score])
        if first:
            table = markdown_table(scores, score)
            files.write_text(directory / "compare.md", table)
            files.write_json(directory / "compare.json", _statistics(scores, score))
            with files.writing(directory / "compare.png"):
                drawing.comparison(scores, directory / "compare.png", score=score)
            say(table)
    return scores


def markdown_table(scores: Mapping[str, Sequence[float]], score: str = "test_accuracy") -> str:
    """Mean ± sample standard deviation of the score; the best mean is bold.

    Args:
      scores: by method; accuracies in [0, 1] are shown in percent.
      score: its name.

    Returns:
      A Markdown table.

    Example:
      >>> print(markdown_table({"SGD": [0.97, 0.98], "SAM": [0.98, 0.99]}))
      | method | test accuracy (%) | seeds |
      |---|---|---|
      | SGD | 97.50 ± 0.71 | 2 |
      | SAM | **98.50 ± 0.71** | 2 |
      <BLANKLINE>
    """
    share = score.endswith("accuracy")
    unit, title = (100, " (%)") if share else (1, "")
    best = max(np.mean(values) for values in scores.values())
    lines = [f"| method | {score.replace('_', ' ')}{title} | seeds |", "|---|---|---|"]
    for name, values in scores.items():
        cell = f"{unit * np.mean(values):.2f} ± {unit * _std(values):.2f}"
        cell = f"**{cell}**" if np.mean(values) == best else cell
        lines.append(f"| {name} | {cell} | {len(values)} |")
    return "\n".join(lines) + "\n"


def with_seed(config: ConfigDict, seed: int) -> ConfigDict:
    """A copy of a config with another seed."""
    config = ConfigDict(config.to_dict())
    config.seed = seed
    return config


def _of_method(config: ConfigDict, name: str) -> ConfigDict:
    method = ConfigDict(config.to_dict())
    try:
        method.sam.lock().update(config.compare.methods[name].to_dict())
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())  # of ml_collections, perhaps on several lines
        raise UserError(f"compare.methods.{name} does not fit the fields of sam: {why}") from None
    method.compare.seeds = 0
    method.compare.methods = ConfigDict()
    return method


def _std(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _statistics(scores: Mapping[str, Sequence[float]], score: str) -> dict[str, Any]:
    plural = "test_accuracies" if score == "test_accuracy" else f"{score}s"
    return {
        name: {plural: list(values), "mean": float(np.mean(values)), "std": _std(values)}
        for name, values in scores.items()
    }
