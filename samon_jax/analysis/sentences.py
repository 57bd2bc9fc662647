"""A Transformer that was trained to translate, in the words of the measures, and looked at."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samon_jax.analysis.losses import IGNORED
from samon_jax.data.text_batches import pad
from samon_jax.data.text_files import Pairs
from samon_jax.data.text_source import encode, reader
from samon_jax.data.text_vocabulary import BOS, EOS, PAD
from samon_jax.models.transformer import Transformer
from samon_jax.tasks.translation import Translation

PyTree = Any

SHORT = 0.95  # share of the sentences that is drawn from: padding to the longest would cost double


class Logits(NamedTuple):
    """`(params, sentences [n, 2, length]) -> logits [n, length, vocabulary]`, without dropout."""

    model: Transformer

    def __call__(self, params: PyTree, sentences: jax.Array) -> Any:
        """See above."""
        return self.model.apply({"params": params}, sentences[:, 0], sentences[:, 1])


def draw(
    config: Any, task: Translation, split: str, limit: int, seed: int
) -> tuple[jax.Array, np.ndarray]:
    """At most `limit` sentence pairs of a split, drawn at random without the longest ones.

    Args:
      config: of a run.
      task: of that run.
      split: of its data set.
      limit: how many.
      seed: of the draw.

    Returns:
      Source and what the decoder reads int32 [n, 2, length], and what it is to say int32
      [n, length], `IGNORED` after its end.
    """
    sides = encode(task.vocabulary, some(config, split, 2 * limit, seed))
    longer = sides.lengths.max(1)
    longest = int(np.quantile(longer, SHORT))
    kept = np.flatnonzero(longer <= longest)[:limit]
    source, target = (pad([side[i] for i in kept], len(kept), longest) for side in sides)
    before = np.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)
    return jnp.stack([source, before], 1), np.where(target == PAD, IGNORED, target)


def some(config: Any, split: str, count: int, seed: int) -> Pairs:
    """At most so many pairs of a split, the same for all runs on a data set."""
    pairs = reader(config)(split)
    order = np.random.default_rng(seed).permutation(len(pairs.source))[:count]
    return Pairs(*([side[i] for i in order] for side in pairs))


class Attention(NamedTuple):
    """What the last layer of the decoder looks at.

    Attributes:
      source: sub-words of the source, S of them.
      said: sub-words of the translation, T of them.
      weights: float32 [T, S], mean over the heads; rows sum to 1.
    """

    source: list[str]
    said: list[str]
    weights: np.ndarray


def attention(task: Translation, params: PyTree, source: str, said: str) -> Attention:
    """Attention to the source while a sentence is said.

    Args:
      task: with the model.
      params: of it.
      source: a sentence.
      said: its translation.
    """
    rows = [[*task.vocabulary.encode([line])[0], EOS] for line in (source, said)]
    before = [BOS, *rows[1][:-1]]
    _, kept = task.model.apply(
        {"params": params},
        jnp.array([rows[0]]),
        jnp.array([before]),
        mutable=["intermediates"],
    )
    last: Any = kept["intermediates"][f"decoder_layer_{task.model.layers - 1}"]
    (weights,) = last["cross_attention"]["weights"]
    read, written = (task.vocabulary.pieces(row) for row in rows)
    return Attention(read, written, np.asarray(weights)[0].mean(0))
