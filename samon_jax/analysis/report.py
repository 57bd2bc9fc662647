"""One report on several runs: Markdown for people, JSON for machines, and the pictures."""

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from samon_jax.analysis import markdown, measure, sentences, weights
from samon_jax.analysis.describe import describe
from samon_jax.analysis.measure import Printed, SharpnessDefinition, Sizes
from samon_jax.analysis.trained import Trained, load_all
from samon_jax.drawing import analysis as drawing
from samon_jax.drawing.attention import attention
from samon_jax.errors import UserError
from samon_jax.workdir.files import write_json, write_text

MARKDOWN, JSON = "report.md", "report.json"


def analyze(
    workdirs: Sequence[Path],
    out: Path | None = None,
    *,
    which: str = "newest",
    sizes: Sizes = Sizes(),  # noqa: B008
    printed: Callable[[ConfigDict], Printed] = lambda config: Printed(),
) -> Path:
    """Measures runs and writes `report.md`, `report.json` and PNGs.

    Args:
      workdirs: work directories, in the order of the columns.
      out: folder of the report; by default `analysis` in the first work directory.
      which: "newest" or "best" checkpoint of each run.
      sizes: of the report.
      printed: what is printed for the settings of a run, as `samon_jax.paper.printed.of_run` says.

    Returns:
      Path of `report.md`.

    Raises:
      UserError: a run or checkpoint cannot be read, logits are not finite, or `out` cannot be
        written, which is tried before anything is measured.
    """
    runs = load_all(workdirs, which=which)
    out = out or workdirs[0] / "analysis"
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()

    # disable=None: a bar on a terminal; elsewhere one line per run and kind of measurement.
    total = sum(measure.work_units(run, sizes) for run in runs)
    with tqdm(total=total, unit="part", dynamic_ncols=True, leave=False, disable=None) as bar:
        records = [_measure(run, sizes, bar, printed(run.config)) for run in runs]
        _draw(runs, sizes, out, bar)
        _draw_attention(runs, records, out)
    write_json(out / JSON, {"settings": vars(sizes), "which": which, "runs": records})
    write_text(out / MARKDOWN, markdown.write(records, sizes, which))
    print(f"report: {out / MARKDOWN}")
    return out / MARKDOWN


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--out={str(out)!r} cannot be written: {error.strerror}") from None


def _measure(run: Trained, sizes: Sizes, bar: Any, printed: Printed) -> dict[str, Any]:
    try:
        record = _record(run, sizes, bar)
    except UserError as error:  # which of the runs it is
        raise UserError(f"{run.name}: {error}") from None
    return beside(record, printed)


def beside(record: dict[str, Any], printed: Printed) -> dict[str, Any]:
    """A record with what is printed for it as "paper", None where nothing is.

    Args:
      record: of a run.
      printed: for its settings.
    """

    def definition(row: dict[str, Any]) -> SharpnessDefinition:
        return SharpnessDefinition(*(row[field] for field in SharpnessDefinition._fields))

    found = record | {
        "matches_paper": bool(printed.source),
        "paper_source": printed.source,
        "paper_test_accuracy": printed.test_accuracy,
    }
    if "sharpness" in record:
        found["sharpness"] = [
            row | {"paper": printed.sharpness.get(definition(row))} for row in record["sharpness"]
        ]
    if "robustness" in record:
        found["robustness"] = [
            row | {"paper": printed.robust_accuracy.get((row["norm"], row["radius"]))}
            for row in record["robustness"]
        ]
        found["feature_rank"] = record["feature_rank"] | {"paper": printed.feature_rank}
    return found


def _tick(bar: Any, run: Trained, text: str) -> None:
    bar.set_description_str(f"{run.name}: {text}")
    bar.update()


def _begin(bar: Any, run: Trained, text: str) -> None:
    if bar.disable:
        print(f"{run.name}: {text}", flush=True)


