"""How a method is put together from its fields: each member of the family changes its part."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

from samon_jax._fields import Field
from samon_jax._passes.calls import Options
from samon_jax.errors import UserError
from samon_jax.masks import Mask
from samon_jax.methods.method import LearningRate, LossesFn, Now

PyTree = Any
Fields = Mapping[str, Any]

_NO_STEP = 2**32 - 1  # the keys of steps are folded from their number, which never gets so far


class Setting(NamedTuple):
    """What a method needs to know of a run besides its fields.

    Attributes:
      epochs: of the run.
      steps_per_epoch: steps in one of them.
      learning_rate: of the run; read only where a radius follows it.
      trainable: mask of what is trained; None for everything.
      axis_name: mapped axis over devices, if any.
    """

    epochs: int
    steps_per_epoch: int
    learning_rate: LearningRate | None = None
    trainable: Mask | None = None
    axis_name: str | None = None

    def perturbed_epochs(self, fields: Fields) -> range:
        """The epochs with a perturbation, counted from 0."""
        return range(fields["start"], fields["stop"] or self.epochs)


# `(losses_fn, ascent, options) -> fn(params, state, batch) -> (value, grads, state)`
Passes = Callable[[LossesFn, optax.GradientTransformation, Options], Callable[..., Any]]


class Recipe(NamedTuple):
    """A method that is being put together.

    Attributes:
      ascent: run and step to the transform from gradients to ε.
      options: of the passes; they always have an aux.
      passes: every kind of perturbed step to its gradient.
      init: transform and parameters to the state.
      due: perturbed steps done to the kind of the next one.
      period: after so many perturbed steps, kinds repeat; rare ones need not.
      averages: whether the passes average over the devices, because they go on with the mean.
    """

    ascent: Callable[[Now], optax.GradientTransformation]
    options: Options
    passes: dict[str, Passes]
    init: Callable[[optax.GradientTransformation, PyTree], PyTree]
    due: Callable[[int], str]
    period: int = 1
    averages: bool = False


def keys_of(now: Now) -> jax.Array:
    """Two keys of a run, for entries of ε and for masks: [2]; the same in every step."""
    return jax.random.split(jax.random.fold_in(jax.random.key(now.seed), _NO_STEP))


class Conflict(NamedTuple):
    """Two fields of which one must have its default.

    Attributes:
      field: the one to change.
      other: the one it contradicts.
      reason: why.
      allowed: what `field` may be all the same; None = its default.
    """

    field: str
    other: str
    reason: str
    allowed: Any = None


class Member(NamedTuple):
    """A member of the family, as its file declares it.

    Attributes:
      fields: what it is configured by, with neutral defaults.
      used: whether fields ask for it.
      build: changes a recipe; called if it is used.
      describe: what sets it apart from plain SAM, in a few words each; called if it is used.
      conflicts: combinations that it refuses.
    """

    fields: Mapping[str, Field]
    used: Callable[[Fields], bool]
    build: Callable[[Recipe, Fields, Setting], Recipe]
    describe: Callable[[Fields], list[str]]
    conflicts: Sequence[Conflict] = ()


def check_ranges(members: Sequence[Member], fields: Fields, prefix: str) -> None:
    """Checks every field by itself; raises a UserError that names it."""
    for member in members:
        for name, field in member.fields.items():
            if name not in fields:
                raise UserError(f"{prefix}{name} is missing")
            field.check(f"{prefix}{name}", fields[name])


def check_conflicts(members: Sequence[Member], fields: Fields, prefix: str) -> None:
    """Raises a UserError for two fields that contradict each other."""
    default = {name: f.default for member in members for name, f in member.fields.items()}
    for member in members:
        for name, other, reason, allowed in member.conflicts:
            allowed = default[name] if allowed is None else allowed
            if fields[name] != allowed and fields[other] != default[other]:
                raise UserError(
                    f"{prefix}{name}={fields[name]!r} is not allowed with "
                    f"{prefix}{other}={fields[other]!r}: {reason}"
                )
