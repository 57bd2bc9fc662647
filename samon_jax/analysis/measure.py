"""All measurements of a report on one run."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import samon_jax as samon
from samon_jax.analysis import landscape, published, rank, robustness, sharpness, weights
from samon_jax.analysis.published import SharpnessSetting
from samon_jax.analysis.trained import Trained, subset

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Settings:
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

    def radii(self, dataset: str, norm: str) -> tuple[float, ...]:
        """Radii of the attacks: those of Tables 14 and 15; for digits larger ones besides."""
        extra = {"linf": (8 / 255, 16 / 255, 32 / 255), "l2": ()} if dataset == "digits" else {}
        return (*robustness.RADII[norm], *extra.get(norm, ()))


def work_units(run: Trained, settings: Settings) -> int:
    """Number of calls of `tick` that the measurements of a run make."""
    radii = sum(len(settings.radii(run.dataset.name, norm)) for norm in robustness.RADII)
    attacks = 2 if run.dataset.num_classes >= 3 else 1
    return len(published.SHARPNESS_SETTINGS) + radii * attacks * settings.restarts + 4


def sharpness_of(
    run: Trained, settings: Settings, tick: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Every sharpness of Tables 6 and 19: setting, value in nats, loss, examples, paper's value."""
    inputs, labels = run.examples(run.dataset.train, settings.sharpness_examples, settings.seed)
    rows = []
    for setting in published.SHARPNESS_SETTINGS:
        tick(f"{setting.kind} {setting.norm} sharpness, ρ = {setting.radius:g}")
        found = _measure(run, setting, settings, inputs, labels)
        rows.append(
            {
                **setting._asdict(),
                "value": found.value,
                "loss": found.loss,
                "examples": found.examples,
                "paper": published.sharpness(run.config, setting),
            }
        )
    return rows


def robustness_of(
    run: Trained, settings: Settings, tick: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Worst-case accuracy under both attacks for every norm and radius, with the paper's value."""
    images, labels = subset(run.dataset.test, settings.attack_examples, settings.seed)
    rows = []
    for norm in robustness.RADII:
        for found in robustness.robust_accuracy(
            run.apply,
            run.params,
            images.astype(np.float32) / 255,
            labels,
            norm=norm,
            radii=settings.radii(run.dataset.name, norm),
            steps=settings.attack_steps,
            restarts=settings.restarts,
            normalize=run.normalizer(),
            seed=settings.seed,
            progress=tick,
        ):
            paper = published.robust_accuracy(run.config, norm, found.radius)
            rows.append({**found._asdict(), "paper": paper})
    return rows


def feature_rank_of(
    run: Trained, settings: Settings, tick: Callable[[str], None]
) -> dict[str, Any]:
    """Feature rank of the last residual block, with the paper's value."""
    tick("feature rank")
    inputs, _ = run.examples(run.dataset.train, settings.rank_examples, settings.seed)
    block = rank.last_block(rank.block_names(run.model, inputs[:1]))
    features = rank.block_output(run.model, {"batch_stats": run.batch_stats}, inputs[:1], block)
    found = rank.feature_rank(features, run.params, inputs)
    return {"block": block, **found._asdict(), "paper": published.feature_rank(run.config)}


def norm_shares_of(run: Trained, settings: Settings) -> dict[str, float | None]:
    """Share of ‖ε‖² on norm parameters in a SAM-all step, for every variant.

    The gradient is that of training: BatchNorm with the statistics of the batch, and one batch of m
    training examples, here without augmentation and label smoothing; shares are means over batches.
    They depend on ρ for no variant. None where every gradient is zero.
    """
    inputs, labels = run.examples(run.dataset.train, settings.sharpness_examples, settings.seed)
    shares: dict[str, list[float]] = {variant: [] for variant in samon.VARIANTS}
    steps = {
        variant: jax.jit(functools.partial(weights.epsilon_of, samon.variant(variant, 1.0)))
        for variant in samon.VARIANTS
    }
    for x, y in sharpness.batches(inputs, labels, settings.m):
        gradient = landscape.gradient(run.apply_train_mode, run.params, x, y)
        for variant in samon.VARIANTS:
            share = weights.norm_share(steps[variant](run.params, gradient))
            shares[variant] += [] if np.isnan(share) else [share]
    return {v: float(np.mean(found)) if found else None for v, found in shares.items()}


def loss_along_epsilon(
    run: Trained, settings: Settings, distances: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Loss along the ε of SAM-all and of SAM-ON at the given Euclidean distances."""
    inputs, labels = run.examples(run.dataset.train, settings.surface_examples, settings.seed)
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


def loss_surface(run: Trained, settings: Settings, coordinates: np.ndarray) -> np.ndarray:
    """Loss on a plane of two filter-normalized directions, drawn alike for all runs."""
    inputs, labels = run.examples(run.dataset.train, settings.surface_examples, settings.seed)
    first, second = jax.random.split(jax.random.key(settings.seed))
    directions = (
        landscape.filter_normalized(first, run.params),
        landscape.filter_normalized(second, run.params),
    )
    return landscape.plane(
        run.apply, run.params, directions, coordinates, coordinates, inputs, labels
    )


def _measure(
    run: Trained, setting: SharpnessSetting, settings: Settings, inputs: Any, labels: Any
) -> sharpness.Sharpness:
    common: dict[str, Any] = {
        "radius": setting.radius,
        "norm": setting.norm,
        "adaptive": setting.adaptive,
        "logit_norm": setting.logit_norm,
        "m": settings.m,
    }
    arguments = (run.apply, run.params, inputs, labels)
    if setting.kind == "worst":
        return sharpness.worst_case(*arguments, steps=settings.steps, **common)
    if setting.kind == "one_step":
        return sharpness.one_step(*arguments, **common)
    return sharpness.average_case(
        *arguments, samples=settings.samples, seed=settings.seed, **common
    )
