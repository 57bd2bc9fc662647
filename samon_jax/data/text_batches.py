"""Which sentences share a batch: a token budget, few shapes, little padding.

A program is compiled for every shape of a batch. So sentences are put into a few classes by length,
all batches of a class have one shape, and the classes are those for which padding is least.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from samon_jax.errors import UserError


class Shape(NamedTuple):
    """The shape of a batch.

    Attributes:
      rows: sentences.
      source: sub-words of the longest source sentence, its end included.
      target: of the longest target sentence.
    """

    rows: int
    source: int
    target: int


class Plan(NamedTuple):
    """Sentences in classes by length.

    Attributes:
      shapes: of the batches, from the shortest sentences to the longest.
      classes: for every sentence the first shape that it fits into, [n].
      steps: number of batches of each shape in an epoch.
    """

    shapes: tuple[Shape, ...]
    classes: np.ndarray
    steps: tuple[int, ...]


def make_plan(lengths: np.ndarray, tokens: int, shapes: int, multiple: int = 1) -> Plan:
    """Chooses the shapes for which padding is least.

    Sentences are ordered by the longer of their two sides, and dynamic programming finds where to
    cut.

    Args:
      lengths: int [n, 2], sub-words of either side, their ends included; n > 0.
      tokens: largest number of sub-words of one side of a batch, padding included.
      shapes: largest number of shapes.
      multiple: divides the rows of every batch.

    Returns:
      The plan. Sentences left over by the batches of one shape go to those of the next, so that
      only the last batch of the last shape is filled up; an epoch has the same number of batches
      of a shape whatever its order is.

    Raises:
      UserError: `tokens` does not hold `multiple` of the longest sentences.

    Example:
      >>> lengths = np.array([[3, 4]] * 8 + [[9, 7]] * 4)
      >>> make_plan(lengths, tokens=18, shapes=2).shapes
      (Shape(rows=4, source=3, target=4), Shape(rows=2, source=9, target=7))
    """
    longer = lengths.max(1)
    ends = _cuts(np.bincount(longer), shapes)
    if tokens < multiple * ends[-1]:
        raise UserError(
            f"translation.batch_tokens={tokens} is not allowed; it must be at least "
            f"{multiple * ends[-1]}, {multiple} sentences of {ends[-1]} sub-words (batch_size, the "
            "devices and sam.m on each of them divide the sentences of every batch)"
        )
    classes = np.searchsorted(ends, longer)
    made, steps, left, widest = [], [], 0, np.zeros(2, int)
    for i, end in enumerate(ends):
        rows = tokens // end // multiple * multiple
        inside = classes == i
        # What is left over by shorter shapes fits too.
        widest = np.maximum(widest, lengths[inside].max(0))
        count = left + int(inside.sum())
        full = count // rows if i < len(ends) - 1 else -(-count // rows)
        left = count - full * rows
        made.append(Shape(rows, int(widest[0]), int(widest[1])))
        steps.append(full)
    return Plan(tuple(made), classes, tuple(steps))


def _cuts(counts: np.ndarray, shapes: int) -> list[int]:
    """Ends of at most `shapes` classes of lengths, each in use, whose padding is least."""
    used = np.flatnonzero(counts)
    shapes = min(shapes, len(used))
    before = np.concatenate([[0], np.cumsum(counts[used])])  # sentences before each used length
    cost = np.full((shapes + 1, len(used) + 1), np.inf)
    cost[0, 0] = 0
    last = np.zeros((shapes + 1, len(used) + 1), int)
    for k in range(1, shapes + 1):
        for j in range(1, len(used) + 1):
            options = cost[k - 1, :j] + used[j - 1] * (before[j] - before[:j])
            last[k, j] = options.argmin()
            cost[k, j] = options[last[k, j]]
    ends, j = [], len(used)
    for k in range(shapes, 0, -1):
        ends.append(int(used[j - 1]))
        j = last[k, j]
    return ends[::-1]


def order_epoch(plan: Plan, random: np.random.Generator | None) -> list[tuple[int, np.ndarray]]:
    """The batches of an epoch, every sentence in exactly one.

    Args:
      plan: of the split.
      random: shuffles the sentences of a class, and the batches; None leaves the order as it is.

    Returns:
      For every step the index of its shape and its sentences, at most as many as the shape's rows.
    """
    batches: list[tuple[int, np.ndarray]] = []
    left = np.zeros(0, int)
    for i, (shape, steps) in enumerate(zip(plan.shapes, plan.steps, strict=True)):
        here = np.concatenate([left, np.flatnonzero(plan.classes == i)])
        if random is not None:
            random.shuffle(here)
        batches += [(i, here[k * shape.rows : (k + 1) * shape.rows]) for k in range(steps)]
        left = here[steps * shape.rows :]
    if random is not None:
        random.shuffle(batches)
    return batches


def pad(sentences: list[list[int]], rows: int, length: int) -> np.ndarray:
    """Sentences as int32 [rows, length], filled up with zeros."""
    table = np.zeros((rows, length), np.int32)
    for row, sentence in zip(table, sentences, strict=False):
        row[: len(sentence)] = sentence
    return table


def batches_to_translate(
    sentences: list[list[int]], tokens: int, multiple: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of source sentences.

    Args:
      sentences: sub-words of each.
      tokens: largest number of sub-words of a batch, padding included.
      multiple: divides the rows of every batch.

    Returns:
      Dicts with "source" int32 [rows, length], "index" int32 [rows], the sentence of each row, and
      "valid" bool [rows].
    """
    if not sentences:
        return
    lengths = np.array([[len(s), len(s)] for s in sentences])
    tokens = max(tokens, multiple * int(lengths.max()))
    # A batch of its own size for few sentences: nobody waits for rows without any.
    tokens = min(tokens, int(lengths.max()) * -(-len(sentences) // multiple) * multiple)
    plan = make_plan(lengths, tokens, 1 + (len(sentences) > 100), multiple)
    for i, index in order_epoch(plan, None):
        rows, width, _ = plan.shapes[i]
        yield {
            "source": pad([sentences[j] for j in index], rows, width),
            "index": np.pad(index, (0, rows - len(index))).astype(np.int32),
            "valid": np.arange(rows) < len(index),
        }
