"""Feature rank: how many directions hold 99 % of the variance of a block's output (Table 6)."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.linalg
from flax import linen as nn
from jax.tree_util import Partial

from samon_jax.analysis.autopgd import as_partial
from samon_jax.errors import UserError

PyTree = Any

SHARE = 0.99
BLOCK = 256  # rows of the matrix of moments that are renewed at once


class FeatureRank(NamedTuple):
    """Result of `feature_rank`.

    Attributes:
      rank: number of singular values.
      features: dimension d of the features.
      examples: number n of examples; the rank is at most min(n - 1, d).
    """

    rank: int
    features: int
    examples: int


class Spectrum:
    """Singular values of a centred matrix [n, d] whose rows arrive in batches.

    With d <= n it holds the mean and the [d, d] matrix of second central moments, merged batch by
    batch in float64 (Chan et al. 1979), so that a mean far from zero costs no digits. With d > n it
    holds the rows as they came and multiplies them at the end to the [n, n] matrix, the smaller one
    of the two with the same eigenvalues.

    Args:
      examples: n, the number of rows that will arrive.

    Example:
      >>> spectrum = Spectrum(examples=4)
      >>> spectrum.add(np.array([[1.0, 5.0], [3.0, 5.0]]))
      >>> spectrum.add(np.array([[-1.0, 5.0], [1.0, 5.0]]))
      >>> spectrum.squared_singular_values().tolist()
      [8.0, 0.0]
    """

    def __init__(self, examples: int) -> None:
        self._examples = examples
        self._count = 0
        self._mean: np.ndarray | None = None
        self._moments: np.ndarray | None = None
        self._rows: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """Takes a batch [k, d]; later batches must have the same d."""
        if rows.shape[1] > self._examples:
            self._rows.append(rows)
            self._count += len(rows)
            return
        rows = rows.astype(np.float64)
        mean, d = rows.mean(0), rows.shape[1]
        if self._mean is None or self._moments is None:
            self._mean, self._moments = np.zeros(d), np.zeros((d, d))
        total = self._count + len(rows)
        difference = mean - self._mean
        weight = self._count * len(rows) / total
        # One more row for the distance of the means; then no second [d, d] array is ever needed.
        rows = np.vstack([rows - mean, np.sqrt(weight) * difference])
        for begin in range(0, d, BLOCK):
            columns = slice(begin, begin + BLOCK)
            self._moments[columns] += rows[:, columns].T @ rows
        self._mean += difference * ((len(rows) - 1) / total)
        self._count = total

    def squared_singular_values(self) -> np.ndarray:
        """Squares of the singular values, min(n, d) of them, the largest first; call it once."""
        if self._count != self._examples:
            raise ValueError(f"{self._count} rows arrived instead of {self._examples}")
        matrix = self._moments if self._moments is not None else self._gram()
        # In place; the transpose of a symmetric matrix has the layout that LAPACK wants.
        values = scipy.linalg.eigh(
            matrix.T, eigvals_only=True, overwrite_a=True, check_finite=False
        )
        return np.clip(values[::-1], 0, None)

    def _gram(self) -> np.ndarray:
        mean = sum(rows.sum(0, dtype=np.float64) for rows in self._rows) / self._count
        gram = np.empty((self._count, self._count))
        begin = 0
        for index, rows in enumerate(self._rows):
            left = rows - mean
            other = 0
            for earlier in self._rows[: index + 1]:
                block = left @ (earlier - mean).T
                gram[begin : begin + len(rows), other : other + len(earlier)] = block
                gram[other : other + len(earlier), begin : begin + len(rows)] = block.T
                other += len(earlier)
            begin += len(rows)
        return gram


def rank_of(squared_singular_values: np.ndarray, share: float = SHARE) -> int:
    """Smallest number of values, the largest first, that hold `share` of their sum; 0 of zeros.

    Args:
      squared_singular_values: decreasing, >= 0.
      share: in (0, 1).

    Raises:
      UserError: `share` is not allowed.

    Example:
      >>> rank_of(np.array([60.0, 39.5, 0.5]))
      2
    """
    if not 0 < share < 1:
        raise UserError(f"share={share} must lie between 0 and 1")
    held = np.cumsum(squared_singular_values)
    if not len(held) or held[-1] == 0:
        return 0
    return int(np.searchsorted(held, share * held[-1]) + 1)


def feature_rank(
    features: Callable[[PyTree, Any], jax.Array],
    params: PyTree,
    inputs: Any,
    *,
    share: float = SHARE,
    batch_size: int = 256,
    wrap: Callable[[Iterable[int]], Iterable[int]] = lambda batches: batches,
) -> FeatureRank:
    """Number of principal components that hold `share` of the variance of the features.

    Features of more than one axis are flattened, so every position of a feature map counts.

    Args:
      features: `features(params, inputs) -> array [n, ...]`; see `block_output`.
      params: parameters.
      inputs: array [n, ...].
      share: of the variance, in (0, 1).
      batch_size: examples per forward pass.
      wrap: wraps the loop over batches, for example in a progress bar.

    Returns:
      A `FeatureRank`.

    Raises:
      UserError: there is no input, features are not finite, or `share` is not allowed.

    References:
      Andriushchenko et al. 2023, Sharpness-aware minimization leads to low-rank features,
      section 3; Müller et al. 2023, Table 6.
    """
    n = len(inputs)
    if n == 0:
        raise UserError("inputs is empty; the feature rank needs examples")
    rank_of(np.ones(1), share)
    spectrum, dimension = Spectrum(n), 0
    for begin in wrap(range(0, n, batch_size)):
        rows = np.asarray(_rows(as_partial(features), params, inputs[begin : begin + batch_size]))
        if not np.isfinite(rows).all():
            raise UserError("features are not finite; the feature rank needs finite ones")
        dimension = rows.shape[1]
        spectrum.add(rows)
    return FeatureRank(rank_of(spectrum.squared_singular_values(), share), dimension, n)


def block_output(model: nn.Module, variables: PyTree, inputs: Any, block: str) -> Partial:
    """The output of one block of a Linen model as a function for `feature_rank`.

    Args:
      model: called as `model(inputs, train=False)`.
      variables: collections beside "params", such as {"batch_stats": ...}.
      inputs: an example of the inputs; only shape and dtype matter.
      block: name of a submodule, as in "stage3_block0", or its path, as in "stage3_block0/norm1".

    Returns:
      `features(params, inputs)`, a pytree that compiled programs take as an argument.

    Raises:
      UserError: there is no such block; the message lists those of the first level.
    """
    blocks = block_names(model, inputs)
    if block not in blocks:
        shown = ", ".join(name for name in blocks if "/" not in name)
        raise UserError(f"block={block!r} does not exist; choose one of {shown}, or a path below")
    return Partial(_Output(model, block), variables)


def last_block(names: list[str]) -> str:
    """The last residual block, "stage3_block3" in a WRN-28; else the last module but the head."""
    first_level = [name for name in names if "/" not in name]
    stages = [name for name in first_level if name.startswith("stage")]
    others = [name for name in first_level if name != "head"]
    return (stages or others or first_level)[-1]


def block_names(model: nn.Module, inputs: Any) -> list[str]:
    """Paths of the submodules that `model(inputs, train=False)` calls, in the order of calls."""
    names: list[str] = []

    def note(module: nn.Module, method: str) -> bool:
        if method == "__call__" and module.path:
            names.append("/".join(module.path))
        return False

    def run(inputs: Any) -> Any:
        variables = model.init(jax.random.key(0), inputs, train=False)
        names.clear()
        return model.apply(
            variables, inputs, train=False, capture_intermediates=note, mutable=["intermediates"]
        )

    jax.eval_shape(run, inputs)
    return list(dict.fromkeys(names))


class _Output(NamedTuple):
    """Equal for equal model and block, so that compiled programs are found again."""

    model: nn.Module
    block: str

    def __call__(self, variables: PyTree, params: PyTree, inputs: Any) -> Any:
        def is_block(module: nn.Module, method: str) -> bool:
            return method == "__call__" and "/".join(module.path) == self.block

        _, captured = self.model.apply(
            {"params": params, **variables},
            inputs,
            train=False,
            capture_intermediates=is_block,
            mutable=["intermediates"],
        )
        return jax.tree.leaves(captured["intermediates"])[0]


@jax.jit
def _rows(features: Partial, params: PyTree, inputs: Any) -> jax.Array:
    output = features(params, inputs)
    return output.reshape(output.shape[0], -1)
