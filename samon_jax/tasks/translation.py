"""Sentences to sentences: label-smoothed cross-entropy of sub-words, BLEU and chrF."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samon_jax import models
from samon_jax._fields import Field, boolean, integer, number, text
from samon_jax._passes.collectives import psum
from samon_jax.data.source import Examples
from samon_jax.data.text_batches import batches_to_translate
from samon_jax.data.text_source import TextExamples, cut, vocabulary_of
from samon_jax.data.text_vocabulary import BOS, EOS, PAD, Vocabulary
from samon_jax.errors import UserError
from samon_jax.models.transformer import Transformer
from samon_jax.tasks.beam_search import beam_search
from samon_jax.tasks.bleu import bleu, chrf
from samon_jax.tasks.norm_dropout import norm_dropout
from samon_jax.tasks.task import Aux, Variables

PyTree = Any

_log = logging.getLogger(__name__)

VOCABULARY = "vocabulary.model"  # in a work directory

# Section `translation` of a config. The defaults are those of Table 16, where it says something.
FIELDS: dict[str, Field] = {
    "source": Field("de", text, "language to translate from: the ending of its files"),
    "target": Field("en", text, "language to translate to"),
    "lowercase": Field(False, boolean, "lower-case both sides"),
    "vocabulary": Field(
        10_000, integer(5), "sub-words of both languages together, four special ones included"
    ),
    "max_length": Field(
        256, integer(2), "sub-words of a sentence, its end included; longer pairs are left out"
    ),
    "batch_tokens": Field(
        4096, integer(1), "sub-words of a side in a training batch over all devices, with padding"
    ),
    "eval_tokens": Field(4096, integer(1), "the same where a split is evaluated"),
    "shapes": Field(6, integer(1), "shapes of training batches; each is compiled once"),
    "dropout": Field(0.3, number(0, 1, below=True), "of embeddings and of what a layer adds"),
    "beam": Field(5, integer(1), "hypotheses that beam search follows; 1 = greedy search"),
    "length_penalty": Field(
        1.0, number(), "exponent of the length by which log-probabilities are divided"
    ),
}


class Batch(NamedTuple):
    """Sentence pairs of one device.

    Attributes:
      source: int32 [n, source].
      target: int32 [n, target], what is to be said.
      weight: float32 [n], by which the summed losses of a row count.
      seeds: uint32 [n], of dropout; () in evaluation. They belong to the sentences, so that every
        pass that sees a sentence drops the same of it.
    """

    source: jax.Array
    target: jax.Array
    weight: jax.Array
    seeds: jax.Array | tuple[()]


@dataclasses.dataclass(frozen=True)
class Translation:
    """The task of the paper's Table 16; see `tasks.task.Task` for the methods.

    Attributes:
      model: with dropout.
      vocabulary: of both languages.
      label_smoothing: probability mass spread evenly over all sub-words, in training.
      norm_dropout: rate of dropout after norm layers, in training.
      beam: hypotheses that beam search follows.
      length_penalty: of beam search.
      max_length: longest sentence to translate, in sub-words.
      tokens: largest number of source sub-words in a batch to translate.
      lowercase: whether it learns from lower-cased text; what it translates is lower-cased then.
    """

    model: Transformer
    vocabulary: Vocabulary
    label_smoothing: float = 0.1
    norm_dropout: float = 0.0
    beam: int = 5
    length_penalty: float = 1.0
    max_length: int = 256
    tokens: int = 4096
    lowercase: bool = False

    name = "translation"
    score = "val_bleu"
    metrics = ("val_bleu", "val_chrf", "val_loss")
    sums = {"correct": jnp.int32, "tokens": jnp.int32}  # noqa: RUF012

    def init(self, key: jax.Array) -> Variables:
        """Parameters; there is no other state."""
        words = jnp.full((1, 1), EOS, jnp.int32)
        return dict(self.model.init(key, words, words))

    def prepare(self, key: jax.Array | None, raw: Mapping[str, jax.Array], train: bool) -> Batch:
        """Adds a seed of dropout to every row."""
        source, target = raw["source"], raw["target"]
        weight = raw["weight"] if "weight" in raw else jnp.ones(len(source))
        seeds: Any = ()
        if train and key is not None:
            seeds = jax.random.bits(key, (len(source),), jnp.uint32)
        return Batch(source, target, weight, seeds)

    def losses(self, variables: Variables, batch: Batch, train: bool) -> tuple[jax.Array, Aux]:
        """For every row its weight times the sum of the cross-entropies of its sub-words, [n]."""
        smoothing = self.label_smoothing if train else 0.0
        each, correct, real = self._words(variables, batch, train, smoothing)
        sums = {"correct": correct.sum(dtype=jnp.int32), "tokens": real.sum(dtype=jnp.int32)}
        return each.sum(1) * batch.weight, Aux({}, sums)

    def _words(
        self, variables: Variables, batch: Batch, train: bool, smoothing: float
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Cross-entropy (0 for padding), rightness and reality of every sub-word [n, target]."""
        seeds = batch.seeds if train else None
        before = jnp.pad(batch.target[:, :-1], ((0, 0), (1, 0)), constant_values=BOS)
        keys = None
        if train and self.norm_dropout:
            keys = jax.random.key_data(jax.vmap(jax.random.key)(jnp.asarray(batch.seeds)))
        with norm_dropout(self.norm_dropout if train else 0.0, keys):
            logits: Any = self.model.apply(variables, batch.source, before, seeds)
        real = batch.target != PAD
        losses, correct = cross_entropy(logits, batch.target, smoothing)
        return jnp.where(real, losses, 0), correct & real, real

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """{"accuracy": share of the sub-words that were the most probable ones}."""
        return {"accuracy": int(sums["correct"]) / max(int(sums["tokens"]), 1)}

    def evaluate(
        self, variables: Variables, examples: Examples, devices: Any, prefix: str = "test_"
    ) -> dict[str, float]:
        """Cross-entropy of a sub-word (nats), and BLEU and chrF of beam search.

        Raises:
          UserError: the examples are in sub-words of another vocabulary.
        """
        if not isinstance(examples, TextExamples):
            raise UserError("task='translation' needs a data set of sentences")
        if examples.vocabulary != self.vocabulary.digest:
            raise UserError(
                f"vocabulary {examples.vocabulary} of the data is not {self.vocabulary.digest}, "
                "with which the model was trained; is data.dir the same training text?"
            )
        sums = _Sums(0.0, 0, 0)
        lines: dict[int, str] = {}
        program, search = _measuring(self, devices), _searching(self, devices)
        for raw in examples.batches:
            own = devices.shard(raw)
            found = devices.to_host(program(variables, own))
            sums = _Sums(*(a + b for a, b in zip(sums, map(float, found), strict=True)))
            lines |= self._lines(devices.to_host(search(variables, own)))
        said = [lines[i] for i in range(len(examples.pairs.target))]
        return {
            f"{prefix}bleu": bleu(said, examples.pairs.target).score,
            f"{prefix}chrf": chrf(said, examples.pairs.target).score,
            f"{prefix}loss": sums.loss / sums.tokens,
            f"{prefix}accuracy": sums.correct / sums.tokens,
        }

    def translate(self, variables: Variables, lines: Sequence[str], devices: Any) -> list[str]:
        """Translates lines; blank ones stay blank. What is too long is cut, and a warning says so.

        Args:
          variables: replicated on `devices`.
          lines: to translate.
          devices: `training.devices.Devices`.
        """
        known = [line.lower() if self.lowercase else line for line in lines]
        whole = [[*ids, EOS] for ids in self.vocabulary.encode(known)]
        sentences = [cut(ids, self.max_length) for ids in whole]
        if long := sum(len(ids) > self.max_length for ids in whole):
            _log.warning("%d lines are cut at translation.max_length=%d", long, self.max_length)
        wanted = [i for i, ids in enumerate(sentences) if len(ids) > 1]
        found: dict[int, str] = {}
        search = _searching(self, devices)
        for raw in batches_to_translate([sentences[i] for i in wanted], self.tokens, devices.count):
            found |= self._lines(devices.to_host(search(variables, devices.shard(raw))))
        said = {line: found[i] for i, line in enumerate(wanted)}
        return [said.get(i, "") for i in range(len(lines))]

    def _lines(self, found: "_Said") -> dict[int, str]:
        index, valid, words = found
        texts = self.vocabulary.decode(words[valid])
        return dict(zip(index[valid].tolist(), texts, strict=True))

    def show(self, metrics: Mapping[str, float]) -> str:
        """For example "BLEU 36.50, chrF 56.20"; while training the share of right sub-words."""
        if "bleu" in metrics:
            return f"BLEU {metrics['bleu']:.2f}, chrF {metrics['chrf']:.2f}"
        return f"right sub-words {100 * metrics['accuracy']:.2f} %"


