"""Source of sentence pairs: batches by length, streamed as small arrays of sub-words."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from samon_jax.data.reader import resolve_data_dir
from samon_jax.data.source import Share
from samon_jax.data.text_batches import Plan, Shape, make_plan, order_epoch, pad
from samon_jax.data.text_files import FILES, Pairs, folder, read_pairs
from samon_jax.data.text_vocabulary import EOS, Vocabulary, make_vocabulary
from samon_jax.errors import UserError

_log = logging.getLogger(__name__)

PyTree = Any

NAMES = tuple(FILES)

# Shapes of the batches of a split that is evaluated: programs that translate take long to compile.
_EVAL_SHAPES = 3


class TextExamples(NamedTuple):
    """`data.source.Examples` of a split with what its translations are compared with.

    Attributes:
      resident: ().
      fetch: the identity.
      batches: dicts with "source" and "target" int32 [rows, length], "valid" bool [rows] and
        "index" int32 [rows], the line of each row.
      pairs: the lines themselves.
      vocabulary: digest of the vocabulary.
    """

    resident: PyTree
    fetch: Callable[[PyTree, PyTree], PyTree]
    batches: Iterator[dict[str, Any]]
    pairs: Pairs
    vocabulary: str


class Sentences(NamedTuple):
    """A split in sub-words, every sentence ending in `EOS`."""

    source: list[list[int]]
    target: list[list[int]]

    @property
    def lengths(self) -> np.ndarray:
        """Int [n, 2]."""
        return np.array([[len(s), len(t)] for s, t in zip(*self, strict=True)])


def same(resident: PyTree, raw: PyTree) -> PyTree:
    """What is fetched where nothing is resident."""
    return raw


class TextSource:
    """Sentence pairs as a `data.source.Source`.

    A batch is {"source", "target"} int32 [rows, length], filled up with 0, and "weight" float32
    [rows]: rows of the batch / its target sub-words (over all processes), 0 for rows without a
    sentence. So the mean over rows of weight · (sum of the losses of a row's sub-words) is the mean
    over all sub-words of the batch, whatever part of the batch a device has.

    Args:
      read: split to its lines.
      vocabulary: of both languages.
      tokens: largest number of sub-words of a side of a training batch, padding included.
      eval_tokens: the same where a split is evaluated.
      shapes: largest number of shapes of training batches.
      multiple: divides the rows of every batch; a multiple of the number of devices.
      parts: divides those of every training batch besides.
      max_length: longest sentence in sub-words, its end included. Training leaves out pairs with a
        longer one, evaluation cuts them.
      share: of each batch that this process feeds.
      say: receives one line if a sentence was left out or cut.
    """

    fetch: Callable[[Any, Any], Any] = staticmethod(same)
    resident: PyTree = ()

    def __init__(
        self,
        read: Callable[[str], Pairs],
        vocabulary: Vocabulary,
        *,
        tokens: int,
        eval_tokens: int,
        shapes: int = 6,
        multiple: int = 8,
        parts: int = 1,
        max_length: int = 256,
        share: Share = Share(),  # noqa: B008
        say: Callable[[str], None] = _log.warning,
    ) -> None:
        self._read, self.vocabulary = read, vocabulary
        self._tokens, self._eval_tokens, self._shapes = tokens, eval_tokens, shapes
        self._multiple, self._max_length, self._share, self._say = multiple, max_length, share, say
        self._parts = parts
        self._training: tuple[Sentences, Plan] | None = None
        self._cut_splits: set[str] = set()  # said already

    def _train(self) -> tuple[Sentences, Plan]:
        if self._training is None:
            kept = self._short_ones(encode(self.vocabulary, self._read("train")))
            multiple = math.lcm(self._multiple, self._parts)
            plan = make_plan(kept.lengths, self._tokens, self._shapes, multiple)
            self._training = kept, plan
        return self._training

    def _short_ones(self, all_: Sentences) -> Sentences:
        limit = self._max_length
        kept = [(s, t) for s, t in zip(*all_, strict=True) if max(len(s), len(t)) <= limit]
        left_out = len(all_.source) - len(kept)
        if not kept:
            raise UserError(
                f"translation.max_length={limit} is not allowed; no training sentence is so short"
            )
        if left_out:
            self._say(
                f"{left_out} of {len(all_.source)} training pairs are left out: a side has more "
                f"than translation.max_length={limit} sub-words"
            )
        return Sentences(*map(list, zip(*kept, strict=True)))

    @property
    def num_examples(self) -> int:
        """Training pairs."""
        return len(self._train()[0].source)

    @property
    def plan(self) -> Plan:
        """Of the training batches."""
        return self._train()[1]

    @property
    def steps_per_epoch(self) -> int:
        """Batches; no sentence is left out of an epoch."""
        return sum(self.plan.steps)

    def epoch(self, seed: int, epoch: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """See `data.source.Source`."""
        sentences, plan = self._train()
        for i, index in order_epoch(plan, np.random.default_rng((seed, epoch)))[start:]:
            batch = _batch(sentences, plan.shapes[i], index)
            count = max(int((batch["target"] > 0).sum()), 1)
            weight = np.zeros(plan.shapes[i].rows, np.float32)
            weight[: len(index)] = plan.shapes[i].rows / count
            yield self._own(batch | {"weight": weight})

    def shapes(self) -> list[tuple[dict[str, Any], int]]:
        """See `data.source.Source`."""
        kinds = []
        for (all_rows, source, target), steps in zip(*self.plan[::2], strict=True):
            rows = all_rows // self._share.processes
            kind = {
                "source": jax.ShapeDtypeStruct((rows, source), np.int32),
                "target": jax.ShapeDtypeStruct((rows, target), np.int32),
                "weight": jax.ShapeDtypeStruct((rows,), np.float32),
            }
            if steps:
                kinds.append((kind, steps))
        return kinds

    def evaluation(self, split: str = "test") -> Any:
        """`TextExamples` of a split, short sentences first."""
        pairs = self._read(split)
        sentences = self._cut(encode(self.vocabulary, pairs), split)
        return TextExamples((), same, self._eval_batches(sentences), pairs, self.vocabulary.digest)

    def _cut(self, sentences: Sentences, split: str) -> Sentences:
        limit = self._max_length
        long = int((sentences.lengths.max(1) > limit).sum())
        if long and split not in self._cut_splits:
            self._cut_splits.add(split)
            self._say(
                f"{long} of {len(sentences.source)} pairs of {split} are cut at "
                f"translation.max_length={limit} sub-words"
            )
        return Sentences(*([cut(x, limit) for x in side] for side in sentences))

    def _eval_batches(self, sentences: Sentences) -> Iterator[dict[str, np.ndarray]]:
        longest = int(sentences.lengths.max())
        tokens = max(self._eval_tokens, longest * self._multiple)
        plan = make_plan(sentences.lengths, tokens, _EVAL_SHAPES, self._multiple)
        for i, index in order_epoch(plan, None):
            rows = plan.shapes[i].rows
            lines = np.zeros(rows, np.int32)
            lines[: len(index)] = index
            filled = {"index": lines, "valid": np.arange(rows) < len(index)}
            yield self._own(_batch(sentences, plan.shapes[i], index) | filled)

    def _own(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: self._share.of(x) for name, x in batch.items()}


def encode(vocabulary: Vocabulary, pairs: Pairs) -> Sentences:
    """Both sides in sub-words."""
    return Sentences(*([[*row, EOS] for row in vocabulary.encode(side)] for side in pairs))


def cut(sentence: list[int], limit: int) -> list[int]:
    """The first sub-words of a sentence, at most `limit`, the last of which ends it."""
    return sentence if len(sentence) <= limit else [*sentence[: limit - 1], EOS]


def _batch(sentences: Sentences, shape: Shape, index: Sequence[int] | np.ndarray) -> dict[str, Any]:
    sides = zip(sentences, (shape.source, shape.target), strict=True)
    source, target = (pad([side[i] for i in index], shape.rows, width) for side, width in sides)
    return {"source": source, "target": target}


def reader(config: Any) -> Callable[[str], Pairs]:
    """Split to the lines of a config's data set.

    Args:
      config: a complete config.
    """
    fields, name = config.translation, config.data.name
    where: Path = folder(name, resolve_data_dir(config.data.dir))

    def read(split: str) -> Pairs:
        pairs = read_pairs(
            name, where, split, fields.source, fields.target, lowercase=fields.lowercase
        )
        if split == "val":
            return pairs
        count = config.data[f"{split}_examples"]
        if count > len(pairs.source):
            raise UserError(
                f"data.{split}_examples={count} is not allowed; data.name={name!r} has "
                f"{len(pairs.source)}"
            )
        return Pairs(pairs.source[:count], pairs.target[:count]) if count else pairs

    return read


def vocabulary_of(config: Any) -> Vocabulary:
    """The vocabulary of a config's training text."""
    return make_vocabulary(reader(config)("train"), config.translation.vocabulary)


def source_of(config: Any, devices: int, share: Share) -> TextSource:
    """The source of a config; see `data.DataSet`.

    Raises:
      UserError: files are missing or damaged, or a field does not fit the text.
    """
    fields = config.translation
    for field in ("part", "held_back"):
        if config.data[field]:
            raise UserError(
                f"data.{field}={config.data[field]} is not allowed with task='translation', whose "
                "sentences have no classes; it must be 0"
            )
    groups = max(devices // config.devices.fsdp, 1)
    sharing = config.sam.m if config.sam.variant != "none" else 0  # sentences of an ε
    return TextSource(
        reader(config),
        vocabulary_of(config),
        tokens=fields.batch_tokens,
        eval_tokens=fields.eval_tokens,
        shapes=fields.shapes,
        # Of training already; an evaluation may have other devices.
        multiple=math.lcm(config.batch_size, devices),
        parts=groups * max(sharing, 1),
        max_length=fields.max_length,
        share=share,
    )
