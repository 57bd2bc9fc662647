"""Beam search on the device: static shapes, and a cache that moves with the hypotheses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

PyTree = Any

# `step(words, position, cache) -> (logits, cache)`: the latest sub-word int [n · beam] of every
# hypothesis and its position to logits [n · beam, vocabulary] of the next one. The leaves of the
# cache are [n · beam, ...]; the hypotheses of a sentence are neighbours.
Step = Callable[[jax.Array, jax.Array, PyTree], tuple[jax.Array, PyTree]]


class Found(NamedTuple):
    """Hypotheses that ended, the best first.

    Attributes:
      words: int32 [n, beam, length], ending in `end` and filled up with 0.
      scores: float32 [n, beam], log-probability divided by length^penalty; -inf where fewer than
        `beam` hypotheses ended.
    """

    words: jax.Array
    scores: jax.Array


class _Search(NamedTuple):
    position: jax.Array  # int32 scalar, sub-words so far
    words: jax.Array  # [n, beam, length] of the hypotheses that go on
    scores: jax.Array  # [n, beam], their log-probabilities
    cache: PyTree
    found: Found
    ended: jax.Array  # int32 [n], hypotheses that ended so far


def beam_search(
    step: Step,
    cache: PyTree,
    n: int,
    *,
    beam: int,
    length: int,
    limits: jax.Array | None = None,
    penalty: float = 1.0,
    begin: int = 2,
    end: int = 3,
) -> Found:
    """Searches for the most probable sub-words, as fairseq does.

    Of all continuations of the `beam` hypotheses the 2 · beam most probable ones are looked at;
    those among the first `beam` that end are done, and the first `beam` that do not end go on. A
    sentence is done when `beam` hypotheses have ended, or at its limit, where all must end.

    Args:
      step: the model.
      cache: before the first step.
      n: number of sentences.
      beam: number of hypotheses that go on; 1 is greedy search.
      length: largest number of sub-words, `end` included.
      limits: the same of every sentence, int [n], at most `length`; None = `length`.
      penalty: exponent of the length, `end` included, by which log-probabilities are divided; 0
        compares probabilities, and larger values prefer longer sentences.
      begin: the sub-word before the first.
      end: the sub-word that ends a sentence.

    Returns:
      The hypotheses.

    Example:
      >>> def step(words, position, cache):  # a model that says 4, 4, end
      ...     word = jnp.where(position < 2, 4, 3)
      ...     return jnp.where(jnp.arange(5) == word, 9.0, 0.0)[None], cache
      >>> beam_search(step, (), n=1, beam=1, length=5).words.tolist()
      [[[4, 4, 3, 0, 0]]]

    References:
      Wu et al. 2016, https://arxiv.org/abs/1609.08144, section 7; Ott et al. 2019, fairseq.
    """
    lasts = jnp.full((n,), length) - 1 if limits is None else limits - 1
    low = jnp.full((n, beam), -jnp.inf)
    empty = jnp.zeros((n, beam, length), jnp.int32)
    first = low.at[:, 0].set(0.0)  # all hypotheses are the same before the first step
    start = _Search(
        jnp.int32(0), empty, first, cache, Found(empty, low), jnp.zeros((n,), jnp.int32)
    )

    def going_on(search: _Search) -> jax.Array:
        return (search.position < length) & jnp.any(search.ended < beam)

    def advance(search: _Search) -> _Search:
        at = search.position
        before = jnp.where(at == 0, begin, search.words[:, :, at - 1])
        logits, cache = step(before.reshape(-1), at, search.cache)
        top = _best(logits, search.scores, at >= lasts, begin, end)
        ends = top.word == end
        among_first = jnp.arange(2 * beam) < beam
        open_ = search.ended < beam
        # The hypotheses that ended, together with those that did before.
        words = jnp.take_along_axis(search.words, top.origin[..., None], 1)
        words = words.at[:, :, at].set(top.word)
        done = ends & among_first & open_[:, None] & (top.score > -jnp.inf)
        normalized = jnp.where(done, top.score / (at + 1.0) ** penalty, -jnp.inf)
        scores = jnp.concatenate([search.found.scores, normalized], 1)
        best, rows = jax.lax.top_k(scores, beam)
        both = jnp.concatenate([search.found.words, words], 1)
        found = Found(jnp.take_along_axis(both, rows[..., None], 1), best)
        # Those that go on; their order is kept.
        live, rows = jax.lax.top_k(jnp.where(ends, -jnp.inf, top.score), beam)
        origin = jnp.take_along_axis(top.origin, rows, 1)
        moved = (origin + beam * jnp.arange(n)[:, None]).reshape(-1)
        return _Search(
            at + 1,
            jnp.take_along_axis(words, rows[..., None], 1),
            live,
            jax.tree.map(lambda x: x[moved], cache),
            found,
            search.ended + done.sum(1, dtype=jnp.int32),
        )

    return jax.lax.while_loop(going_on, advance, start).found


class _Top(NamedTuple):
    score: jax.Array  # [n, 2 · beam], log-probability of the whole hypothesis
    origin: jax.Array  # the hypothesis that it continues
    word: jax.Array


def _best(logits: jax.Array, scores: jax.Array, last: jax.Array, begin: int, end: int) -> _Top:
    """The 2 · beam most probable continuations; at its `last` step, [n], only `end` is allowed."""
    n, beam = scores.shape
    vocabulary = logits.shape[-1]
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    # Padding (0) and the beginning of a sentence are never said.
    word = jnp.arange(vocabulary)
    allowed = (word == end) | (~last[:, None, None] & (word != 0) & (word != begin))
    log_p = jnp.where(allowed, log_p.reshape(n, beam, vocabulary), -jnp.inf)
    totals = (scores[..., None] + log_p).reshape(n, beam * vocabulary)
    best, index = jax.lax.top_k(totals, 2 * beam)
    return _Top(best, index // vocabulary, index % vocabulary)
