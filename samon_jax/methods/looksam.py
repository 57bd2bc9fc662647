"""LookSAM: SAM's gradient every few steps, its direction reused in between (Liu et al. 2022)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from samon_jax._fields import Field, integer
from samon_jax._passes.calls import Options
from samon_jax._passes.m_sharpness import AxisName
from samon_jax._passes.trees import dot, flatten, scale_and_norm, widen
from samon_jax.errors import UserError
from samon_jax.methods._recipe import Conflict, Fields, Member, Recipe, Setting
from samon_jax.methods.method import REUSE, SHARP, LossesFn
from samon_jax.methods.sam import mean_of
from samon_jax.methods.sam import value_and_grad as sam_value_and_grad
from samon_jax.perturbation import RADIUS

PyTree = Any
Result = tuple[Any, PyTree, "LookSamState"]  # value, gradient, next state
GradFn = Callable[..., Result]

# Below this share of the whole difference of the two gradients, g_v is nothing but rounding.
_ROUNDING = 32 * float(jnp.finfo(jnp.float32).eps)


class LookSamState(NamedTuple):
    """State of `looksam`, the same on every device.

    Attributes:
      count: int32 scalar, the number of steps so far.
      direction: g_v of the last sharp step, with the structure and dtypes of the parameters; ()
        if every step is sharp.
      ascent_state: state of the transform that makes ε; it moves on in sharp steps only.
    """

    count: jax.Array  # type: ignore[assignment]
    direction: PyTree
    ascent_state: PyTree


class LookSam(NamedTuple):
    """What `looksam` gives; the last three are `fn(params, state, *args, **kwargs)`.

    Attributes:
      init: the parameters to the first state.
      value_and_grad: a sharp step if `count` is a multiple of `every`, else a plain one.
      sharp: SAM's gradient; renews the direction.
      plain: the plain gradient and the direction of the last sharp step.
    """

    init: Callable[[PyTree], LookSamState]
    value_and_grad: GradFn
    sharp: GradFn
    plain: GradFn


def looksam(
    loss_fn: Callable[..., Any],
    ascent: optax.GradientTransformation,
    *,
    every: int,
    alpha: float = 0.7,
    has_aux: bool = False,
    axis_name: AxisName | None = None,
    m: int | None = None,
    batch_argnums: int | Sequence[int] | None = None,
    reuse_prefix: bool = True,
    aux_from: str = "clean",
) -> LookSam:
    """SAM in every k-th step, and in between SGD that remembers where SAM pointed.

    With g the gradient at w and g_s the one at w + ε, a sharp step descends with g_s and stores
    g_v = g_s - (⟨g_s, g⟩ / ‖g‖²) g, the part of g_s orthogonal to g, which changes slowly. A plain
    step descends with g + α (‖g‖ / ‖g_v‖) g_v. Where g = 0, g_v = g_s; where g_v = 0, a plain step
    descends with g.

    A plain step costs what a step of SGD does. A sharp one costs 2, also with `mask=only_norm`: it
    needs the whole gradient at w, and the saving of 1/6 is lost there, as with `gsam`. On average
    that is 1 + 1/k, 1.2 for k = 5. With k = 1 nothing is stored, and `value_and_grad` is SAM at
    SAM's cost, 5/3 for `only_norm`.

    `value_and_grad` chooses by the state, with `jax.lax.cond`. On CPUs, XLA runs convolutions
    inside a branch much slower than outside (30 times in one measurement), and under `jax.vmap`
    over states both branches run. Where the number of the step is known outside of `jax.jit`, call
    `sharp` and `plain` instead, each jitted: `sharp if step % every == 0 else plain`.

    How it goes with the rest: masks, `stochastic_perturbation`, `ssam_f` and `ssam_d` are choices
    of `ascent`. There is no `combine`, `ascent_fraction` or per-example selection (`esam`).

    Args:
      loss_fn: `loss_fn(params, *args, **kwargs)` returns a scalar loss, or `(loss, aux)`.
      ascent: transform from gradients to ε.
      every: k >= 1, steps from one sharp step to the next; the first step is sharp.
      alpha: α >= 0; Liu et al. use 0.7, with k = 5.
      has_aux: whether `loss_fn` returns `(loss, aux)`, `aux` being a pytree of arrays.
      axis_name: mapped axis over devices. ε is each device's own; g, g_s and so the state are
        averaged over the axis. The value is this device's own.
      m: examples that share one ε and one loss, as in `value_and_grad`, in both kinds of steps.
      batch_argnums: as in `value_and_grad`.
      reuse_prefix: as in `value_and_grad`; it matters for k = 1 alone.
      aux_from: as in `value_and_grad`. In plain steps the clean pass stands for both.

    Returns:
      A `LookSam`. Its functions return `(value, grads, state)`; `value` is the loss at w, or
      `(loss, aux)`. With k = 1, `plain` is `sharp`.

    Raises:
      UserError: an argument is not allowed, or `m` does not fit the batch and the devices.

    Example:
      >>> import jax, jax.numpy as jnp, samon_jax as samon
      >>> def loss_fn(params, x):
      ...     return jnp.sum(x * params["w"] ** 2) / 2
      >>> params, x = {"w": jnp.array([1.0, 1.0])}, jnp.array([3.0, 4.0])
      >>> look = samon.looksam(loss_fn, samon.variant("sam", rho=0.5), every=5)
      >>> step, state = jax.jit(look.value_and_grad), look.init(params)
      >>> loss, grads, state = step(params, state, x)  # 3 (1 + 0.5 * 3/5), 4 (1 + 0.5 * 4/5)
      >>> [f"{x:.2f}" for x in grads["w"]]
      ['3.90', '5.60']
      >>> loss, grads, state = step(params, state, x)  # g + 0.7 * 5 * [-0.8, 0.6]
      >>> [f"{x:.2f}" for x in grads["w"]]
      ['0.20', '6.10']

    References:
      Liu et al. 2022, Towards Efficient and Scalable Sharpness-Aware Minimization, algorithm 1.
    """
    FIELDS["look_every"].check("every", every)
    FIELDS["look_alpha"].check("alpha", alpha)
    options: dict[str, Any] = {
        "has_aux": has_aux,
        "axis_name": axis_name,
        "m": m,
        "batch_argnums": batch_argnums,
        "reuse_prefix": reuse_prefix,
        "aux_from": aux_from,
    }
    still = optax.set_to_zero()  # never leaves w
    plain_grad = sam_value_and_grad(loss_fn, still, **options)
    # Both gradients, averaged over the devices, in place of one.
    sharp_grad = sam_value_and_grad(
        loss_fn, ascent, **options, combine=_pair if every > 1 else None
    )

    def init(params: PyTree) -> LookSamState:
        direction = jax.tree.map(jnp.zeros_like, params) if every > 1 else ()
        return LookSamState(jnp.zeros((), jnp.int32), direction, ascent.init(params))

    def sharp(params: PyTree, state: LookSamState, *args: Any, **kwargs: Any) -> Result:
        _check_state(state)
        value, grads, ascent_state = sharp_grad(params, state.ascent_state, *args, **kwargs)
        grads, direction = _parted(params, grads) if every > 1 else (grads, ())
        return value, grads, LookSamState(_next(state), direction, ascent_state)

    def plain(params: PyTree, state: LookSamState, *args: Any, **kwargs: Any) -> Result:
        _check_state(state)
        value, grads, _ = plain_grad(params, still.init(params), *args, **kwargs)
        leaves, treedef = flatten(grads)
        added = _with_direction(leaves, treedef.flatten_up_to(state.direction), alpha)
        return value, treedef.unflatten(added), state._replace(count=_next(state))

    def choose(params: PyTree, state: LookSamState, *args: Any, **kwargs: Any) -> Result:
        _check_state(state)
        return jax.lax.cond(
            state.count % every == 0,
            lambda: sharp(params, state, *args, **kwargs),
            lambda: plain(params, state, *args, **kwargs),
        )

    if every == 1:
        return LookSam(init, sharp, sharp, sharp)
    return LookSam(init, choose, sharp, plain)


def _pair(clean: PyTree, perturbed: PyTree) -> PyTree:
    return jax.tree.map(lambda g, g_s: (g, g_s), clean, perturbed)


def _parted(params: PyTree, pairs: PyTree) -> tuple[PyTree, PyTree]:
    """The sharp gradient, and its part orthogonal to the clean one, of pairs of both."""
    _, treedef = flatten(params)
    clean, sharp = (list(x) for x in zip(*treedef.flatten_up_to(pairs), strict=True))
    return treedef.unflatten(sharp), treedef.unflatten(_orthogonal(sharp, clean))


def _check_state(state: Any) -> None:
    if not isinstance(state, LookSamState):
        raise UserError(
            f"state of type {type(state).__name__} is not allowed; it must be what init(params) or "
            "the last step returned: call fn(params, state, ...)"
        )


def _next(state: LookSamState) -> jax.Array:
    return optax.safe_increment(state.count)


def _orthogonal(sharp: list[jax.Array], clean: list[jax.Array]) -> list[jax.Array]:
    """The part of the sharp gradient orthogonal to the clean one; zero where it is mere rounding.

    It is taken from their difference, which has the same orthogonal part and loses fewer digits.
    """
    difference = [widen(s) - widen(c) for s, c in zip(sharp, clean, strict=True)]
    scale, norm = scale_and_norm([widen(c) for c in clean])
    unit = [widen(c) / scale / jnp.where(norm > 0, norm, 1) for c in clean]
    along = dot(difference, unit)
    rest = [d - along * u for d, u in zip(difference, unit, strict=True)]
    significant = _length(rest) > _ROUNDING * _length(difference)
    return [jnp.where(significant, r, 0).astype(s.dtype) for r, s in zip(rest, sharp, strict=True)]


def _with_direction(
    grads: list[jax.Array], direction: list[jax.Array], alpha: float
) -> list[jax.Array]:
    """Adds α (‖g‖ / ‖g_v‖) g_v to g; nothing where g_v = 0."""
    scale, norm = scale_and_norm([widen(v) for v in direction])
    factor = alpha * _length([widen(g) for g in grads]) / jnp.where(norm > 0, norm, 1)
    return [
        (widen(g) + factor * (widen(v) / scale)).astype(g.dtype)
        for g, v in zip(grads, direction, strict=True)
    ]


def _length(leaves: list[jax.Array]) -> jax.Array:
    scale, norm = scale_and_norm(leaves)
    return scale * norm


FIELDS = {
    "look_every": Field(
        1, integer(1), "LookSAM (Liu et al. 2022): steps between two perturbed ones; 1 = SAM."
    ),
    "look_alpha": Field(
        0.7, RADIUS, "LookSAM: length of the reused direction, relative to the gradient's."
    ),
}


def _build(recipe: Recipe, fields: Fields, setting: Setting) -> Recipe:
    every = fields["look_every"]

    def look(
        losses_fn: LossesFn, ascent: optax.GradientTransformation, options: Options
    ) -> LookSam:
        return looksam(
            mean_of(losses_fn),
            ascent,
            every=every,
            alpha=fields["look_alpha"],
            has_aux=True,
            axis_name=options.axis_name,
            m=options.m,
            batch_argnums=options.batch_argnums,
        )

    def init(ascent: optax.GradientTransformation, params: PyTree) -> LookSamState:
        return look(lambda params: (jnp.zeros(1), ()), ascent, recipe.options).init(params)

    def due(perturbed_steps: int) -> str:
        return REUSE if perturbed_steps % every else SHARP

    passes = {
        SHARP: lambda losses_fn, ascent, options: look(losses_fn, ascent, options).sharp,
        REUSE: lambda losses_fn, ascent, options: look(losses_fn, ascent, options).plain,
    }
    return recipe._replace(passes=passes, init=init, due=due, period=every, averages=True)


_OF_WHOLE_BATCH = "the direction that is reused must come from the whole batch"
MEMBER = Member(
    fields=FIELDS,
    used=lambda fields: fields["look_every"] > 1,
    build=_build,
    describe=lambda fields: [
        f"LookSAM with k = {fields['look_every']} and α = {fields['look_alpha']:g}"
    ],
    conflicts=[
        Conflict(
            "sparse", "look_every", "the steps between would keep a direction of another mask"
        ),
        Conflict(
            "gsam_alpha", "look_every", "both add a direction of their own to the same gradient"
        ),
        Conflict("esam_gamma", "look_every", _OF_WHOLE_BATCH),
        Conflict("ascent_fraction", "look_every", _OF_WHOLE_BATCH),
        Conflict("batch_stats", "look_every", "most steps have no perturbed pass"),
    ],
)
