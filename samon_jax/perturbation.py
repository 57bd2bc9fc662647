"""Gradients to the ascent step ε: every row of Table 9 as one optax transform (Eq. 5)."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from samon_jax._checks import Ascent, check_like_params, check_mask, check_params
from samon_jax._fields import number
from samon_jax._passes.trees import flatten, scale_and_norm, shift_into_range
from samon_jax.errors import UserError
from samon_jax.labels import BIAS, NORM_BIAS, label_params, path_strings
from samon_jax.masks import Mask, all_params, only_norm_in, random_mask, require_selection

PyTree = Any

RADIUS = number(0)


def _layer_norm(w: jax.Array, g: jax.Array, eta: float, is_bias: bool) -> jax.Array:
    scale, norm = scale_and_norm([w])
    return scale * norm


# T of a leaf w with gradient g, both in float32 or wider. The bool says whether the leaf is a bias
# for which the original ASAM has T = 1 (`normalize_bias=False`).
_OPERATORS: dict[str, Callable[[jax.Array, jax.Array, float, bool], jax.Array]] = {
    "identity": lambda w, g, eta, is_bias: jnp.ones((), w.dtype),
    "elementwise": lambda w, g, eta, is_bias: jnp.ones_like(w) if is_bias else jnp.abs(w) + eta,
    "layerwise": _layer_norm,
    # g² alone may overflow.
    "fisher": lambda w, g, eta, is_bias: 1 / jnp.hypot(jnp.ones((), w.dtype), eta**0.5 * g),
}
OPERATORS = tuple(_OPERATORS)

# For optax.inject_hyperparams(samon.perturbation, static_args=samon.STATIC_ARGS): all but ρ.
STATIC_ARGS = ("operator", "p", "eta", "normalize_bias", "mask")

# Table 9. It prints 1 + η for the biases of "el. ℓ2, orig."; section 3.2 and the ASAM paper use 1,
# and so does this.
_VARIANTS: dict[str, dict[str, Any]] = {
    "sam": {"operator": "identity"},
    "elementwise_l2": {"operator": "elementwise"},
    "elementwise_l2_orig": {"operator": "elementwise", "eta": 0.01, "normalize_bias": False},
    "elementwise_linf": {"operator": "elementwise", "p": math.inf},
    "layerwise_l2": {"operator": "layerwise"},
    "fisher": {"operator": "fisher", "eta": 1.0},
}
VARIANTS = tuple(_VARIANTS)


class PerturbationState(NamedTuple):
    """State of `perturbation`.

    Attributes:
      count: int32 scalar, the number of updates so far; only a schedule for ρ reads it.
    """

    count: jax.Array  # type: ignore[assignment]


def perturbation(
    rho: float | jax.Array | optax.Schedule,
    *,
    operator: str = "identity",
    p: float = 2,
    eta: float = 0.0,
    normalize_bias: bool = True,
    mask: Mask | PyTree = all_params,
) -> optax.GradientTransformation:
    """Turns gradients into SAM's ascent step ε.

    With g the gradient and T the diagonal operator, Eq. 5 of the SAM-ON paper:

        p = 2:    ε = ρ T² g / ‖T g‖₂        p = inf:    ε = ρ T sign(g)

    where T is, for a leaf w inside the mask, 1 (`identity`), |w| + η (`elementwise`), ‖w‖₂ of the
    leaf (`layerwise`) or (1 + η g²)^(-1/2) (`fisher`), and 0 outside it. The norm therefore runs
    over the selected leaves alone, and ‖ε‖ stays ρ for the identity however few they are. It is
    accumulated in float32 or wider, scaled against overflow and underflow; where ‖T g‖ = 0, ε = 0.

    The update points uphill: add it to the parameters. It has the parameters' dtype. As the
    `adv_optimizer` of `optax.contrib.sam`, which subtracts, chain it with `optax.scale(-1)`.

    Args:
      rho: radius ρ >= 0, or an optax schedule of the number of updates, whose values are not
        checked.
      operator: "identity", "elementwise", "layerwise" or "fisher".
      p: 2 or `math.inf`.
      eta: η >= 0 of the elementwise and fisher operators.
      normalize_bias: False sets T = 1 for the biases of the elementwise operator (original ASAM).
      mask: `callable(params)` to a pytree of bools, or that pytree. A leaf with the Python value
        False is left out when the program is built, so that XLA deletes the work of its gradient if
        nothing else uses it.

    Returns:
      An `optax.GradientTransformation`; `update` needs `params`.

    Raises:
      UserError: an argument is not allowed; in `init` and `update`, the mask selects nothing.

    Example:
      >>> import jax.numpy as jnp, samon_jax as samon
      >>> params = {"dense": {"kernel": jnp.ones(2)}, "norm": {"scale": jnp.ones(2)}}
      >>> grads = {"dense": {"kernel": jnp.ones(2)}, "norm": {"scale": jnp.array([3.0, 4.0])}}
      >>> ascent = samon.perturbation(0.5, mask=samon.only_norm)
      >>> ascent.update(grads, ascent.init(params), params)[0]["norm"]["scale"].tolist()
      [0.30000001192092896, 0.4000000059604645]

    References:
      Müller et al. 2023, Normalization Layers Are All That SAM Needs, section 3.2 and Table 9;
      Foret et al. 2021 (SAM), Kwon et al. 2021 (ASAM), Kim et al. 2022 (Fisher SAM).
    """
    _check_arguments(rho, operator, p, eta, mask)

    def init(params: PyTree) -> PerturbationState:
        check_params(params)
        _evaluate_mask(mask, params)
        return PerturbationState(jnp.zeros((), jnp.int32))

    def update(
        grads: PyTree, state: PerturbationState, params: PyTree | None = None
    ) -> tuple[PyTree, PerturbationState]:
        if params is None:
            raise UserError("params=None: samon_jax.perturbation needs the parameters in update")
        check_params(params)
        if not isinstance(state, PerturbationState):
            raise UserError(
                f"state of type {type(state).__name__} is not allowed; it must be what "
                "init(params) or the last update returned: call update(grads, state, params)"
            )
        # An integer as wide as JAX allows: schedules divide it, and float64 needs float64 back.
        radius = rho(state.count.astype(int)) if callable(rho) else rho
        selection = _evaluate_mask(mask, params)
        is_bias = jax.tree.map(
            lambda label: label in (BIAS, NORM_BIAS) and not normalize_bias, label_params(params)
        )
        leaves, treedef = flatten(params)
        flat = zip(
            leaves,
            _like(treedef, grads, params),
            treedef.flatten_up_to(selection),
            treedef.flatten_up_to(is_bias),
            strict=True,
        )
        terms = _in_range([_operate(w, g, m, b, operator, eta) for w, g, m, b in flat])
        if p == 2:
            directions = _normalize([None if term is None else term[0] * term[1] for term in terms])
        else:
            directions = [None if term is None else jnp.sign(term[1]) for term in terms]
        epsilon = [
            jnp.zeros_like(w) if term is None else (radius * term[0] * u).astype(w.dtype)
            for w, term, u in zip(leaves, terms, directions, strict=True)
        ]
        return treedef.unflatten(epsilon), PerturbationState(optax.safe_increment(state.count))

    return Ascent(init, update)


def variant(
    name: str,
    rho: float | jax.Array | optax.Schedule,
    mask: Mask | PyTree = all_params,
    *,
    eta: float | None = None,
) -> optax.GradientTransformation:
    """A published SAM variant by name, with the η and p of Table 9.

    Args:
      name: "sam", "elementwise_l2", "elementwise_l2_orig", "elementwise_linf", "layerwise_l2" or
        "fisher".
      rho: radius ρ >= 0 or an optax schedule. Each variant has its own scale: see Table 7.
      mask: as in `perturbation`.
      eta: η instead of Table 9's, for the variants that have one.

    Returns:
      `perturbation(rho, mask=mask, ...)`.

    Raises:
      UserError: the variant does not exist, or `eta` is given and it has none.

    Example:
      >>> import samon_jax as samon
      >>> ascent = samon.variant("layerwise_l2", 0.2, mask=samon.only_norm)
    """
    if name not in _VARIANTS:
        raise UserError(f"variant={name!r} does not exist; choose one of {', '.join(VARIANTS)}")
    settings = dict(_VARIANTS[name])
    if eta is not None:
        if settings["operator"] not in ("elementwise", "fisher"):
            raise UserError(f"eta={eta} has no effect on variant={name!r}; leave it out")
        settings["eta"] = eta
    return perturbation(rho, mask=mask, **settings)


def _operate(
    w: jax.Array, g: jax.Array, selected: Any, is_bias: bool, operator: str, eta: float
) -> tuple[jax.Array, jax.Array] | None:
    """T and g of one leaf in float32 or wider; None if the mask leaves it out."""
    if isinstance(selected, bool | np.bool_) and not selected:
        return None
    dtype = jnp.promote_types(jnp.promote_types(w.dtype, g.dtype), jnp.float32)
    w, g = w.astype(dtype), g.astype(dtype)
    t = _OPERATORS[operator](w, g, eta, is_bias)
    if isinstance(selected, bool | np.bool_):
        return t, g
    return jnp.where(selected, t, 0), g


def _in_range(terms: list[Any]) -> list[Any]:
    """The same T and g, all g times one power of two where their largest is out of range.

    Direction and sign, which are all that is made of them, stay; what is squared, inverted or
    denormal on the way neither overflows nor vanishes.
    """
    chosen = [term for term in terms if term is not None]
    if any(g.dtype != jnp.float32 for _, g in chosen):
        return terms  # float64, where there is room enough
    # What T deletes does not count, but one NaN still makes all of ε NaN.
    acting = [jnp.where((t == 0) & jnp.isfinite(g), 0, g) for t, g in chosen]
    shifted = iter(shift_into_range(acting))
    return [None if term is None else (term[0], next(shifted)) for term in terms]


def _normalize(leaves: list[jax.Array | None]) -> list[Any]:
    """Divides the leaves by their joint Euclidean norm; zeros stay zeros, one NaN makes all NaN."""
    scale, norm = scale_and_norm([x for x in leaves if x is not None])
    norm = jnp.where(norm == 0, 1, norm)
    return [None if x is None else x / scale / norm for x in leaves]


def _evaluate_mask(mask: Mask | PyTree, params: PyTree) -> PyTree:
    # An Equinox tree of bools is callable too; a function is a leaf of its own.
    if callable(mask) and jax.tree_util.all_leaves([mask]):
        name = getattr(mask, "__name__", repr(mask))
        return require_selection(check_mask(mask(params), params, name), params, name)
    name = "given as a tree"
    return require_selection(check_mask(mask, params, name), params, name)


def _like(treedef: Any, grads: PyTree, params: PyTree) -> list[jax.Array]:
    """The leaves of the gradients, one for each parameter."""
    try:
        leaves = treedef.flatten_up_to(grads)
    except (ValueError, TypeError):
        check_like_params("grads", grads, params)
        raise
    for path, leaf in zip(path_strings(params), leaves, strict=True):
        if not hasattr(leaf, "dtype"):
            raise UserError(f"grads {path} of type {type(leaf).__name__} must be an array")
    return leaves


def _check_arguments(rho: Any, operator: str, p: Any, eta: Any, mask: Any) -> None:
    traced = [n for n, v in (("p", p), ("mask", mask)) if isinstance(v, jax.Array)]
    if traced:
        raise UserError(
            f"{' and '.join(traced)} must be known when the program is built, not a JAX array; "
            "with optax.inject_hyperparams(samon_jax.perturbation), pass "
            "static_args=samon_jax.STATIC_ARGS"
        )
    if operator not in OPERATORS:
        raise UserError(
            f"operator={operator!r} does not exist; choose one of {', '.join(OPERATORS)}"
        )
    if p not in (2, math.inf):
        raise UserError(f"p={p!r} is not supported; choose 2 or math.inf")
    if mask is None or (isinstance(mask, str | int | float) and not isinstance(mask, bool)):
        raise UserError(f"mask={mask!r} must be a function such as samon_jax.only_norm, or a tree")
    for maker, call in ((only_norm_in, "('stage3')"), (random_mask, "(key, 0.5)")):
        if mask is maker:
            raise UserError(f"mask={maker.__name__} makes a mask: {maker.__name__}{call}")
    check_radius("rho", rho)
    check_radius("eta", eta)


def check_radius(name: str, value: float | jax.Array | Callable[..., Any]) -> None:
    """Raises a UserError unless `value` is finite and >= 0; schedules and traced values pass."""
    if not callable(value) and not isinstance(value, jax.core.Tracer):
        RADIUS(name, value)
