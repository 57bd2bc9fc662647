"""ESAM: a random part of ε, and the second gradient on the examples it hurts (Du et al. 2022)."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from samon_jax._checks import Ascent, check_function, check_inner
from samon_jax._fields import Field, number
from samon_jax._passes.calls import Choose, Options, take_apart
from samon_jax._passes.examples import count_examples, positions, share_of
from samon_jax._passes.m_sharpness import AxisName
from samon_jax._passes.sharpen import sharpen
from samon_jax._passes.trees import flatten
from samon_jax.methods._recipe import Conflict, Fields, Member, Recipe, Setting, keys_of
from samon_jax.methods.method import SHARP, LossesFn, Now

PyTree = Any


class StochasticState(NamedTuple):
    """State of `stochastic_perturbation`.

    Attributes:
      count: int32 scalar, the number of updates so far.
      key: raw key data, from which every update draws with `count` folded in.
      ascent_state: state of the wrapped transform.
    """

    count: jax.Array  # type: ignore[assignment]
    key: jax.Array
    ascent_state: PyTree


def stochastic_perturbation(
    ascent: optax.GradientTransformation, beta: float, key: jax.Array
) -> optax.GradientTransformation:
    """Keeps every entry of ε with probability β and divides it by β: ESAM's SWP.

    ε keeps its mean over the draws and grows in length, to about ρ / sqrt(β). The entries change
    with every update; all devices and all parts of a batch draw the same ones.

    A leaf that `ascent` never moves stays a static zero, so that the first pass of
    `mask=only_norm` keeps its saving. The draw saves nothing by itself: it is not known when the
    program is built.

    Args:
      ascent: transform from gradients to ε.
      beta: β in (0, 1]; 1 leaves ε as it is. Du et al. use 0.6 with ResNet-18 on CIFAR.
      key: `jax.random.key`.

    Returns:
      An optax transform from gradients to ε, for `value_and_grad`, `esam`, `looksam` or `sam`.

    Raises:
      UserError: beta is outside (0, 1].

    Example:
      >>> import jax, jax.numpy as jnp, samon_jax as samon
      >>> sam = samon.variant("sam", rho=0.1)
      >>> ascent = samon.stochastic_perturbation(sam, beta=0.5, key=jax.random.key(0))
      >>> params = {"w": jnp.ones(400)}
      >>> epsilon, state = ascent.update(params, ascent.init(params), params)  # 0.1 / 20 each
      >>> [f"{x:.2f}" for x in jnp.unique(epsilon["w"])]
      ['0.00', '0.01']

    References:
      Du et al. 2022, Efficient Sharpness-aware Minimization for Improved Training of Neural
      Networks, section 3.1 (stochastic weight perturbation).
    """
    check_inner(ascent)
    FIELDS["esam_beta"].check("beta", beta)

    def init(params: PyTree) -> StochasticState:
        count = jnp.zeros((), jnp.int32)
        return StochasticState(count, jax.random.key_data(key), ascent.init(params))

    def update(
        grads: PyTree, state: StochasticState, params: PyTree | None = None
    ) -> tuple[PyTree, StochasticState]:
        epsilon, ascent_state = ascent.update(grads, state.ascent_state, params)
        if beta < 1:
            step_key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.count)
            leaves, treedef = flatten(epsilon)
            epsilon = treedef.unflatten(
                _thin(e, beta, jax.random.fold_in(step_key, i)) for i, e in enumerate(leaves)
            )
        count = optax.safe_increment(state.count)
        return epsilon, state._replace(count=count, ascent_state=ascent_state)

    return Ascent(init, update)


def _thin(epsilon: jax.Array, beta: float, key: jax.Array) -> jax.Array:
    keep = jax.random.bernoulli(key, beta, epsilon.shape)
    return jnp.where(keep, epsilon / beta, 0).astype(epsilon.dtype)


def esam(
    losses_fn: Callable[..., Any],
    ascent: optax.GradientTransformation,
    *,
    gamma: float = 1.0,
    has_aux: bool = False,
    axis_name: AxisName | None = None,
    batch_argnums: int | Sequence[int] | None = None,
    reuse_prefix: bool = True,
    aux_from: str = "clean",
) -> Callable[..., tuple[Any, PyTree, PyTree]]:
    """ESAM's `value_and_grad`: the second gradient is that of the sharpness-sensitive examples.

    A first pass gives the losses of all n examples at w and ε; a forward pass gives them at w + ε;
    of the round(γ n) examples whose losses rise most (at least one), the gradient of the mean loss
    at w + ε is returned (SDS). With `ascent=stochastic_perturbation(...)`, which is SWP, it is the
    whole of ESAM.

    In units of a forward pass, a step costs 3 + 1 + 3 γ instead of SAM's 6: less than SAM for
    γ < 2/3. With γ = 1 there is nothing to select, no forward pass in between, and the function is
    `value_and_grad` of the mean loss. An `ascent` with `mask=only_norm` leaves the gradients of the
    weights out of the first pass here too: 2 + 1 + 3 γ.

    How it goes with the rest: `stochastic_perturbation`, masks, `ssam_f` and `ssam_d` are choices
    of `ascent`. There is no `m` (one ε for each device), no `combine` and no `ascent_fraction`.

    Args:
      losses_fn: `losses_fn(params, *args, **kwargs)` returns the losses of the examples [n], or
        `(losses, aux)`. In the last pass it gets the selected examples alone, and BatchNorm
        statistics are theirs.
      ascent: transform from gradients to ε.
      gamma: γ in (0, 1], share of the examples of which the second gradient is taken. Du et al. use
        0.5 with ResNet-18 on CIFAR.
      has_aux: whether `losses_fn` returns `(losses, aux)`, `aux` being a pytree of arrays.
      axis_name: mapped axis over devices. Every device computes ε from its own examples and selects
        among them; the gradient at w + ε is averaged over the axis. The value is this device's own.
      batch_argnums: which of `args` hold examples on the leading axis of every leaf, counted from 0
        after `params`; read only if γ < 1. None is the only one there is.
      reuse_prefix: share what the perturbation cannot reach between the passes over all examples.
      aux_from: "clean" (at w), "perturbed" (of the pass whose gradient is returned: at w + ε, of
        the selected examples, in descending order of the rise of their losses), or "both", a pair
        of them.

    Returns:
      A function `fn(params, ascent_state, *args, **kwargs) -> (value, grads, ascent_state)`, as
      that of `value_and_grad`. `value` is the mean loss of all examples at w, or `(loss, aux)`.

    Raises:
      UserError: an argument is not allowed, or the arguments that hold examples are not known.
      TypeError: the losses are not one number for each example.

    Example:
      >>> import jax, jax.numpy as jnp, samon_jax as samon
      >>> def losses_fn(params, x):
      ...     return (params["scale"] * x - 1) ** 2
      >>> params, x = {"scale": jnp.ones(())}, jnp.array([1.0, 3.0])
      >>> ascent = samon.variant("sam", rho=0.5, mask=samon.all_params)
      >>> step = jax.jit(samon.esam(losses_fn, ascent, gamma=0.5))
      >>> loss, grads, ascent_state = step(params, ascent.init(params), x)
      >>> float(loss), float(grads["scale"])  # x = 3 alone: 2 * 3 * (1.5 * 3 - 1)
      (2.0, 21.0)

    References:
      Du et al. 2022, section 3.2 (sharpness-sensitive data selection) and algorithm 1.
    """
    FIELDS["esam_gamma"].check("gamma", gamma)
    check_function("losses_fn", losses_fn)
    why = f"gamma={gamma}"

    def mean_loss(params: PyTree, *args: Any, **kwargs: Any) -> tuple[jax.Array, Any]:
        result = losses_fn(params, *args, **kwargs)
        losses, aux = take_apart(result, has_aux, "losses_fn")
        examples = [args[i] for i in positions(batch_argnums, len(args), why)] if gamma < 1 else ()
        losses = _check_losses(losses, count_examples(examples, why) if gamma < 1 else None)
        return losses.mean(), (losses, aux)

    sharp = sharpen(
        mean_loss,
        ascent,
        Options(
            has_aux=True,
            axis_name=axis_name,
            batch_argnums=batch_argnums,
            reuse_prefix=reuse_prefix,
            aux_from=aux_from,
            select=functools.partial(_select, gamma, why) if gamma < 1 else None,
            why=why if gamma < 1 else None,
        ),
    )

    def esam_value_and_grad(
        params: PyTree, ascent_state: PyTree, *args: Any, **kwargs: Any
    ) -> tuple[Any, PyTree, PyTree]:
        (loss, seen), grads, state = sharp(params, ascent_state, *args, **kwargs)
        aux = tuple(of_pass for _, of_pass in seen) if aux_from == "both" else seen[1]
        return (loss, aux) if has_aux else loss, grads, state

    return esam_value_and_grad


def _select(gamma: float, why: str, batch: list[Any]) -> Choose | None:
    """How to choose the examples whose losses rise most; None where that is all of them."""
    size = count_examples(batch, why)
    count = share_of(gamma, size)

    def choose(batch: list[Any], clean: PyTree, perturbed: PyTree) -> list[Any]:
        rise = perturbed[0] - clean[0]
        chosen = jax.lax.top_k(rise, count)[1]
        return [jax.tree.map(lambda x: jnp.take(x, chosen, axis=0), part) for part in batch]

    return choose if count < size else None


def _check_losses(losses: Any, count: int | None = None) -> jax.Array:
    shape = jnp.shape(losses)
    if len(shape) != 1 or count not in (None, *shape):
        wanted = "one loss for each example" if count is None else f"losses of shape ({count},)"
        raise TypeError(f"losses_fn must return {wanted}, not shape {shape}")
    return jnp.asarray(losses)


FIELDS = {
    "esam_beta": Field(
        1.0,
        number(0, 1, above=True),
        "ESAM (Du et al. 2022): probability with which an entry of the perturbation is kept; 1 = "
        "SAM.",
    ),
    "esam_gamma": Field(
        1.0,
        number(0, 1, above=True),
        "ESAM: share of the batch in the second pass, the most sensitive part; 1 = SAM.",
    ),
}


def _build(recipe: Recipe, fields: Fields, setting: Setting) -> Recipe:
    beta, gamma, ascent = fields["esam_beta"], fields["esam_gamma"], recipe.ascent

    def thinned(now: Now) -> optax.GradientTransformation:
        return stochastic_perturbation(ascent(now), beta, keys_of(now)[0])

    def on_selected(
        losses_fn: LossesFn, ascent: optax.GradientTransformation, options: Options
    ) -> Callable[..., Any]:
        return esam(
            losses_fn,
            ascent,
            gamma=gamma,
            has_aux=True,
            axis_name=options.axis_name,
            batch_argnums=options.batch_argnums,
            reuse_prefix=options.reuse_prefix,
            aux_from=options.aux_from,
        )

    if beta < 1:
        recipe = recipe._replace(ascent=thinned)
    if gamma < 1:
        recipe = recipe._replace(passes=recipe.passes | {SHARP: on_selected}, averages=True)
    return recipe


MEMBER = Member(
    fields=FIELDS,
    used=lambda fields: min(fields["esam_beta"], fields["esam_gamma"]) < 1,
    build=_build,
    describe=lambda fields: [
        f"ESAM with β = {fields['esam_beta']:g} and γ = {fields['esam_gamma']:g}"
    ],
    conflicts=[
        Conflict(
            "m",
            "esam_gamma",
            "it chooses among all examples of a device, which share one perturbation",
        ),
        Conflict(
            "gsam_alpha", "esam_gamma", "the two gradients would belong to different examples"
        ),
        Conflict("ascent_fraction", "esam_gamma", "it needs the clean loss of every example"),
    ],
)
