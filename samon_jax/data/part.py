"""A stratified part of a training set, and examples that are held back from it."""

import numpy as np


def stratified_part(
    labels: np.ndarray, part: int, held_back: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a part in which every class has its share, and other examples to choose settings on.

    The part does not depend on `held_back`: of every class the examples are shuffled, the part
    takes the first ones and what is held back the last.

    Args:
      labels: int [n].
      part: number of examples in the part; 0 = all that are not held back.
      held_back: number of examples held back.
      seed: of the draw.

    Returns:
      Rows of the part and rows held back, each ascending; they share none. A class's number is its
      share rounded down, and those with the largest remainders get one more.

    Example:
      >>> rows, held = stratified_part(np.array([0, 1] * 5), 4, 2, seed=0)
      >>> len(rows), len(held), len({*rows, *held})
      (4, 2, 6)
    """
    # RandomState, because NumPy guarantees that its stream never changes (NEP 19).
    random = np.random.RandomState(seed)
    classes, counts = np.unique(labels, return_counts=True)
    held_of = quotas_of(counts, held_back)
    part_of = quotas_of(counts, part) if part else counts - held_of
    rows, held = [], []
    for label, first, last in zip(classes, part_of, held_of, strict=True):
        members = random.permutation(np.flatnonzero(labels == label))
        rows.append(members[:first])
        held.append(members[len(members) - last :])
    return np.sort(np.concatenate(rows)), np.sort(np.concatenate(held))


def quotas_of(counts: np.ndarray, total: int) -> np.ndarray:
    """How many of each class make `total` in the proportions of `counts`."""
    shares = counts * total / counts.sum()
    quotas = np.floor(shares).astype(int)
    more = np.argsort(quotas - shares, kind="stable")[: total - quotas.sum()]
    quotas[more] += 1
    return quotas
