"""Sentence pairs: files, sub-words, batches, and what is wrong with them in one line each."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from samon_jax.data.reader import resolve_data_dir
from samon_jax.data.source import Share
from samon_jax.data.text_batches import make_plan, order_epoch
from samon_jax.data.text_files import Pairs, folder, read_pairs
from samon_jax.data.text_source import TextSource
from samon_jax.data.text_vocabulary import EOS, Vocabulary, make_vocabulary
from samon_jax.errors import UserError

ROOT = Path(__file__).parents[2]
GERMAN = ["Ein Hund läuft.", "Zwei Katzen schlafen auf dem Sofa.", "Ein Kind spielt.", "Regen"]
ENGLISH = ["A dog runs.", "Two cats sleep on the sofa.", "A child plays.", "Rain"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(where, split, german=GERMAN, english=ENGLISH):
    for language, lines in (("de", german), ("en", english)):
        (where / f"{split}.{language}").write_text("".join(f"{x}\n" for x in lines), "utf-8")


def read(where, split="train", name="text", **options):
    return read_pairs(name, where, split, "de", "en", **options)


def test_lines_are_read_as_they_are(tmp_path):
    odd = ["a\u2028b", "c\x0bd", "", "e f"]  # none of these ends a line
    write(tmp_path, "train", odd)
    (tmp_path / "train.en").write_bytes("\r\n".join([*ENGLISH, ""]).encode())
    assert read(tmp_path) == Pairs(odd, ENGLISH)
    assert read(tmp_path, lowercase=True).target == [x.lower() for x in ENGLISH]


def test_names_of_files_and_folders(tmp_path):
    inside = tmp_path / "multi30k"
    inside.mkdir()
    write(inside, "test_2016_flickr")
    write(tmp_path, "valid")
    assert folder("multi30k", tmp_path) == inside
    assert folder("multi30k", inside) == inside
    assert folder("text", tmp_path) == tmp_path
    assert read(inside, "test", "multi30k").source == GERMAN
    assert read(tmp_path, "val", "iwslt14_de_en").target == ENGLISH


@pytest.mark.parametrize("name", ["multi30k", "iwslt14_de_en", "text"])
def test_a_missing_file_and_where_it_is_to_be_had(name, tmp_path):
    with pytest.raises(UserError) as error:
        read(tmp_path, "train", name)
    text = str(error.value)
    assert f"data.name={name!r}: {tmp_path / 'train.de'} does not exist" in text
    assert "github.com" in text or "data.dir must be a folder" in text
    assert "\n" not in text


def test_bad_files(tmp_path):
    write(tmp_path, "train", english=ENGLISH[:3])
    with pytest.raises(UserError, match=r"train\.de has 4 lines and train\.en has 3; line i"):
        read(tmp_path)
    (tmp_path / "train.en").write_bytes(b"")
    with pytest.raises(UserError, match=r"train\.en is empty; it must hold a sentence a line"):
        read(tmp_path)
    (tmp_path / "train.en").write_bytes(b"fine\nbad \xff\n")
    with pytest.raises(UserError, match=r"train\.en is not UTF-8: line 2 holds an invalid byte"):
        read(tmp_path)
    with pytest.raises(UserError, match="split='dev' is not allowed"):
        read(tmp_path, "dev")


def test_sub_words_come_back_as_the_lines(own_cache):
    vocabulary = make_vocabulary(Pairs(GERMAN, ENGLISH), 60)
    assert vocabulary.size == 60
    rows = vocabulary.encode(GERMAN + ENGLISH)
    assert min(i for row in rows for i in row) > EOS
    assert vocabulary.decode(rows) == GERMAN + ENGLISH
    assert vocabulary.decode([[*rows[0], EOS, *rows[1], 0]]) == GERMAN[:1]
    assert vocabulary.decode([np.array([2, *rows[0], EOS, 0, 0])]) == GERMAN[:1]


def test_a_vocabulary_is_cached_by_content(own_cache):
    first = make_vocabulary(Pairs(GERMAN, ENGLISH), 60)
    (file,) = own_cache.iterdir()
    assert file.read_bytes() == first.model
    for damaged in (b"damaged", b""):
        file.write_bytes(damaged)
        assert make_vocabulary(Pairs(GERMAN, ENGLISH), 60) == first
        assert file.read_bytes() == first.model
    other = make_vocabulary(Pairs(GERMAN, [*ENGLISH[:3], "Rains"]), 60)
    assert other.digest != first.digest
    assert make_vocabulary(Pairs(GERMAN, ENGLISH), 59).size == 59
    assert len(list(own_cache.iterdir())) == 3


def test_a_vocabulary_is_the_same_in_another_process_and_folder(tmp_path):
    program = f"""