def _record(run: Trained, sizes: Sizes, bar: Any) -> dict[str, Any]:
    tick, begin = (functools.partial(f, bar, run) for f in (_tick, _begin))
    metrics = run.metrics  # first: the data may not be those of the run
    measured: dict[str, Any] = {}
    if run.has_logits:
        begin("sharpness")
        measured["sharpness"] = measure.sharpness_of(run, sizes, tick)
        tick("share of ε on norm layers")
        measured["norm_share"] = measure.norm_shares_of(run, sizes)
        measured["surface_examples"] = measure.surface_examples(run, sizes)
        measured["wanted"] = {
            "sharpness": sizes.sharpness_of(run),
            "surface": sizes.surface_of(run),
        }
    if run.classifies_images:
        begin("adversarial robustness")
        measured["robustness"] = measure.robustness_of(run, sizes, tick)
        begin("feature rank and weights")
        measured["feature_rank"] = measure.feature_rank_of(run, sizes, tick)
    if run.translation is not None:
        begin("translations")
        measured["translations"] = measure.translations_of(run, sizes, tick)
    groups = weights.by_layer_type(run.params)
    of_norm = len(groups["norm_scale"]) + len(groups["norm_bias"])
    return {
        "name": run.name,
        "task": run.task.name,
        "data": run.config.data.name,
        "model": run.config.model,
        "method": describe(run.config),
        "epochs": run.config.epochs,
        "seed": run.config.seed,
        "step": run.step,
        **metrics,
        "result": run.task.show({k.removeprefix("test_"): v for k, v in metrics.items()}),
        **measured,
        "mean_magnitude": {
            name: float(np.abs(values).mean()) if len(values) else None
            for name, values in groups.items()
        },
        "norm_parameters_share": of_norm / sum(map(len, groups.values())),
    }


def _draw(runs: Sequence[Trained], sizes: Sizes, out: Path, bar: Any) -> None:
    groups = {run.name: weights.by_layer_type(run.params) for run in runs}
    layers = {
        layer_type: {name: own[layer_type] for name, own in groups.items()}
        for layer_type in weights.LAYER_TYPES
    }
    titles = {weights.TITLES[layer_type]: own for layer_type, own in layers.items()}
    with _writing(out):
        drawing.norm_distributions(
            layers["norm_scale"], layers["norm_bias"], out / "norm_parameters.png"
        )
        drawing.magnitudes(titles, out / "magnitudes.png")
    if chosen := [run for run in runs if run.has_logits]:
        _draw_losses(chosen, sizes, out, bar)


def _draw_attention(runs: Sequence[Trained], records: Sequence[dict[str, Any]], out: Path) -> None:
    """Of the first sentence that each run has translated."""
    found = {}
    for run, record in zip(runs, records, strict=True):
        if run.translation is not None:
            first = record["translations"][0]
            found[run.name] = sentences.attention(
                run.translation, run.params, first["source"], first["said"]
            )
    if found:
        with _writing(out):
            attention(found, out / "attention.png")


def _draw_losses(runs: Sequence[Trained], sizes: Sizes, out: Path, bar: Any) -> None:
    distances = {
        mask: np.linspace(0, _reach(runs, mask, least), sizes.surface_points)
        for mask, least in (("all", 0.2), ("only_norm", 1.0))
    }
    coordinates = np.linspace(-1, 1, sizes.surface_points)
    losses, surfaces = {}, {}
    for run in runs:
        _begin(bar, run, "loss around the weights")
        _tick(bar, run, "loss along ε")
        losses[run.name] = measure.loss_along_epsilon(run, sizes, distances)
        _tick(bar, run, "loss surface")
        surfaces[run.name] = measure.loss_surface(run, sizes, coordinates)
    along = {
        title: (distances[mask], {name: own[mask] for name, own in losses.items()})
        for mask, title in (("all", "along ε of SAM-all"), ("only_norm", "along ε of SAM-ON"))
    }
    with _writing(out):
        drawing.along(along, out / "loss_along_epsilon.png")
        drawing.surfaces(surfaces, coordinates, out / "loss_surface.png")


def _reach(runs: Sequence[Trained], mask: str, least: float) -> float:
    """Twice the largest ρ that a run used with plain SAM, whose ρ is a Euclidean length."""
    sections = [run.config.sam for run in runs]
    return max([least, *(2 * s.rho for s in sections if (s.variant, s.mask) == ("sam", mask))])
