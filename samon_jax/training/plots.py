"""Pictures of a run, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import samon_jax as samon

PyTree = Any

TRAIN, TEST = "#8a8a8a", "#1f5fa8"

_SMALL_ERROR = 10  # percent; errors below need a logarithmic axis


def learning_curve(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws loss and error over epochs.

    Args:
      records: of metrics.jsonl.
      path: of the .png file.
    """
    epochs = [record["epoch"] for record in records]
    marker = "o" if len(epochs) < 3 else ""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, error = figure.subplots(1, 2)
    for split, color in (("train", TRAIN), ("test", TEST)):
        losses = [record[f"{split}_loss"] for record in records]
        loss.plot(epochs, losses, color=color, marker=marker, label=split)
        errors = [100 * (1 - record[f"{split}_accuracy"]) for record in records]
        error.plot(epochs, errors, color=color, marker=marker, label=split)
    loss.set(
        xlabel="epoch", ylabel="cross-entropy (nats)", title="Loss (training: smoothed labels)"
    )
    error.set(xlabel="epoch", ylabel="wrong (%)", title="Error (training: augmented images)")
    lowest = min(100 * (1 - max(r["train_accuracy"], r["test_accuracy"])) for r in records)
    if lowest < _SMALL_ERROR:
        # Below one half of a percent a logarithmic axis would show single examples.
        ticks = [0, 1, 2, 5, 10, 20, 50, 100]
        error.set_yscale("symlog", linthresh=1)
        error.set_yticks(ticks, [str(tick) for tick in ticks])
    error.set_ylim(bottom=0, top=100)
    for axes in (loss, error):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _tidy(axes)
        axes.legend(frameon=False)
    _save(figure, path)


def norm_parameters(params: PyTree, path: Path) -> None:
    """Draws histograms of |γ| and |β| over all norm layers, as in Figure 2 of the workshop paper.

    Args:
      params: parameters of a model.
      path: of the .png file.
    """
    labels = jax.tree.leaves(samon.label_params(params))
    leaves = jax.tree.leaves(params)
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, label, symbol in zip(
        figure.subplots(1, 2), ("norm_scale", "norm_bias"), ("γ", "β"), strict=True
    ):
        chosen = [np.ravel(x) for x, own in zip(leaves, labels, strict=True) if own == label]
        values = np.abs(np.concatenate(chosen)) if chosen else np.zeros(0)
        axes.hist(values, bins=40, color=TEST)
        axes.set(
            xlabel=f"|{symbol}|", ylabel="parameters", yscale="log" if len(values) else "linear"
        )
        axes.set_ylim(bottom=0.5)  # a bin with one parameter stays visible
        mean = f", mean {values.mean():.3f}" if len(values) else ""
        axes.set_title(f"|{symbol}| of {len(values)} norm parameters{mean}")
        _tidy(axes)
    _save(figure, path)


def comparison(accuracies: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draws the test accuracy of every run, and mean ± standard deviation, by method.

    Args:
      accuracies: method to test accuracies in [0, 1], one per seed.
      path: of the .png file.
    """
    figure = Figure(figsize=(1.5 + 1.4 * len(accuracies), 3.8), layout="constrained")
    axes = figure.subplots()
    for position, values in enumerate(accuracies.values()):
        percent = 100 * np.asarray(values)
        spread = percent.std(ddof=1) if len(percent) > 1 else 0.0
        axes.plot(np.full(len(percent), position - 0.12), percent, "o", color=TRAIN, alpha=0.7)
        axes.errorbar(
            position + 0.12, percent.mean(), spread, fmt="s", color=TEST, capsize=4, markersize=6
        )
    axes.set_xticks(range(len(accuracies)), list(accuracies))
    axes.set_xlim(-0.5, len(accuracies) - 0.5)
    axes.set(ylabel="test accuracy (%)", title="Dots: seeds; squares: mean ± standard deviation")
    _tidy(axes)
    _save(figure, path)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e0e0e0", linewidth=0.6)
    axes.set_axisbelow(True)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=150)
    temporary.replace(path)
