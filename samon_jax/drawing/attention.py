"""Which sub-words of a source sentence a translation looks at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from samon_jax.drawing import style


def attention(runs: Mapping[str, Any], path: Path) -> None:
    """Draws one map per run.

    Args:
      runs: name to an object with `source` (S sub-words), `said` (T sub-words) and `weights`
        [T, S] in [0, 1].
      path: of the .png file.
    """
    widths = [0.32 * len(found.source) + 1 for found in runs.values()]
    height = 0.26 * max(len(found.said) for found in runs.values()) + 1.4
    figure = style.new(sum(widths), height)
    panels = np.ravel(figure.subplots(1, len(runs), width_ratios=widths))
    for axes, (name, found) in zip(panels, runs.items(), strict=True):
        axes.imshow(found.weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(found.source)), found.source, rotation=90)
        axes.set_yticks(range(len(found.said)), found.said)
        axes.tick_params(length=0, labelsize=8)
        axes.set_title(name, fontsize=10)
    style.save(figure, path)
