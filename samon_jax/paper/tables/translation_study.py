"""Our own study of translation: AdamW, SAM-ON and SAM-all on Multi30k, in BLEU.

It is none of the papers' tables, and small enough for two cores of a CPU: 29,000 sentence pairs,
German to English, and a Transformer of 1.5 million parameters. ρ is chosen on the validation set;
the run that is chosen is also the first of the three seeds, so that none is trained twice.
"""

import functools
from pathlib import Path
from typing import Any

from samon_jax.paper import curves, recipes
from samon_jax.paper.grid import NO_RHO, Cell, Metric, Rho, Table, label
from samon_jax.paper.tables import translation as table16

NAME = "translation-study"
EPOCHS = 10
BEAM = 5

FIELDS: dict[str, Any] = table16.FIELDS | {
    "model": "transformer-tiny",
    "data.name": "multi30k",
    "epochs": EPOCHS,
    "optimizer.lr": 3e-3,
    "optimizer.clip_norm": 1.0,
    "schedule.name": "cosine",
    "schedule.warmup_steps": 0,
    "schedule.warmup_epochs": 1.0,
    "translation.vocabulary": 4000,
    "translation.lowercase": False,
    "translation.batch_tokens": 2048,
    "translation.dropout": 0.2,
    "translation.shapes": 6,
    "translation.beam": 1,  # of the validation after every epoch
}

# Ten epochs fit the training set less than well, so radii are smaller than those of images: at
# ρ = 0.5 SAM-ON's training loss stays above AdamW's from the first epoch on, and so does SAM-all's
# at ρ = 0.2, which was given up after two epochs.
_ON, _ALL = (0.05, 0.15, 0.5), (0.05, 0.1)

# Curves of what is measured after every epoch.
_draw = functools.partial(curves.draw, of=table16.VAL_BLEU)

_NOTES = (
    f"{EPOCHS} epochs, a cosine after one epoch of warm-up; every epoch the validation set is "
    "translated greedily, and the checkpoint with the highest BLEU on it is the one that is tested",
    f"tested on test_2016_flickr, cased, sacrebleu's 13a, beam {BEAM}",
    "the radius ρ is the best of its grid by the BLEU of seed 0 on the validation set, after the "
    "last epoch",
)

# Multi30k: sentence pairs, and sub-words of a side (4,000 in all).
_TRAIN, _VAL, _SUB_WORDS = 29_000, 1_014, 16


def tables() -> tuple[Table, ...]:
    """The study."""
    bleu = Metric("test_bleu", "BLEU", measure=_test_bleu)
    column, cells = label("Multi30k"), []
    for names, method, grid in (
        (("AdamW", "adamw"), recipes.plain(), ()),
        (("SAM-ON", "only_norm"), recipes.perturbed("sam", "only_norm"), _ON),
        (("SAM-all", "all"), recipes.perturbed("sam", "all"), _ALL),
    ):
        rho = Rho("search", grid, "our grid") if grid else NO_RHO
        cells.append(table16.tested(Cell(label(names), column, FIELDS | method, rho), bleu))
    title = "Translation, Multi30k German to English, a Transformer of 1.5 million parameters"
    return (
        Table(
            NAME,
            title,
            tuple(cells),
            _NOTES,
            stand_ins=table16.STAND_INS,
            pictures=_draw,
            forward_operations=_forward_operations,
        ),
    )


def _test_bleu(directory: Path) -> float:
    return table16.bleu_of_test(directory, BEAM)


def _forward_operations(cell: Cell) -> tuple[float, float]:
    return table16.forward_operations(cell, _TRAIN, _VAL, _SUB_WORDS)