class _Sums(NamedTuple):
    loss: Any
    correct: Any
    tokens: Any


class _Said(NamedTuple):
    index: Any  # [rows], lines of the split
    valid: Any  # [rows]
    words: Any  # [rows, length], the best hypotheses


def create(config: Any) -> Translation:
    """The task of a config; its vocabulary is made from the training text.

    Args:
      config: a complete config.

    Raises:
      UserError: the model is none that translates, or the vocabulary cannot be made.
    """
    return _create(config, vocabulary_of(config))


def files(task: Translation) -> dict[str, bytes]:
    """What a work directory keeps: without the vocabulary, the parameters mean nothing."""
    return {VOCABULARY: task.vocabulary.model}


def restore(config: Any, directory: Path) -> Translation:
    """The task with the vocabulary that a work directory keeps; no training text is needed.

    Raises:
      UserError: there is no vocabulary, or it is damaged.
    """
    path = directory / VOCABULARY
    try:
        vocabulary = Vocabulary(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except RuntimeError:
        raise UserError(f"{path} is no vocabulary of SentencePiece") from None
    return _create(config, vocabulary)


def _create(config: Any, vocabulary: Vocabulary) -> Translation:
    model = models.create(config.model, vocabulary.size, dtype=jnp.dtype(config.dtype))
    if not isinstance(model, Transformer):
        raise UserError(
            f"model={config.model!r} is not allowed with task='translation'; it must be one of "
            "transformer-tiny, transformer-iwslt, transformer-base"
        )
    fields = config.translation
    return Translation(
        model=model.clone(dropout=fields.dropout),
        vocabulary=vocabulary,
        label_smoothing=config.label_smoothing,
        norm_dropout=config.norm_dropout,
        beam=fields.beam,
        length_penalty=fields.length_penalty,
        max_length=fields.max_length,
        tokens=fields.eval_tokens,
        lowercase=fields.lowercase,
    )


def cross_entropy(
    logits: jax.Array, labels: jax.Array, smoothing: float
) -> tuple[jax.Array, jax.Array]:
    """Label-smoothed cross-entropies, and whether no other class is more probable.

    Args:
      logits: float32 [..., classes].
      labels: int [...].
      smoothing: s; the target is 1 - s + s / classes at the label and s / classes elsewhere.

    Returns:
      Losses float32 [...] in nats, and bool [...].
    """
    # A comparison with all classes fuses; a gather would have a scatter for its gradient.
    chosen = jnp.arange(logits.shape[-1]) == labels[..., None]
    of_label = jnp.where(chosen, logits, 0).sum(-1)
    losses = jax.nn.logsumexp(logits, -1) - (1 - smoothing) * of_label
    if smoothing:
        losses = losses - smoothing * logits.mean(-1)
    return losses, of_label >= jax.lax.stop_gradient(logits).max(-1)


def longest_translation(source: Any) -> Any:
    """Sub-words that a translation of `source` sub-words may have."""
    return 10 + source * 3 // 2


@functools.lru_cache(maxsize=16)
def _measuring(task: Translation, devices: Any) -> Any:
    """The program of a batch's cross-entropy: `(variables, raw) -> _Sums` of all devices."""

    def step(variables: Variables, raw: dict[str, jax.Array]) -> _Sums:
        batch = task.prepare(None, raw, train=False)
        each, correct, real = task._words(variables, batch, False, 0.0)
        valid = raw["valid"][:, None]
        sums = _Sums((each * valid).sum(), (correct & valid).sum(), (real & valid).sum())
        return psum(sums, devices.axis_name)

    return devices.compile(step)


@functools.lru_cache(maxsize=16)
def _searching(task: Translation, devices: Any) -> Any:
    """The program that translates a batch: `(variables, raw) -> _Said` of all devices."""

    def step(variables: Variables, raw: dict[str, jax.Array]) -> _Said:
        words = search(task, variables, raw["source"]).words[:, 0]
        said = _Said(raw["index"], raw["valid"], words)
        gathered = jax.tree.map(lambda x: jax.lax.all_gather(x, devices.axis_name), said)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), gathered)

    return devices.compile(step)


def search(task: Translation, variables: Variables, source: jax.Array) -> Any:
    """`beam_search.Found` of source sentences, int [n, source]; jit-able."""
    n, length = len(source), longest_translation(source.shape[1])
    model = task.model.bind(variables)
    memory = model.encode(source)

    def step(words: jax.Array, position: jax.Array, cache: PyTree) -> tuple[jax.Array, PyTree]:
        return task.model.apply(variables, words, position, cache, memory, method="advance")

    return beam_search(
        step,
        model.start(n * task.beam, length),
        n,
        beam=task.beam,
        length=length,
        limits=longest_translation((source != PAD).sum(1)),  # whatever the neighbours' lengths
        penalty=task.length_penalty,
        begin=BOS,
        end=EOS,
    )
