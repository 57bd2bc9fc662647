"""All measurements of a report on one run."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import samon_jax as samon
from samon_jax.analysis import landscape, rank, robustness, sentences, sharpness, weights
from samon_jax.analysis.trained import Trained
from samon_jax.training import devices

PyTree = Any


class SharpnessDefinition(NamedTuple):
    """One of the things that are called sharpness.

    Attributes:
      kind: "worst", "one_step" or "average".
      norm: "l2" or "linf".
      radius: ρ.
      adaptive: T = |w|.
      logit_norm: logits are normalized first.
    """

    kind: str
    norm: str
    radius: float
    adaptive: bool
    logit_norm: bool


# Those of Table 6 (its first three are in Table 18 too), then those of Table 19.
SHARPNESS_DEFINITIONS = (
    SharpnessDefinition("worst", "linf", 0.003, True, True),
    SharpnessDefinition("worst", "linf", 0.005, True, True),
    SharpnessDefinition("worst", "linf", 0.007, True, True),
    SharpnessDefinition("one_step", "linf", 0.007, True, True),
    SharpnessDefinition("one_step", "linf", 0.01, True, True),
    SharpnessDefinition("one_step", "linf", 0.03, True, True),
    SharpnessDefinition("average", "l2", 0.005, False, False),
    SharpnessDefinition("average", "l2", 0.1, True, False),
    SharpnessDefinition("average", "linf", 0.01, False, False),
    SharpnessDefinition("average", "linf", 0.2, True, False),
    SharpnessDefinition("worst", "l2", 0.05, False, False),
    SharpnessDefinition("worst", "l2", 0.25, True, False),
    SharpnessDefinition("worst", "linf", 1e-5, False, False),
    SharpnessDefinition("worst", "linf", 0.004, True, False),
)


class Printed(NamedTuple):
    """What somebody printed for the settings of a run, to stand beside what is measured.

    Attributes:
      source: where, "Table 1: basic SAM, WRN-28 ON".
      test_accuracy: in [0, 1], or None.
      sharpness: in nats, by definition.
      robust_accuracy: in [0, 1], by norm and radius.
      feature_rank: or None.
    """

    source: str = ""
    test_accuracy: float | None = None
    sharpness: Mapping[SharpnessDefinition, float] = {}
    robust_accuracy: Mapping[tuple[str, float], float] = {}
    feature_rank: float | None = None


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a report; a data set with fewer examples gives all it has.

    Attributes:
      seed: of the choice of examples, random starts and random directions.
      sharpness_examples: of the training set, for sharpness (appendix B.10 uses 2,048).
      m: examples that share one perturbation.
      steps: of AutoPGD in weight space.
      samples: random perturbations per batch, for the average case.
      attack_examples: of the test set.
      attack_steps: of AutoPGD in input space.
      restarts: random starts of each attack.
      rank_examples: of the training set, for the feature rank.
      surface_examples: of the training set, for the loss along ε and on the plane.
      surface_points: grid points per axis.
      sharpness_sentences: instead of sharpness_examples where sentences are translated.
      surface_sentences: likewise.
      shown_sentences: of the test set, whose translations are shown.
    """

    seed: int = 0
    sharpness_examples: int = 2048
    m: int = sharpness.M
    steps: int = sharpness.STEPS
    samples: int = sharpness.SAMPLES
    attack_examples: int = 1000
    attack_steps: int = robustness.STEPS
    restarts: int = 1
    rank_examples: int = 10240
    surface_examples: int = 512
    surface_points: int = 21
    sharpness_sentences: int = 64
    surface_sentences: int = 64
    shown_sentences: int = 8

    def radii(self, dataset: str, norm: str) -> tuple[float, ...]:
        """Radii of the attacks: those of Tables 14 and 15; for digits larger ones besides."""
        extra = {"linf": (8 / 255, 16 / 255, 32 / 255), "l2": ()} if dataset == "digits" else {}
        return (*robustness.RADII[norm], *extra.get(norm, ()))

    def sharpness_of(self, run: Trained) -> int:
        """Training examples of a run for its sharpness, at most."""
        return self.sharpness_examples if run.classifies_images else self.sharpness_sentences

    def surface_of(self, run: Trained) -> int:
        """Training examples of a run for the loss around its weights, at most."""
        return self.surface_examples if run.classifies_images else self.surface_sentences


def work_units(run: Trained, sizes: Sizes) -> int:
    """Number of calls of `tick` that the measurements of a run make."""
    if not run.has_logits:
        return 0
    if not run.classifies_images:
        return len(SHARPNESS_DEFINITIONS) + 4
    radii = sum(len(sizes.radii(run.images.name, norm)) for norm in robustness.RADII)
    attacks = 2 if run.images.num_classes >= 3 else 1
    return len(SHARPNESS_DEFINITIONS) + radii * attacks * sizes.restarts + 4


