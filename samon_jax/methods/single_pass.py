"""ε from gradients of earlier steps: SAM, or SAM-ON, at the price of SGD (Becker et al. 2024)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from samon_jax._checks import SinglePass, check_transform
from samon_jax._fields import Field, number, one_of
from samon_jax._passes.footprint import footprint
from samon_jax._passes.trees import flatten
from samon_jax.errors import UserError
from samon_jax.methods._recipe import Conflict, Fields, Member, Recipe, Setting
from samon_jax.methods.method import Now

PyTree = Any

# What of a gradient is remembered, and whether ε points along it (uphill) or against it.
_REMEMBER: dict[str, tuple[Callable[[jax.Array, jax.Array, float], jax.Array], int]] = {
    "previous": (lambda held, g, decay: g, 1),
    "momentum": (lambda held, g, decay: decay * held + g, -1),
    "average": (lambda held, g, decay: decay * held + (1 - decay) * g, 1),
}
DIRECTIONS = tuple(_REMEMBER)


class SinglePassState(NamedTuple):
    """State of `single_pass`, the same on every device.

    Attributes:
      memory: what is remembered of the gradients, with the structure of the parameters; None for
        leaves that ε does not need, so that `mask=only_norm` keeps norm parameters alone.
      ascent_state: state of the transform that makes ε.
    """

    memory: PyTree
    ascent_state: PyTree


def single_pass(
    ascent: optax.GradientTransformation, direction: str = "momentum", *, decay: float = 0.9
) -> SinglePass:
    """Makes ε from the gradients of earlier steps, so that a step needs one pass instead of two.

    With g_t the gradient at w_t + ε_t, and T_w of `ascent` left out, ε of the next step is

        previous:   ρ g_t / ‖g_t‖
        average:    ρ m_t / ‖m_t‖      m_t = β m_{t-1} + (1 - β) g_t
        momentum:  -ρ v_t / ‖v_t‖      v_t = β v_{t-1} + g_t

    "momentum" is Momentum-SAM. Mind its sign, which is not SAM's: SGD with momentum β moves along
    -v_t, so that ε looks ahead as Nesterov's method does. Sign, length, ε = 0 in the first step and
    the order (gradient at w + ε, then v_t, the step, the next ε) are those of the authors'
    algorithm and of their optimizer/msam.py, `p.sub_(momentum_buffer, alpha=rho / norm)`. In one
    thing we differ: their buffer is the base optimizer's, with its weight decay; v_t here is of the
    loss gradients alone, for ε does not know the optimizer. With AdamW they use its first moment,
    which is v_t with β = b1 up to its length. But for the sign and rounding, "momentum" and
    "average" give the same ε, except with `operator="fisher"`, which is not blind to lengths.

    In the first step ε = 0. A step costs what SGD's does. `value_and_grad` returns the loss (and
    aux) at w + ε: that at w is not known. With `axis_name` the averaged gradient is remembered, so
    that all devices share ε, and so do the parts of a batch with `m`; there is no `combine`, no
    `ascent_fraction`, and no per-example selection or step in between (`esam`, `looksam`). In
    `sam`, the gradient handed to `update` is not read.

    Args:
      ascent: transform from gradients to ε, for example `variant("sam", 0.1, mask=only_norm)`, also
        inside `stochastic_perturbation`.
      direction: "previous", "momentum" or "average".
      decay: β in [0, 1); "previous" does not read it. Becker et al. use 0.9, as their SGD.

    Returns:
      An optax transform whose ε does not depend on the gradients of its step.

    Raises:
      UserError: an argument is not allowed.

    Example:
      >>> import jax, jax.numpy as jnp, samon_jax as samon
      >>> ascent = samon.single_pass(samon.variant("sam", rho=0.5), "previous")
      >>> step = jax.jit(samon.value_and_grad(lambda params: params["w"] ** 2, ascent))
      >>> params = {"w": jnp.array(1.0)}
      >>> loss, grads, state = step(params, ascent.init(params))
      >>> float(loss), float(grads["w"])  # nothing to remember yet
      (1.0, 2.0)
      >>> loss, grads, state = step(params, state)
      >>> float(loss), float(grads["w"])  # at w + 0.5
      (2.25, 3.0)

    References:
      Becker et al. 2024, Momentum-SAM: Sharpness Aware Minimization without Computational Overhead,
      https://arxiv.org/abs/2401.12033, and its code, https://github.com/MarlonBecker/MSAM, on
      "momentum"; "previous" and "average" are ours: the same idea with SAM's sign.
    """
    check_transform("ascent", ascent)
    one_of(*DIRECTIONS)("direction", direction)
    FIELDS["direction_decay"].check("decay", decay)
    remember, sign = _REMEMBER[direction]

    def init(params: PyTree) -> SinglePassState:
        state = ascent.init(params)
        leaves, treedef = flatten(params)
        reads = footprint(ascent, state, params).reads
        held = [jnp.zeros_like(w) if r else None for w, r in zip(leaves, reads, strict=True)]
        return SinglePassState(treedef.unflatten(held), state)

    def update(
        grads: PyTree, state: SinglePassState, params: PyTree | None = None
    ) -> tuple[PyTree, SinglePassState]:
        if params is None:
            raise UserError("params=None: samon_jax.single_pass needs the parameters in update")
        leaves, treedef = flatten(params)
        held = treedef.flatten_up_to(state.memory)
        full = [
            jnp.zeros_like(w) if h is None else sign * h for w, h in zip(leaves, held, strict=True)
        ]
        epsilon, ascent_state = ascent.update(treedef.unflatten(full), state.ascent_state, params)
        memory = [
            None if h is None else remember(h, g.astype(h.dtype), decay).astype(h.dtype)
            for h, g in zip(held, treedef.flatten_up_to(grads), strict=True)
        ]
        return epsilon, SinglePassState(treedef.unflatten(memory), ascent_state)

    return SinglePass(init, update)


FIELDS = {
    "direction": Field(
        "gradient",
        one_of("gradient", *DIRECTIONS),
        'What the perturbation follows: the "gradient" of the same batch, which is SAM; or, in one '
        'pass, that of the "previous" step, the "momentum" against its sign (Momentum-SAM, Becker '
        'et al. 2024), or the "average" of all gradients.',
    ),
    "direction_decay": Field(
        0.9, number(0, 1, below=True), "Decay per step of the momentum, or of the average."
    ),
}


def _build(recipe: Recipe, fields: Fields, setting: Setting) -> Recipe:
    inner = recipe.ascent

    def ascent(now: Now) -> SinglePass:
        return single_pass(inner(now), fields["direction"], decay=fields["direction_decay"])

    return recipe._replace(ascent=ascent, averages=True)


def _describe(fields: Fields) -> list[str]:
    direction, decay = fields["direction"], fields["direction_decay"]
    if direction == "previous":
        return ["ascent along the previous gradient"]
    name = "against the momentum" if direction == "momentum" else "along the average gradient"
    return [f"ascent {name}, β = {decay:g}"]


_NO_PASS_AT_W = "it has no pass at w"
MEMBER = Member(
    fields=FIELDS,
    used=lambda fields: fields["direction"] != "gradient",
    build=_build,
    describe=_describe,
    conflicts=[
        *(
            Conflict(field, "direction", _NO_PASS_AT_W)
            for field in ("gsam_alpha", "esam_gamma", "look_every", "ascent_fraction")
        ),
        Conflict("batch_stats", "direction", "it has one pass, not two"),
        Conflict("sparse", "direction", "the mask would be that of another gradient"),
    ],
)
