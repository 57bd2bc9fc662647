"""Accuracy under white-box attacks on the inputs: APGD-CE and APGD-DLR (appendix B.4)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from samon_jax._fields import integer
from samon_jax.analysis import autopgd
from samon_jax.analysis.balls import check_norm, unit
from samon_jax.analysis.losses import cross_entropy, dlr
from samon_jax.errors import UserError
from samon_jax.perturbation import check_radius

PyTree = Any
Apply = Callable[[PyTree, Any], jax.Array]

# The radii of Tables 14 and 15, for inputs in [0, 1].
RADII = {"l2": (0.1, 0.2, 0.25, 0.5, 1.0), "linf": (0.25 / 255, 0.5 / 255, 1 / 255, 2 / 255)}
STEPS = 100

_ATTACKS: tuple[tuple[str, Callable[..., jax.Array]], ...] = (("ce", cross_entropy), ("dlr", dlr))
_CLEAN = "clean"


class Robustness(NamedTuple):
    """Result of all attacks with one norm and radius.

    Attributes:
      norm: "l2" or "linf".
      radius: in units of inputs in [0, 1].
      steps: of each attack.
      accuracy: share of the examples that neither attack can make the model get wrong, in [0, 1].
      examples: number of examples.
      robust: number that both attacks miss.
      wrong: number classified wrongly without an attack.
      broken: attack to the number of examples that it is the first to break; "dlr" tries only what
        "ce" left, and "smaller" counts those broken within a smaller radius or in fewer steps.
    """

    norm: str
    radius: float
    steps: int
    accuracy: float
    examples: int
    robust: int
    wrong: int
    broken: dict[str, int]


def robust_accuracy(
    apply: Apply,
    params: PyTree,
    images: Any,
    labels: Any,
    *,
    norm: str,
    radii: Sequence[float] | float | None = None,
    steps: Sequence[int] | int = STEPS,
    restarts: int = 1,
    normalize: Callable[[jax.Array], Any] | None = None,
    batch_size: int = 250,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Robustness]:
    """Worst case over APGD on the cross-entropy and on the DLR loss.

    Each attack starts at a random point of the ball, and perturbed images stay in [0, 1]. An image
    counts as broken if the model gets any point wrong that an attack visits. What a smaller radius
    or fewer steps of the same call have broken stays broken, for the point found lies in the larger
    ball too; so accuracy never rises with radius, steps or restarts. Only what is still robust is
    attacked again.

    The DLR loss needs three classes; with two, only APGD-CE runs, and `broken` has no "dlr". (The
    targeted variant, which needs four, is not part of the papers' evaluation.)

    Args:
      apply: `apply(params, inputs) -> logits` [n, classes] in evaluation mode.
      params: parameters.
      images: float [n, ...] in [0, 1].
      labels: int [n].
      norm: "l2" or "linf".
      radii: one or several radii >= 0; by default those of Tables 14 and 15.
      steps: one or several numbers of steps >= 1.
      restarts: random starts of each attack, >= 1.
      normalize: maps images in [0, 1] to the inputs of `apply`; by default nothing is changed.
      batch_size: images attacked at once.
      seed: of the random starts, which depend on the example but not on its batch.
      progress: receives a line for each attack.

    Returns:
      One result for each radius and number of steps, in increasing order.

    Raises:
      UserError: an argument is not allowed, images lie outside [0, 1], or logits are not finite.

    References:
      Müller et al. 2023, Tables 4, 14 and 15; Croce and Hein 2020.
    """
    check_norm(norm)
    radii = sorted(np.atleast_1d(RADII[norm] if radii is None else radii).tolist())
    lengths = sorted(np.atleast_1d(steps).tolist())
    images, labels = np.asarray(images, np.float32), np.asarray(labels, np.int32)
    _check(radii, lengths, restarts, batch_size, images, labels)
    # Batches of equal size: 360 examples make two of 180, not 250 and 110 with 140 repetitions.
    batch_size = -(-len(labels) // -(-len(labels) // batch_size))
    forward = Partial(
        _forward, autopgd.as_partial(apply), autopgd.as_partial(normalize or _unchanged), params
    )

    victims = _Victims(forward, images, labels, norm, batch_size, seed, restarts, progress)
    right, attacks = victims.clean()
    names = [name for name, _ in attacks]
    results = []
    # For every number of steps: what broke each example first, "" where nothing has.
    at_smaller_radius = [np.where(right, "", _CLEAN).astype("<U7") for _ in lengths]
    for radius in radii:
        before = at_smaller_radius[0]
        for index, length in enumerate(lengths):
            outcome = at_smaller_radius[index].copy()
            inherited = (outcome == "") & (before != "")
            outcome[inherited] = "smaller"
            outcome[np.isin(outcome, names)] = "smaller"
            if radius > 0:
                victims.attack(outcome, attacks, radius, length)
            at_smaller_radius[index] = before = outcome
            robust = int((outcome == "").sum())
            results.append(
                Robustness(
                    norm=norm,
                    radius=radius,
                    steps=length,
                    accuracy=robust / len(outcome),
                    examples=len(outcome),
                    robust=robust,
                    wrong=int((outcome == _CLEAN).sum()),
                    broken={x: int((outcome == x).sum()) for x in (*names, "smaller")},
                )
            )
    return results


class _Victims(NamedTuple):
    """Images and the model that is attacked through them; fields as in `robust_accuracy`."""

    forward: Partial
    images: np.ndarray
    labels: np.ndarray
    norm: str
    batch_size: int
    seed: int
    restarts: int
    progress: Callable[[str], None]

    def clean(self) -> tuple[np.ndarray, list[tuple[str, Callable[..., jax.Array]]]]:
        """Which images are classified rightly, bool [n], and the attacks for so many classes."""
        right, num_classes = np.zeros(len(self.labels), bool), 0
        for rows in _batches(np.arange(len(self.labels)), self.batch_size):
            logits = np.asarray(_logits(self.forward, self.images[rows]))
            if not np.isfinite(logits).all():
                raise UserError("logits are not finite; robustness needs a model whose logits are")
            right[rows], num_classes = logits.argmax(1) == self.labels[rows], logits.shape[1]
        return right, [x for x in _ATTACKS if x[0] != "dlr" or num_classes >= 3]

    def attack(
        self,
        outcome: np.ndarray,
        attacks: Sequence[tuple[str, Callable[..., jax.Array]]],
        radius: float,
        steps: int,
    ) -> None:
        """Attacks what `outcome` says is robust, and writes there what breaks it."""
        for number, (name, loss) in enumerate(attacks):
            for restart in range(self.restarts):
                self.progress(
                    f"{self.norm} {radius:.4g}, {steps} steps, {name}, start {restart + 1}"
                )
                key = jax.random.key(self.seed)
                for value in (number, restart):
                    key = jax.random.fold_in(key, value)
                left = np.flatnonzero(outcome == "")
                for rows in _batches(left, self.batch_size):
                    images, labels = self.images[rows], self.labels[rows]
                    found = autopgd.maximize(
                        Partial(_objective, self.forward, autopgd.as_partial(loss), images, labels),
                        _random_start(
                            key,
                            images,
                            rows.astype(np.int32),
                            np.float32(radius),
                            norm=self.norm,
                        ),
                        radius,
                        norm=self.norm,
                        steps=steps,
                        batched=True,
                        keep=Partial(_stay_image, images),
                    )
                    outcome[rows[np.asarray(found.success)]] = name


def _objective(
    forward: Partial, loss: Partial, images: jax.Array, labels: jax.Array, delta: jax.Array
) -> tuple[jax.Array, jax.Array]:
    inputs = images + delta
    # Rounding can leave [0, 1] by a last bit. The clip itself would halve gradients on the border.
    inputs += jax.lax.stop_gradient(jnp.clip(inputs, 0, 1) - inputs)
    logits = forward(inputs)
    wrong = (logits.argmax(axis=1) != labels) & jnp.isfinite(logits).all(axis=1)
    return loss(logits, labels), wrong


def _stay_image(images: jax.Array, delta: jax.Array) -> jax.Array:
    return jnp.clip(images + delta, 0, 1) - images


def _forward(apply: Partial, normalize: Partial, params: PyTree, images: jax.Array) -> jax.Array:
    return apply(params, normalize(images))


def _unchanged(images: jax.Array) -> jax.Array:
    return images


@jax.jit
def _logits(forward: Partial, images: jax.Array) -> jax.Array:
    return forward(images)


@jax.jit(static_argnames="norm")
def _random_start(
    key: jax.Array, images: jax.Array, examples: jax.Array, radius: jax.Array, *, norm: str
) -> jax.Array:
    """Uniform in the ℓ∞ ball, or uniform on the ℓ2 sphere, then moved into [0, 1]."""
    keys = jax.vmap(lambda example: jax.random.fold_in(key, example))(examples)
    shape = images.shape[1:]
    if norm == "linf":
        noise = jax.vmap(lambda k: jax.random.uniform(k, shape, minval=-1))(keys)
    else:
        noise = jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
        noise = unit(noise.reshape(len(noise), -1), "l2").reshape(images.shape)
    return _stay_image(images, radius * noise)


def _batches(rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Batches of one size, so that one program serves all; the last is filled with repetitions."""
    for begin in range(0, len(rows), batch_size):
        batch = rows[begin : begin + batch_size]
        yield np.resize(batch, batch_size)


def _check(
    radii: list[float],
    steps: list[int],
    restarts: int,
    batch_size: int,
    images: np.ndarray,
    labels: np.ndarray,
) -> None:
    for radius in radii:
        check_radius("radius", radius)
    for name, value in (
        *(("steps", value) for value in steps),
        ("restarts", restarts),
        ("batch_size", batch_size),
    ):
        integer(1)(name, value)
    if len(labels) == 0:
        raise UserError("labels is empty; at least one example is needed")
    if len(images) != len(labels):
        raise UserError(f"labels has {len(labels)} entries; there are {len(images)} images")
    if not (images.min() >= 0 and images.max() <= 1):
        raise UserError(f"images lie in [{images.min()}, {images.max()}]; they must lie in [0, 1]")
