"""What all figures of the analysis share; drawn without a display."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow: told apart by colour-blind readers too.
_COLORS = ("#555555", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_STYLES = ("-", "--", ":")


def color(run: int) -> str:
    """Colour of a run, the same in every figure."""
    return _COLORS[run % len(_COLORS)]


def line_style(run: int) -> str:
    """Line style of a run; it changes where the colours begin again."""
    return _STYLES[run // len(_COLORS) % len(_STYLES)]


def new(width: float, height: float) -> Figure:
    """An empty figure; sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Any) -> None:
    """Removes the upper and right border and draws a faint horizontal grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e0e0e0", linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.get_xscale() == "linear":
        axes.locator_params(axis="x", nbins=6)  # labels of more would touch


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG; a crash leaves no half of one."""
    FigureCanvasAgg(figure)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)
