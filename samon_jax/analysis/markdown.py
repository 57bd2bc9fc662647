"""The report of an analysis as Markdown: a section for each kind of measurement."""

from typing import Any

import samon_jax as samon
from samon_jax.analysis import weights
from samon_jax.analysis.measure import Sizes
from samon_jax.analysis.sentences import SHORT

Records = list[dict[str, Any]]


def write(records: Records, sizes: Sizes, which: str) -> str:
    """The text of report.md.

    Args:
      records: one per run, see `report.record`.
      sizes: of the report.
      which: "newest" or "best" checkpoint.
    """
    measured, images, translated = (
        [record for record in records if measure in record]
        for measure in ("sharpness", "robustness", "translations")
    )
    sections = [f"# Analysis of {', '.join(_names(records))}", _overview(records, which)]
    sections += [_left_out(record) for record in records if "robustness" not in record]
    if translated:
        sections += ["## Translations", _translations(translated)]
    if measured:
        sections += ["## Sharpness", _sharpness(measured, sizes)]
    if images:
        sections += ["## Adversarial robustness", _robustness(images, sizes)]
        sections += ["## Feature rank", _feature_rank(images)]
    sections += ["## Weights", _weights(records)]
    if measured:
        sections += [_norm_shares(measured, sizes)]
        sections += ["## Loss around the weights", _landscape(measured)]
    return "\n\n".join(sections) + "\n"


def _overview(records: Records, which: str) -> str:
    rows = [
        [
            r["name"],
            r["data"],
            r["model"],
            r["method"],
            f"{r['epochs']}",
            f"{r['step']}",
            _with_paper(100 * r["test_accuracy"], r["paper_test_accuracy"], "{:.2f}", 100)
            if r["task"] == "classification"
            else r["result"],
        ]
        for r in records
    ]
    accuracies = all(r["task"] == "classification" for r in records)
    result = "test accuracy (%)" if accuracies else "on the test set"
    head = ["run", "data", "model", "perturbation", "epochs", "step", result]
    printed = [f"{r['name']}: {r['paper_source']}" for r in records if r["matches_paper"]]
    if printed:
        text = (
            "Numbers in brackets are the paper's (Müller et al. 2023) for a run with the same "
            f"settings; ρ is among theirs, epochs and seed are not compared: {'; '.join(printed)}."
        )
    else:
        text = "The paper's numbers are not shown: no run has the settings of one of theirs."
    return (
        f"{_table(head, rows)}\n\n"
        f"All numbers are of the {which} checkpoint of each run. {text}\n\n"
        "The model is in evaluation mode (BatchNorm uses its running statistics), as in "
        "Andriushchenko et al. 2023, and computes in float32; nothing is augmented or dropped."
    )


def _left_out(record: dict[str, Any]) -> str:
    of_logits = (
        ""
        if "sharpness" in record
        else "sharpness, the share of ε on norm layers and the loss around the weights, which need "
        "logits; "
    )
    return (
        f"Left out for {record['name']} (task {record['task']}): {of_logits}adversarial "
        "robustness, as only images can be changed a little; feature rank, which is that of "
        "residual blocks."
    )


def _translations(records: Records) -> str:
    """Every sentence with what each run makes of it; runs on the same text share a table."""
    said: dict[tuple[str, str], dict[str, str]] = {}
    for record in records:
        for row in record["translations"]:
            said.setdefault((row["source"], row["reference"]), {})[record["name"]] = row["said"]
    blocks = []
    for (source, reference), found in said.items():
        lines = {"source": source, "reference": reference} | found
        rows = [[who, text.replace("|", "\\|")] for who, text in lines.items()]
        blocks.append(_table(["", ""], rows))
    return (
        "Sentences of the test set, drawn at random, with the beam of each run.\n\n"
        + "\n\n".join(blocks)
        + "\n\n![Attention](attention.png)\n\n"
        "What the last layer of the decoder looks at while it says the first of them: a row for "
        "each sub-word that is said, mean over the heads, darker for more."
    )


def _sharpness(records: Records, sizes: Sizes) -> str:
    kinds = {
        "worst": f"worst case, {sizes.steps} steps",
        "one_step": "1 step",
        "average": f"average of {sizes.samples} draws",
    }
    rows = []
    for index, setting in enumerate(records[0]["sharpness"]):
        values = [r["sharpness"][index] for r in records]
        rows.append(
            [
                kinds[setting["kind"]],
                _NORM[setting["norm"]],
                f"{setting['radius']:g}",
                "yes" if setting["adaptive"] else "no",
                "yes" if setting["logit_norm"] else "no",
                *(_with_paper(v["value"], v["paper"], "{:.4f}") for v in values),
            ]
        )
    head = ["sharpness", "norm", "ρ", "adaptive", "logits normalized", *_names(records)]
    used = _per_run(
        [r["sharpness"][0]["examples"] for r in records],
        "training examples",
        max(r["wanted"]["sharpness"] for r in records),
    ) + (
        f" (sentences: without the longest {1 - SHORT:.0%}, and the loss is the mean over all "
        "sub-words)"
        if any("translations" in r for r in records)
        else ""
    )
    batch = _batches(records, sizes)
    return (
        "Change of the training loss (nats) when the weights move by ε with ‖T⁻¹ε‖ ≤ ρ, where "
        f"T = |w| if adaptive and 1 if not, for {batch}; {used}. The "
        "worst case is AutoPGD's, started at the weights; the average case draws ε from a normal "
        "(ℓ2) or uniform (ℓ∞) distribution. The settings are those of Tables 6, 18 and 19.\n\n"
        + _table(head, rows, numbers=len(records))
    )


