"""Pictures of the results, where matplotlib is installed."""

from pathlib import Path

from benchmarks.accelerator.report import Result


def draw(results: list[Result], out: Path) -> None:
    """Draws the picture to which the last result belongs anew: speed.png or cifar.png."""
    kind = results[-1]["kind"]
    drawing = {"speed": _speed, "cifar": _curves}.get(kind)
    if drawing is not None:
        import matplotlib

        matplotlib.use("Agg")
        drawing([r for r in results if r["kind"] == kind], out / f"{kind}.png")


def _speed(results: list[Result], path: Path) -> None:
    """Images per second of every method, a panel a setting; PyTorch's in another colour."""
    from matplotlib import pyplot as plt

    columns = min(3, len(results))
    lines = -(-len(results) // columns)
    size = (4.6 * columns, 3.4 * lines)
    figure, panels = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for panel in panels.flat[len(results) :]:
        panel.set_axis_off()
    for result, panel in zip(results, panels.flat, strict=False):
        rows = [row for row in result["rows"] if row.get("ms")]
        names = [
            f"PyTorch: {row['name']}" if row["framework"].startswith("PyTorch") else row["name"]
            for row in rows
        ]
        colours = ["tab:orange" if name.startswith("PyTorch") else "tab:blue" for name in names]
        bars = panel.barh(range(len(rows)), [row["images_per_second"] for row in rows], 0.7)
        for bar, colour in zip(bars, colours, strict=True):
            bar.set_color(colour)
        labels = [
            f"{row['images_per_second']:,.0f}"
            + (f" ({100 * row['share']:.0f} % of peak)" if row.get("share") else "")
            for row in rows
        ]
        panel.bar_label(bars, labels, padding=2, fontsize=7)
        panel.set_yticks(range(len(rows)), names, fontsize=7)
        panel.invert_yaxis()
        panel.margins(x=0.45)
        panel.set_xlabel("images / s", fontsize=8)
        panel.set_title(
            f"{result['model']}, {result['dtype']}, batch {result['batch']}", fontsize=9
        )
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(results[-1]["device"], fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _curves(results: list[Result], path: Path) -> None:
    """Test accuracy over epochs of every method, mean over seeds and their range."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for result in results:
        epochs = [point["epoch"] for point in result["curve"]]
        values = [[100 * a for a in point["test_accuracy"]] for point in result["curve"]]
        means = [sum(v) / len(v) for v in values]
        (line,) = axes.plot(epochs, means, label=result["name"])
        low, high = [min(v) for v in values], [max(v) for v in values]
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title(f"{results[-1]['title']} ({results[-1]['device']})", fontsize=9)
    axes.legend(fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
