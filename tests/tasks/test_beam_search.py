"""Beam search against an exhaustive one, against loops in NumPy, and with and without a cache."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samon_jax.models.transformer import Transformer
from samon_jax.tasks.beam_search import beam_search

BEGIN, END, WORDS = 2, 3, (1, 3, 4, 5)  # 1, 4 and 5 are said, 3 ends


def random_model(seed, vocabulary=6, history=3):
    """A table of logits by the latest `history` words, and the position."""
    table = np.random.default_rng(seed).normal(size=(8, *[vocabulary] * history, vocabulary)) * 2
    return table.astype(np.float32)


def log_p(table, words):
    """Log-probabilities of the next word in NumPy; `words` begins with BEGIN."""
    latest = [0, 0, *words][-3:]
    logits = table[(len(words) - 1, *latest)].astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


def steps(device_table):
    """The same for `beam_search`: the cache holds the latest words."""

    def step(words, position, cache):
        cache = jnp.concatenate([cache[:, 1:], words[:, None]], 1)
        return device_table[position, cache[:, 0], cache[:, 1], cache[:, 2]], cache

    return step


def exhaustive(table, length, penalty):
    """Every sentence of at most `length` words that ends, the best first."""
    found = []
    for n in range(1, length + 1):
        for words in itertools.product([w for w in WORDS if w != END], repeat=n - 1):
            said = [BEGIN, *words, END]
            score = sum(log_p(table, said[:i])[said[i]] for i in range(1, n + 1))
            found.append((score / n**penalty, said[1:]))
    return sorted(found, reverse=True)


def in_numpy(table, length, penalty, beam):
    """Beam search as loops over lists."""
    live, ended = [(0.0, [BEGIN])], []
    for n in range(1, length + 1):
        options = []
        for score, said in live:
            p = log_p(table, said)
            allowed = WORDS if n < length else (END,)
            options += [(score + p[w], [*said, w]) for w in allowed]
        options = sorted(options, reverse=True)[: 2 * beam]
        ended += [(s / n**penalty, said) for s, said in options[:beam] if said[-1] == END]
        live = [option for option in options if option[1][-1] != END][:beam]
        if len(ended) >= beam or not live:
            break
    return [(score, said[1:]) for score, said in sorted(ended, reverse=True)[:beam]]


def search(table, n, **options):
    return jax.tree.map(np.asarray, _search(table, n, **options))


@functools.partial(jax.jit, static_argnames=("n", "beam", "length", "penalty"))
def _search(table, n, beam, **options):
    cache = jnp.zeros((n * beam, 3), jnp.int32)
    return beam_search(steps(table), cache, n, beam=beam, **options)


def compare(found, expected):
    for words, score, (true_score, true_words) in zip(*found, expected, strict=False):
        assert words[: len(true_words)].tolist() == true_words
        assert not words[len(true_words) :].any()
        assert score == pytest.approx(true_score, abs=1e-4)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_beam_that_holds_everything_is_exhaustive(penalty):
    for seed in range(3):
        table = random_model(seed)
        expected = exhaustive(table, 4, penalty)
        assert len(expected) == 1 + 3 + 9 + 27
        found = search(table, 1, beam=40, length=4, penalty=penalty)
        compare((found.words[0], found.scores[0]), expected)
        assert np.isfinite(found.scores).sum() == 40


@pytest.mark.parametrize("beam", [1, 2, 5])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_narrow_beams_do_as_loops_in_numpy(beam, penalty):
    for seed in range(10, 16):
        table = random_model(seed)
        expected = in_numpy(table, 7, penalty, beam)
        found = search(table, 1, beam=beam, length=7, penalty=penalty)
        compare((found.words[0], found.scores[0]), expected)
        assert np.isfinite(found.scores[0]).sum() == min(beam, len(expected))


def test_every_sentence_has_its_limit():
    for seed in range(10, 13):
        table = random_model(seed)
        found = search(table, 3, beam=2, length=7, limits=np.array([3, 7, 5]))
        for i, limit in enumerate((3, 7, 5)):
            expected = in_numpy(table, limit, 1.0, 2)
            compare((found.words[i], found.scores[i]), expected)


def test_a_wide_beam_finds_more_than_a_greedy_one():
    better = 0
    for seed in range(20, 30):
        table = random_model(seed)
        narrow, wide = (search(table, 1, beam=b, length=6, penalty=0.0) for b in (1, 5))
        better += wide.scores[0, 0] > narrow.scores[0, 0] + 1e-4
    assert better >= 3


@pytest.fixture(scope="module")
def toy():
    model = Transformer(12, layers=2, width=16, hidden=24, heads=2, dropout=0.0)
    words = jnp.ones((1, 1), int)
    variables = jax.jit(model.init)(jax.random.key(3), words, words)
    return model, jax.tree.map(lambda x: 1.5 * x, variables)


def cached(model, variables, source, beam, length):
    memory = model.apply(variables, source, method="encode")

    def step(words, position, cache):
        return model.apply(variables, words, position, cache, memory, method="advance")

    start = model.bind(variables).start(len(source) * beam, length)
    return beam_search(step, start, len(source), beam=beam, length=length)


def uncached(model, variables, source, beam, length):
    """The cache holds the words alone, and every step decodes all of them anew."""
    memory = model.apply(variables, source, method="encode")
    memory = jax.tree.map(lambda x: jnp.repeat(x, beam, 0), memory)

    def step(words, position, said):
        said = said.at[:, position].set(words)
        logits = model.apply(variables, said, memory, method="decode")
        return logits[:, position], said

    start = jnp.zeros((len(source) * beam, length), jnp.int32)
    return beam_search(step, start, len(source), beam=beam, length=length)


@pytest.mark.parametrize("beam", [1, 5])
def test_with_and_without_a_cache(toy, beam):
    model, variables = toy
    random = np.random.default_rng(0)
    source = np.pad(random.integers(4, 12, (6, 5)), ((0, 0), (0, 2)))
    source[::2, 4] = 0
    results = [
        jax.jit(functools.partial(run, model, beam=beam, length=9))(variables, source)
        for run in (cached, uncached)
    ]
    np.testing.assert_array_equal(results[0].words, results[1].words)
    np.testing.assert_allclose(results[0].scores, results[1].scores, atol=1e-5)
    # Sentences do not see each other, nor the padding.
    alone = cached(model, variables, source[:1, :4], beam, 9)
    np.testing.assert_array_equal(alone.words[0], results[0].words[0])