def _robustness(records: Records, sizes: Sizes) -> str:
    by_setting: dict[tuple[str, float], dict[str, Any]] = {}
    for record in records:
        for row in record["robustness"]:
            by_setting.setdefault((row["norm"], row["radius"]), {})[record["name"]] = row
    rows = []
    for (norm, radius), found in sorted(by_setting.items()):
        size = f"{255 * radius:g}/255" if norm == "linf" else f"{radius:g}"
        cells = []
        for record in records:
            row = found.get(record["name"])
            cells.append(
                f"{_with_paper(100 * row['accuracy'], row['paper'], '{:.1f}', 100)} "
                f"({row['robust']}/{row['examples']})"
                if row
                else ""
            )
        rows.append([_NORM[norm], size, *cells])
    used = _per_run(
        [r["robustness"][0]["examples"] for r in records], "test examples", sizes.attack_examples
    )
    attacks = "APGD-CE and APGD-DLR"
    if any("dlr" not in r["robustness"][0]["broken"] for r in records):
        attacks += " (the latter not with two classes, where it is not defined)"
    return (
        f"Accuracy (%) in the worst case over {attacks}, {sizes.attack_steps} steps and "
        f"{sizes.restarts} random start{'s' * (sizes.restarts > 1)} each, and the number of "
        f"examples that both miss; {used}. ε is in units of images in [0, 1], which perturbed "
        "images do not leave. The radii are those of Tables 14 and 15; on digits larger ones "
        "besides.\n\n" + _table(["norm", "ε", *_names(records)], rows, numbers=len(records))
    )


def _feature_rank(records: Records) -> str:
    rows = [
        [
            r["name"],
            r["feature_rank"]["block"],
            f"{r['feature_rank']['features']:,}",
            f"{r['feature_rank']['examples']:,}",
            _with_paper(r["feature_rank"]["rank"], r["feature_rank"]["paper"], "{:,.0f}"),
        ]
        for r in records
    ]
    return (
        "Number of singular values that hold 99 % of the squared sum for the centred features of "
        "the last residual block on training examples. All positions of the feature map count.\n\n"
        + _table(["run", "block", "dimensions", "examples", "rank"], rows, numbers=3)
    )


def _weights(records: Records) -> str:
    magnitudes = [
        [
            title,
            *(
                "–" if r["mean_magnitude"][key] is None else f"{r['mean_magnitude'][key]:.4f}"
                for r in records
            ),
        ]
        for key, title in weights.TITLES.items()
    ]
    return (
        "Mean |w| by layer type:\n\n"
        + _table(["layer", *_names(records)], magnitudes, numbers=len(records))
        + "\n\n![Distributions of γ and β](norm_parameters.png)\n\n"
        "Distributions of γ and β over all norm layers (Figure 5 of the paper).\n\n"
        "![Distributions of the magnitudes of weights](magnitudes.png)\n\n"
        "Magnitudes by layer type on a logarithmic axis (Figure 9)."
    )


def _norm_shares(records: Records, sizes: Sizes) -> str:
    shares = [
        [variant, *(_percent(r["norm_share"][variant]) for r in records)]
        for variant in samon.VARIANTS
    ]
    shares.append(
        ["share of the parameters", *(_percent(r["norm_parameters_share"]) for r in records)]
    )
    how = _batches(records, sizes)
    if not all("translations" in record for record in records):
        how += ", whose statistics BatchNorm uses as in training"
    return (
        "Share (%) of ‖ε‖₂² that falls on norm parameters in a SAM-all step at these weights, by "
        f"variant, for {how}:\n\n"
        + _table(["variant", *_names(records)], shares, numbers=len(records))
    )


def _batches(records: Records, sizes: Sizes) -> str:
    """How many examples share an ε."""
    counts = {min(sizes.m, r["sharpness"][0]["examples"]) for r in records}
    return f"batches of {' or '.join(map(str, sorted(counts)))} examples"


def _landscape(records: Records) -> str:
    wanted = [r["wanted"]["surface"] for r in records]
    used = _per_run(
        [r["surface_examples"] for r in records],
        "training examples",
        max(wanted),
    )
    return (
        "![Loss along the perturbation](loss_along_epsilon.png)\n\n"
        f"Loss on {used} along the ε that SAM-all and SAM-ON take from the gradient there.\n\n"
        "![Loss surfaces](loss_surface.png)\n\n"
        "Loss on a plane of two random directions in which every filter has the length of the "
        "filter of the weights (Li et al. 2018); norm parameters and biases do not move."
    )


_NORM = {"linf": "ℓ∞", "l2": "ℓ2"}


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def _names(records: Records) -> list[str]:
    return [record["name"] for record in records]


def _per_run(counts: list[int], noun: str, wanted: int) -> str:
    """How many examples each run's number is made of, and whether that is all there are."""
    text = f"{counts[0]:,}" if len(set(counts)) == 1 else ", ".join(f"{c:,}" for c in counts)
    text += f" {noun}"
    return text if min(counts) == wanted else f"{text} (the data set does not hold {wanted:,})"


def _with_paper(value: float, paper: float | None, pattern: str, unit: float = 1) -> str:
    text = pattern.format(value)
    return text if paper is None else f"{text} [{pattern.format(unit * paper)}]"


def _table(head: list[str], rows: list[list[str]], numbers: int = 0) -> str:
    """A Markdown table; the last `numbers` columns are aligned to the right."""
    rule = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