def sharpness_of(run: Trained, sizes: Sizes, tick: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every sharpness of `SHARPNESS_DEFINITIONS`: definition, value in nats, loss, examples."""
    inputs, labels = run.examples("train", sizes.sharpness_of(run), sizes.seed)
    rows = []
    for wanted in SHARPNESS_DEFINITIONS:
        tick(f"{wanted.kind} {wanted.norm} sharpness, ρ = {wanted.radius:g}")
        found = _measure(run, wanted, sizes, inputs, labels)
        values = {"value": found.value, "loss": found.loss, "examples": found.examples}
        rows.append(wanted._asdict() | values)
    return rows


def robustness_of(run: Trained, sizes: Sizes, tick: Callable[[str], None]) -> list[dict[str, Any]]:
    """Worst-case accuracy under both attacks for every norm and radius."""
    images, labels = run.subset("test", sizes.attack_examples, sizes.seed)
    rows = []
    for norm in robustness.RADII:
        for found in robustness.robust_accuracy(
            run.apply,
            run.params,
            images.astype(np.float32) / 255,
            labels,
            norm=norm,
            radii=sizes.radii(run.images.name, norm),
            steps=sizes.attack_steps,
            restarts=sizes.restarts,
            normalize=run.normalizer(),
            seed=sizes.seed,
            progress=tick,
        ):
            rows.append(found._asdict())
    return rows


def feature_rank_of(run: Trained, sizes: Sizes, tick: Callable[[str], None]) -> dict[str, Any]:
    """Feature rank of the last residual block."""
    tick("feature rank")
    inputs, _ = run.examples("train", sizes.rank_examples, sizes.seed)
    block = rank.last_block(rank.block_names(run.model, inputs[:1]))
    features = rank.block_output(run.model, run.model_state, inputs[:1], block)
    found = rank.feature_rank(features, run.params, inputs)
    return {"block": block, **found._asdict()}


def norm_shares_of(run: Trained, sizes: Sizes) -> dict[str, float | None]:
    """Share of ‖ε‖² on norm parameters in a SAM-all step, for every variant.

    The gradient is that of training: BatchNorm with the statistics of the batch, and one batch of m
    training examples, here without augmentation and label smoothing; shares are means over batches.
    They depend on ρ for no variant. None where every gradient is zero.
    """
    inputs, labels = run.examples("train", sizes.sharpness_of(run), sizes.seed)
    shares: dict[str, list[float]] = {variant: [] for variant in samon.VARIANTS}
    steps = {
        variant: jax.jit(functools.partial(weights.epsilon_of, samon.variant(variant, 1.0)))
        for variant in samon.VARIANTS
    }
    for x, y in sharpness.batches(inputs, labels, sizes.m):
        gradient = landscape.gradient(run.apply_train_mode, run.params, x, y)
        for variant in samon.VARIANTS:
            share = weights.norm_share(steps[variant](run.params, gradient))
            shares[variant] += [] if np.isnan(share) else [share]
    return {v: float(np.mean(found)) if found else None for v, found in shares.items()}


def translations_of(
    run: Trained, sizes: Sizes, tick: Callable[[str], None]
) -> list[dict[str, str]]:
    """Sentences of the test set: "source", "reference" and what the model says, "said"."""
    tick("translations")
    task = run.translation
    if task is None:
        return []
    pairs = sentences.some(run.config, "test", sizes.shown_sentences, sizes.seed)
    alone = devices.take(1)
    variables = alone.replicate({"params": run.params})
    rows = zip(*pairs, task.translate(variables, pairs.source, alone), strict=True)
    return [dict(zip(("source", "reference", "said"), row, strict=True)) for row in rows]


def surface_examples(run: Trained, sizes: Sizes) -> int:
    """How many training examples the loss around the weights is a mean over."""
    wanted = sizes.surface_of(run)
    if run.translation is None:
        return min(wanted, run.num_train)
    return len(run.examples("train", wanted, sizes.seed)[1])  # without the longest ones


def loss_along_epsilon(
    run: Trained, sizes: Sizes, distances: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Loss along the ε of SAM-all and of SAM-ON at the given Euclidean distances."""
    inputs, labels = run.examples("train", sizes.surface_of(run), sizes.seed)
    gradient = landscape.gradient(run.apply, run.params, inputs, labels)
    masks = {"all": samon.all_params, "only_norm": samon.only_norm}
    losses = {}
    for mask, steps in distances.items():
        step = jax.jit(
            functools.partial(weights.epsilon_of, samon.variant("sam", 1.0, masks[mask]))
        )
        epsilon = step(run.params, gradient)
        losses[mask] = landscape.along(run.apply, run.params, epsilon, steps, inputs, labels)
    return losses


def loss_surface(run: Trained, sizes: Sizes, coordinates: np.ndarray) -> np.ndarray:
    """Loss on a plane of two filter-normalized directions, drawn alike for all runs."""
    inputs, labels = run.examples("train", sizes.surface_of(run), sizes.seed)
    first, second = jax.random.split(jax.random.key(sizes.seed))
    directions = (
        landscape.filter_normalized(first, run.params),
        landscape.filter_normalized(second, run.params),
    )
    return landscape.plane(
        run.apply, run.params, directions, coordinates, coordinates, inputs, labels
    )


def _measure(
    run: Trained, wanted: SharpnessDefinition, sizes: Sizes, inputs: Any, labels: Any
) -> sharpness.Sharpness:
    common: dict[str, Any] = {
        "radius": wanted.radius,
        "norm": wanted.norm,
        "adaptive": wanted.adaptive,
        "logit_norm": wanted.logit_norm,
        "m": sizes.m,
    }
    arguments = (run.apply, run.params, inputs, labels)
    if wanted.kind == "worst":
        return sharpness.worst_case(*arguments, steps=sizes.steps, **common)
    if wanted.kind == "one_step":
        return sharpness.one_step(*arguments, **common)
    return sharpness.average_case(*arguments, samples=sizes.samples, seed=sizes.seed, **common)
