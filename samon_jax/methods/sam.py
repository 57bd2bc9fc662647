"""SAM: the sharpness-aware `value_and_grad`, and the fields that every method of the family has."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from samon_jax._fields import Field, boolean, integer, number, one_of, optional, refuse, text
from samon_jax._passes.calls import Options
from samon_jax._passes.m_sharpness import AxisName
from samon_jax._passes.sharpen import sharpen
from samon_jax.errors import UserError
from samon_jax.masks import (
    SPARSITY,
    Mask,
    all_params,
    intersection,
    no_norm,
    only_norm,
    only_norm_in,
    random_mask,
)
from samon_jax.methods._recipe import Fields, Member, Recipe, Setting
from samon_jax.methods.method import SHARP, LossesFn, Now
from samon_jax.perturbation import RADIUS, VARIANTS, variant

PyTree = Any

NO_PERTURBATION = "none"
BATCH_STATS = ("clean", "perturbed", "both")
MASKS = ("all", "only_norm", "no_norm", "only_norm_in:<regex>", "random:<sparsity>")


def value_and_grad(
    loss_fn: Callable[..., Any],
    ascent: optax.GradientTransformation,
    *,
    has_aux: bool = False,
    axis_name: AxisName | None = None,
    m: int | None = None,
    batch_argnums: int | Sequence[int] | None = None,
    reuse_prefix: bool = True,
    aux_from: str = "clean",
    combine: Callable[[PyTree, PyTree], PyTree] | None = None,
    ascent_fraction: float = 1.0,
) -> Callable[..., tuple[Any, PyTree, PyTree]]:
    """Sharpness-aware drop-in for `jax.value_and_grad`.

    The returned function computes the gradient at the parameters w, turns it into ε with `ascent`,
    and returns the gradient at w + ε (Eq. 3 of the SAM-ON paper). Call it inside `jax.jit`,
    `jax.pmap` or `jax.shard_map`.

    It does no work that ε does not need: gradients that `ascent` does not read are not computed in
    the first pass, and with `reuse_prefix` what the perturbed parameters cannot reach is computed
    once for both passes. With all norms perturbed a step costs 5/3 of plain SGD, with those of the
    last of three stages 11/9.

    Args:
      loss_fn: `loss_fn(params, *args, **kwargs)` returns a scalar loss, or `(loss, aux)`.
      ascent: `perturbation(...)`, or any optax transform that turns gradients into ε. With a
        `single_pass` one there is one pass alone, and `value` is of it, at w + ε.
      has_aux: whether `loss_fn` returns `(loss, aux)`, `aux` being a pytree of arrays.
      axis_name: mapped axis over devices. Every device computes ε from its own examples; only the
        gradient at w + ε is averaged over the axis. The value is this device's own.
      m: number of examples that share one ε (m-sharpness) and one loss, and so one set of BatchNorm
        statistics; None for a device's batch. If smaller, the batch is split and every leaf of
        `aux` gains a leading axis [parts]; arguments outside `batch_argnums`, a dropout key say,
        are shared by the parts. If larger, it must be a multiple of the device's batch, and groups
        of neighbouring devices average their first gradient.
      batch_argnums: which of `args` hold examples on the leading axis of every leaf, counted from 0
        after `params`; read only if `m` or an `ascent_fraction` below 1 is given. None is the only
        one there is.
      reuse_prefix: share what the perturbation cannot reach between the passes. The result is the
        same up to rounding. If `ascent` or `combine` reads gradients of parameters in the shared
        part (`optax.clip_by_global_norm` before the perturbation does), the first pass runs whole.
      aux_from: which pass `aux` comes from: "clean" (at w), "perturbed" (at w + ε), or "both", a
        pair of them.
      combine: turns the gradients at w and at w + ε into the descent gradient, for example
        `gsam(alpha)`; None descends with the latter. It needs the whole gradient at w.
      ascent_fraction: share of the examples, in (0, 1], from which ε is made: the first
        `round(ascent_fraction * n)`, at least 1, of each part of n examples that shares an ε. The
        value, the clean `aux` and the gradient at w that `combine` gets are of these examples; the
        gradient at w + ε is of all. Brock et al. use 0.2. Below 1 the passes see different
        examples and share no prefix; gradients that `ascent` does not read are still left out, so
        that a step of SAM-ON with 0.2 costs 3.4/3 of plain SGD. A loss that draws noise for the
        whole batch from one key draws it anew for the smaller one.

    Returns:
      A function `fn(params, ascent_state, *args, **kwargs) -> (value, grads, ascent_state)`.
      `value` is the loss at w, or `(loss, aux)`; `grads` has the structure and dtypes of `params`;
      `ascent_state` starts as `ascent.init(params)`; if it depends on gradients (momentum, say),
      it is each device's own.

    Raises:
      UserError: an argument is not allowed, or `m` does not fit the batch and the devices, or
        `ascent_fraction` is outside (0, 1].
      TypeError: the loss is not a scalar.

    Example:
      >>> import jax, jax.numpy as jnp, samon_jax as samon
      >>> def loss_fn(params, x):
      ...     return jnp.mean((x @ params["kernel"] * params["norm"]["scale"] - 1) ** 2)
      >>> params = {"kernel": jnp.ones((2, 3)), "norm": {"scale": jnp.ones(3)}}
      >>> ascent = samon.perturbation(rho=0.5, mask=samon.only_norm)
      >>> step = jax.jit(samon.value_and_grad(loss_fn, ascent))
      >>> loss, grads, ascent_state = step(params, ascent.init(params), jnp.ones((4, 2)))
      >>> float(loss)
      1.0

    References:
      Foret et al. 2021, Sharpness-Aware Minimization; Müller et al. 2023, section 3.2 and 4.3;
      Brock et al. 2021, High-Performance Large-Scale Image Recognition Without Normalization, on
      `ascent_fraction`.
    """
    FIELDS["ascent_fraction"].check("ascent_fraction", ascent_fraction)
    optional(integer(1))("m", m)
    return sharpen(
        loss_fn,
        ascent,
        Options(
            has_aux=has_aux,
            axis_name=axis_name,
            m=m,
            batch_argnums=batch_argnums,
            reuse_prefix=reuse_prefix,
            aux_from=aux_from,
            combine=combine,
            ascent_fraction=ascent_fraction,
        ),
    )


def make_mask(words: str) -> Mask:
    """The mask that a config names.

    Args:
      words: "all", "only_norm", "no_norm", `only_norm_in:<regex>` or `random:<sparsity>`. A random
        mask is the same for every seed of a run, so that all seeds share one compiled step.

    Raises:
      UserError: there is no such mask.
    """
    named = {"all": all_params, "only_norm": only_norm, "no_norm": no_norm}
    name, _, argument = words.partition(":")
    if words in named:
        return named[words]
    if name == "only_norm_in" and argument:
        return only_norm_in(argument)
    if name == "random":
        return random_mask(jax.random.key(0), _sparsity(argument))
    raise UserError(f"mask={words!r} does not exist; choose one of {', '.join(MASKS)}")


def _sparsity(argument: str) -> float:
    try:
        return float(argument)
    except ValueError:
        return math.nan  # which the mask refuses


def _check_mask(name: str, value: Any) -> None:
    """Allows the words that `make_mask` knows."""
    text(name, value)
    kind, _, argument = value.partition(":")
    try:
        if kind == "random":
            SPARSITY("sparsity", _sparsity(argument))
        else:
            make_mask(value)
    except UserError as error:
        raise UserError(f"{name}={value!r} is not allowed: {error}") from None


FIELDS = {
    "variant": Field(
        "layerwise_l2",
        one_of(*VARIANTS, NO_PERTURBATION),
        'A name that `samon_jax.variant` knows, or "none": the plain gradient, for which all other '
        "fields of this section have no effect.",
    ),
    "rho": Field(
        0.2, RADIUS, "Radius of the perturbation; each variant has its own scale (Table 7)."
    ),
    "eta": Field(None, optional(RADIUS), "η; None = what Table 9 gives for the variant."),
    "mask": Field("only_norm", _check_mask, f"What is perturbed: {', '.join(MASKS)}."),
    "m": Field(0, integer(0), "Examples that share one perturbation; 0 = the batch of a device."),
    "start": Field(0, integer(0), "Perturb in epochs start <= epoch < stop, counted from 0."),
    "stop": Field(0, integer(0), "See start; 0 = to the end."),
    "batch_stats": Field(
        "clean", one_of(*BATCH_STATS), "Which pass feeds the running statistics of BatchNorm."
    ),
    "reuse_prefix": Field(
        True, boolean, "Whether the second pass reuses what the perturbation cannot change."
    ),
    "ascent_fraction": Field(
        1.0,
        number(0, 1, above=True),
        "Share of the batch from which the perturbation is computed (Brock et al. 2021).",
    ),
}


def check_epochs(fields: Fields, epochs: int | None) -> None:
    """Raises a UserError where no epoch of the run is perturbed."""
    if epochs is None:
        return
    integer(0, epochs - 1)("start", fields["start"])
    start, stop = fields["start"], fields["stop"]
    if stop and not start < stop <= epochs:
        raise refuse("stop", stop, f"0 (to the end), or {start} < value <= {epochs}")


def check_eta(fields: Fields) -> None:
    """Raises a UserError where a variant has no use for η."""
    variant(fields["variant"], 0.0, eta=fields["eta"])


def plain_sam(fields: Fields, setting: Setting) -> Recipe:
    """The recipe that the members of the family change: SAM in every step.

    Args:
      fields: complete, checked.
      setting: of the run.
    """
    mask = make_mask(fields["mask"])
    if setting.trainable is not None:
        mask = intersection(mask, setting.trainable)

    def ascent(now: Now) -> optax.GradientTransformation:
        return variant(fields["variant"], now.rho, mask, eta=fields["eta"])

    options = Options(
        has_aux=True,
        axis_name=setting.axis_name,
        m=fields["m"] or None,
        batch_argnums=0,
        reuse_prefix=fields["reuse_prefix"],
        aux_from="clean" if fields["batch_stats"] == "clean" else "both",
        ascent_fraction=fields["ascent_fraction"],
        average=False,
    )
    return Recipe(
        ascent=ascent,
        options=options,
        passes={SHARP: _sharp},
        init=lambda ascent, params: ascent.init(params),
        due=lambda perturbed_steps: SHARP,
    )


def _sharp(
    losses_fn: LossesFn, ascent: optax.GradientTransformation, options: Options
) -> Callable[..., Any]:
    return sharpen(mean_of(losses_fn), ascent, options)


def mean_of(losses_fn: LossesFn) -> Callable[[PyTree, PyTree], tuple[jax.Array, PyTree]]:
    """The mean loss of a batch, and its aux, from the losses of its examples."""

    def loss_fn(params: PyTree, batch: PyTree) -> tuple[jax.Array, PyTree]:
        losses, aux = losses_fn(params, batch)
        return losses.mean(), aux

    return loss_fn


def _describe(fields: Fields) -> list[str]:
    eta, fraction, statistics = fields["eta"], fields["ascent_fraction"], fields["batch_stats"]
    found = {
        f"η = {eta}": eta is not None,
        f"ascent from {fraction:g} of the batch": fraction < 1,
        f"statistics of {'both passes' if statistics == 'both' else 'the perturbed pass'}": (
            statistics != "clean"
        ),
        "no prefix shared": not fields["reuse_prefix"],
    }
    return [text for text, holds in found.items() if holds]


MEMBER = Member(
    fields=FIELDS,
    used=lambda fields: fields["variant"] != NO_PERTURBATION,
    build=lambda recipe, fields, setting: recipe,  # the others change it
    describe=_describe,
)
