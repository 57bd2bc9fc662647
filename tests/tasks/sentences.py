"""A made-up language whose translation is the sentence backwards, in files of their own."""

from pathlib import Path

import numpy as np

from samon_jax import models
from samon_jax.models.transformer import Transformer
from samon_jax.training.config import default_config

WORDS = "abcdefghij"
VOCABULARY = 25  # four special ones, the letters and the blank, and every word as a whole


def toy(num_classes, dtype):
    return Transformer(num_classes, layers=1, width=16, hidden=16, heads=2, dtype=dtype)


if "transformer-toy" not in models.names():
    models.register("transformer-toy", toy)


def write(folder: Path, **counts: int) -> Path:
    """Writes `counts` pairs of each split, no sentence twice in a split."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(counts.items()):
        random = np.random.default_rng(seed)
        lines: dict[str, str] = {}
        while len(lines) < count:
            words = random.choice(list(WORDS), random.integers(2, 8))
            lines[" ".join(words)] = " ".join(words[::-1])
        (folder / f"{split}.de").write_text("".join(f"{x}\n" for x in lines))
        (folder / f"{split}.en").write_text("".join(f"{x}\n" for x in lines.values()))
    return folder


def config(folder: Path, **fields):
    """A run of a few steps; `translation__beam=1` sets config.translation.beam."""
    config = default_config()
    config.task = "translation"
    config.model = "transformer-toy"
    config.data.name, config.data.dir = "text", str(folder)
    config.num_devices, config.batch_size, config.epochs = 1, 8, 1
    config.steps_per_dispatch = 1
    config.optimizer.name, config.optimizer.lr, config.optimizer.b2 = "adamw", 3e-3, 0.98
    config.sam.variant, config.sam.rho = "sam", 0.05
    config.log.tensorboard = False
    config.translation.vocabulary = VOCABULARY
    config.translation.shapes = 1
    config.translation.batch_tokens = config.translation.eval_tokens = 128
    config.translation.dropout = 0.1
    config.translation.beam = 2
    with config.unlocked():
        for field, value in fields.items():
            *sections, name = field.split("__")
            section = config
            for part in sections:
                section = section[part]
            section[name] = value
    return config
