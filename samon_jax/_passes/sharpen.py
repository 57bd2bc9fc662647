"""A loss to its sharpness-aware gradient: the road that all methods with an ε walk."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from samon_jax._checks import SinglePass, check_function, check_state, check_transform
from samon_jax._passes.calls import Call, Leaves, Options, bind
from samon_jax._passes.collectives import pmean
from samon_jax._passes.examples import count_examples, share_of
from samon_jax._passes.footprint import footprint
from samon_jax._passes.m_sharpness import mean_over_groups, sharing
from samon_jax._passes.one_pass import one_pass
from samon_jax._passes.parts import Parts, split_call
from samon_jax._passes.two_passes import Passes, two_passes
from samon_jax.errors import UserError

PyTree = Any
GradFn = Callable[..., tuple[Any, PyTree, PyTree]]

AUX_FROM = ("clean", "perturbed", "both")


def sharpen(
    loss_fn: Callable[..., Any], ascent: optax.GradientTransformation, options: Options
) -> GradFn:
    """Turns a loss into a function to its value, the gradient at w + ε, and the ascent's state.

    Args:
      loss_fn: as for `value_and_grad`.
      ascent: transform from gradients to ε.
      options: how.

    Returns:
      `fn(params, ascent_state, *args, **kwargs) -> (value, grads, ascent_state)`.

    Raises:
      UserError: an option is not allowed.
    """
    check_function("loss_fn", loss_fn)
    check_transform("ascent", ascent)
    options = check_options(options)
    if isinstance(ascent, SinglePass):
        return _sharpen_in_one_pass(loss_fn, ascent, options)

    def sharp_value_and_grad(
        params: PyTree, ascent_state: PyTree, *args: Any, **kwargs: Any
    ) -> tuple[Any, PyTree, PyTree]:
        call = bind(loss_fn, params, args, kwargs, options)
        check_state("ascent_state", ascent, ascent_state, call.params)
        count, devices = sharing(options.m, call.batch, options.axis_name)
        moves, reads = footprint(ascent, ascent_state, call.params)
        if options.combine is not None:
            reads = [True] * len(reads)
        parts = split_call(call, count, [a or b for a, b in zip(moves, reads, strict=True)])

        def update(grads: Leaves) -> tuple[Leaves, PyTree]:
            """ε from gradients, and the new state."""
            epsilon, state = ascent.update(call.treedef.unflatten(grads), ascent_state, call.params)
            return call.treedef.flatten_up_to(epsilon), state

        def ascend(grads: Leaves) -> tuple[Leaves, PyTree]:
            """ε of every copy from the gradients of every copy, on this device, and the state."""
            if devices > 1 and options.axis_name is not None:
                grads = mean_over_groups(grads, options.axis_name, devices)
            return parts.ascend(update, grads)

        passes = two_passes(
            parts.losses,
            parts.copies(),
            moves,
            reads,
            ascend,
            options.reuse_prefix,
            _ascent_loss(parts, options),
            _second_loss(call, options),
        )
        return _finish(parts, passes, options)

    return sharp_value_and_grad


def _sharpen_in_one_pass(
    loss_fn: Callable[..., Any], ascent: SinglePass, options: Options
) -> GradFn:
    """The same where ε is known before the loss; there is no gradient at w."""
    for name, asked in (
        ("combine", options.combine is not None),
        ("ascent_fraction", options.ascent_fraction < 1),
        ("gamma", options.select is not None),
    ):
        if asked:
            raise UserError(f"{name} is not allowed with a single-pass ascent: it has no pass at w")

    def value_and_grad_at_epsilon(
        params: PyTree, ascent_state: PyTree, *args: Any, **kwargs: Any
    ) -> tuple[Any, PyTree, PyTree]:
        call = bind(loss_fn, params, args, kwargs, options)
        check_state("ascent_state", ascent, ascent_state, call.params)
        count = sharing(options.m, call.batch, options.axis_name).parts
        parts = split_call(call, count, [False] * len(call.leaves))
        loss, aux, grads, state = one_pass(parts, ascent, ascent_state, options.axis_name)
        aux = (aux, aux) if options.aux_from == "both" else aux
        return (loss, aux) if options.has_aux else loss, call.treedef.unflatten(grads), state

    return value_and_grad_at_epsilon


def check_options(options: Options) -> Options:
    """The options with `why` filled in; raises a UserError unless they are allowed."""
    check_aux_from(options.aux_from)
    if options.why is None and options.m is not None:
        return dataclasses.replace(options, why=f"m={options.m}")
    if options.why is None and options.ascent_fraction < 1:
        return dataclasses.replace(options, why=f"ascent_fraction={options.ascent_fraction}")
    return options


def check_aux_from(aux_from: str) -> None:
    """Raises a UserError unless `aux_from` names a pass, or both."""
    if aux_from not in AUX_FROM:
        raise UserError(f"aux_from={aux_from!r} must be one of {', '.join(AUX_FROM)}")


def _ascent_loss(
    parts: Parts, options: Options
) -> Callable[[Leaves], tuple[jax.Array, PyTree]] | None:
    """The loss of the examples from which ε is made; None if that is all of them."""
    if options.ascent_fraction == 1 or options.why is None:
        return None
    examples = count_examples(parts.call.batch, options.why) // parts.number
    share = share_of(options.ascent_fraction, examples)
    return functools.partial(parts.losses, examples=share) if share < examples else None


def _second_loss(
    call: Call, options: Options
) -> Callable[[Leaves, PyTree, PyTree], tuple[jax.Array, PyTree]] | None:
    """The loss of the examples that are chosen for the second pass; None if that is all of them."""
    choose = None if options.select is None else options.select(call.batch)
    if choose is None:
        return None
    return lambda moved, clean, seen: call.loss(moved, choose(call.batch, clean, seen))


@jax.custom_jvp
def _end(loss: jax.Array, leaves: Leaves) -> jax.Array:
    """The loss, which cannot be differentiated: its gradient comes with it."""
    return loss


@_end.defjvp
def _refuse_derivative(primals: Any, tangents: Any) -> Any:
    raise UserError(
        "the loss that value_and_grad returns cannot be differentiated: its gradient is the second "
        "result; differentiate loss_fn itself"
    )


def _finish(parts: Parts, passes: Passes, options: Options) -> tuple[Any, PyTree, PyTree]:
    """What the caller gets: value, gradient over all parts and devices, state."""
    treedef = parts.call.treedef
    grads = parts.total(passes.grads)
    if options.combine is not None:
        clean = treedef.unflatten(parts.mean(passes.clean_grads))
        grads = treedef.flatten_up_to(options.combine(clean, treedef.unflatten(grads)))
    if options.axis_name is not None and options.average:
        grads = pmean(grads, options.axis_name)
    loss = _end(passes.losses.mean(), parts.call.leaves)
    clean_aux, perturbed_aux = passes.aux
    if not options.has_aux:
        return loss, treedef.unflatten(grads), passes.state
    aux = {"clean": clean_aux, "perturbed": perturbed_aux, "both": passes.aux}[options.aux_from]
    return (loss, aux), treedef.unflatten(grads), passes.state