from samon_jax.data.text_files import Pairs
from samon_jax.data.text_vocabulary import make_vocabulary
print(make_vocabulary(Pairs({GERMAN!r}, {ENGLISH!r}), 60).digest)
"""
    env = {"SAMON_CACHE_DIR": str(tmp_path / "elsewhere"), "PYTHONPATH": str(ROOT)}
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONHASHSEED": "7"}
    result = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.stdout.strip() == make_vocabulary(Pairs(GERMAN, ENGLISH), 60).digest
    # Nothing of the machine is in it.
    assert str(tmp_path).encode() not in make_vocabulary(Pairs(GERMAN, ENGLISH), 60).model


@pytest.mark.parametrize("size", [10, 5000])
def test_vocabularies_that_the_text_does_not_allow(size):
    with pytest.raises(UserError, match=f"translation.vocabulary={size} is not allowed") as error:
        make_vocabulary(Pairs(GERMAN, ENGLISH), size)
    assert "\n" not in str(error.value)


def natural_lengths(n=3000, seed=0):
    """Lengths spread like those of captions: log-normal, both sides correlated."""
    random = np.random.default_rng(seed)
    base = random.normal(np.log(16), 0.3, n)
    sides = [np.exp(base + random.normal(0, 0.12, n)) for _ in range(2)]
    return np.maximum(np.stack(sides, 1).round().astype(int), 2)


def test_few_shapes_and_little_padding():
    lengths = natural_lengths(20_000)
    plan = make_plan(lengths, 2048, 6, 8)
    assert len(plan.shapes) == 6
    assert all(s.rows % 8 == 0 and s.rows * max(s.source, s.target) <= 2048 for s in plan.shapes)
    assert share_of_real(plan, lengths) >= 0.8


def share_of_real(plan, lengths):
    steps = zip(plan.shapes, plan.steps, strict=True)
    return lengths.sum() / sum(n * s.rows * (s.source + s.target) for s, n in steps)


def test_multi30k_is_packed_well():
    where = folder("multi30k", resolve_data_dir(None))
    if not (where / "train.de").is_file():
        pytest.skip(f"Multi30k is not in {where}")
    pairs = read_pairs("multi30k", where, "train", "de", "en")
    vocabulary = make_vocabulary(pairs, 4000)
    source = TextSource({"train": pairs}.__getitem__, vocabulary, tokens=2048, eval_tokens=4096)
    assert source.num_examples == 29_000
    assert (vocabulary.size, len(source.plan.shapes)) == (4000, 6)
    sides = zip(*map(vocabulary.encode, pairs), strict=True)
    lengths = np.array([[len(x) + 1 for x in pair] for pair in sides])
    assert share_of_real(source.plan, lengths) >= 0.8


def test_cuts_are_the_best_ones():
    lengths = np.repeat([[3, 3], [5, 4], [8, 9], [20, 18]], [5, 1, 4, 2], axis=0)
    counts = np.bincount(lengths.max(1))

    def padding(ends):
        return sum(counts[n] * min(e for e in ends if e >= n) for n in np.flatnonzero(counts))

    for shapes, options in ((1, [(20,)]), (2, [(3, 20), (5, 20), (9, 20)]), (3, None)):
        ends = [max(s.source, s.target) for s in make_plan(lengths, 100, shapes).shapes]
        options = options or [(3, 5, 20), (3, 9, 20), (5, 9, 20)]
        assert padding(ends) == min(map(padding, options))


@pytest.mark.parametrize("seed", range(3))
def test_every_sentence_is_in_one_batch_that_it_fits_into(seed):
    lengths = natural_lengths(seed=seed)
    plan = make_plan(lengths, 1024, 5, 8)
    for random in (None, np.random.default_rng(seed)):
        batches = order_epoch(plan, random)
        assert len(batches) == sum(plan.steps)
        assert [i for i, _ in batches].count(2) == plan.steps[2]
        assert sorted(np.concatenate([index for _, index in batches])) == list(range(3000))
        for i, index in batches:
            rows, source, target = plan.shapes[i]
            assert 0 < len(index) <= rows
            assert (lengths[index] <= (source, target)).all()


def test_a_budget_that_is_too_small():
    with pytest.raises(UserError, match="batch_tokens=64 is not allowed; it must be at least 160"):
        make_plan(np.array([[20, 3]]), 64, 2, 8)


class Texts:
    """Splits of made-up lines."""

    def __init__(self, count=90):
        random = np.random.default_rng(1)
        words = [*"abcdefgh", "Haus", "Baum", "See"]

        def line():
            return " ".join(random.choice(words, random.integers(1, 12)))

        self.pairs = {
            split: Pairs([line() for _ in range(n)], [line() for _ in range(n)])
            for split, n in (("train", count), ("test", 13))
        }
        self.vocabulary = make_vocabulary(self.pairs["train"], 30)

    def source(self, **options):
        options = {"tokens": 160, "eval_tokens": 200, "shapes": 3, "multiple": 4} | options
        return TextSource(self.pairs.__getitem__, self.vocabulary, **options)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return Texts()


def test_weights_make_the_mean_over_rows_one_over_sub_words(texts):
    source = texts.source()
    seen = 0
    for batch in source.epoch(0, 0):
        real = (batch["target"] > 0).sum(1)
        assert np.mean(batch["weight"] * real) == pytest.approx(1)
        assert ((batch["weight"] > 0) == (real > 0)).all()
        seen += (real > 0).sum()
    assert seen == source.num_examples == 90


def test_the_order_is_a_function_of_seed_and_epoch(texts):
    def epoch(source, *args):
        return [batch["source"] for batch in source.epoch(*args)]

    source, again = texts.source(), texts.source()
    first = epoch(source, 3, 5)
    assert len(first) == source.steps_per_epoch
    for other, start in ((epoch(again, 3, 5), 0), (epoch(again, 3, 5, 4), 4)):
        assert all(map(np.array_equal, first[start:], other))
    for args in ((3, 6), (4, 5)):
        different = epoch(source, *args)
        assert len(different) == len(first)
        assert sorted(x.shape for x in different) == sorted(x.shape for x in first)
        assert not all(map(np.array_equal, first, different))


def test_processes_share_each_batch(texts):
    whole = list(texts.source().epoch(1, 2))
    halves = [list(texts.source(share=Share(p, 2)).epoch(1, 2)) for p in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        for name, x in batch.items():
            np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), x)


def test_shapes_say_what_is_fed(texts):
    source = texts.source(share=Share(0, 2))
    fed = [(x["source"].shape, x["target"].shape, x["weight"].shape) for x in source.epoch(0, 0)]
    said = []
    for kind, steps in source.shapes():
        said += [tuple(kind[name].shape for name in ("source", "target", "weight"))] * steps
    assert sorted(said) == sorted(fed)


def test_evaluation_covers_a_split_once_and_in_any_order(texts):
    examples = texts.source().evaluation("test")
    assert examples.vocabulary == texts.vocabulary.digest
    found = {}
    for batch in examples.batches:
        for field in ("source", "target"):
            lines = texts.vocabulary.decode(batch[field][batch["valid"]])
            found |= {
                (field, i): x for i, x in zip(batch["index"][batch["valid"]], lines, strict=True)
            }
    for field, lines in zip(("source", "target"), examples.pairs, strict=True):
        assert [found[field, i] for i in range(13)] == lines
    assert len(found) == 26


def test_long_sentences_are_counted(texts):
    said = []
    source = texts.source(max_length=8, say=said.append)
    lengths = [
        max(len(texts.vocabulary.encode([x])[0]) + 1 for x in pair)
        for pair in zip(*texts.pairs["train"], strict=True)
    ]
    long = sum(n > 8 for n in lengths)
    assert 0 < long < 90
    assert source.num_examples == 90 - long
    assert said == [
        f"{long} of 90 training pairs are left out: a side has more than "
        "translation.max_length=8 sub-words"
    ]
    examples = source.evaluation("test")
    batches = list(examples.batches)
    assert sum(batch["valid"].sum() for batch in batches) == 13
    assert all((batch["source"][batch["valid"]] == EOS).sum(1).all() for batch in batches)
    assert "pairs of test are cut at translation.max_length=8 sub-words" in said[1]
    source.evaluation("test")
    assert len(said) == 2  # once, not after every epoch
    with pytest.raises(UserError, match="max_length=1 is not allowed; no training sentence"):
        texts.source(max_length=1).steps_per_epoch  # noqa: B018


def test_a_vocabulary_is_compared_by_content(texts):
    assert Vocabulary(texts.vocabulary.model) == texts.vocabulary
    assert hash(Vocabulary(texts.vocabulary.model)) == hash(texts.vocabulary)
