"""The shape that all methods have: which gradient one descends with, and when."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

PyTree = Any

# Kinds of steps. A method says on the host which is due, and each is a program of its own.
PLAIN = "plain"  # the gradient at w
SHARP = "sharp"  # the gradient at w + ε
RENEW = "renew"  # as "sharp", after the state has been renewed (SSAM-F's mask)
REUSE = "reuse"  # the gradient at w, and what the last sharp step found there (LookSAM)

# `losses_fn(params, batch, train=True) -> (losses [n], aux)`: one loss for each example of the
# batch, whose mean is descended on. train=False is the model in evaluation mode.
LossesFn = Callable[..., tuple[jax.Array, PyTree]]


class Now(NamedTuple):
    """What tells one run, and one step of it, from others; data, so that all share a program.

    Attributes:
      seed: uint32 scalar of the run.
      rho: float32 scalar, the radius of the perturbation.
      step: int32 scalar, steps done.
    """

    seed: Any
    rho: Any
    step: Any


class Gradient(NamedTuple):
    """What a method makes of one batch.

    Attributes:
      loss: float32 scalar, mean loss of the examples that the reported pass saw on this device:
        at w, but for methods whose only pass is at w + ε.
      aux: of the pass at w; every leaf has a leading axis [parts] where `m` splits the batch.
      perturbed_aux: of the pass at w + ε, if the method was told to keep it; else `aux` itself.
      grads: the gradient to descend with, averaged over all devices if the method averages.
      state: the method's, after the step.
    """

    loss: jax.Array
    aux: PyTree
    perturbed_aux: PyTree
    grads: PyTree
    state: PyTree


class LearningRate(NamedTuple):
    """The learning rate of a run, which GSAM's radius follows.

    Attributes:
      schedule: steps done to the learning rate.
      lowest: smallest value.
      highest: largest value.
    """

    schedule: optax.Schedule
    lowest: float
    highest: float


class Method(NamedTuple):
    """Which gradient one descends with.

    Attributes:
      init: `init(params, now) -> state`, a pytree of arrays; raises a UserError if nothing would be
        perturbed.
      gradient: `gradient(losses_fn, params, state, batch, now, kind) -> Gradient`, pure, for one
        device; `batch` is a pytree of arrays [n, ...] and `kind` a Python string.
      kind: the number of steps done to the kind of the next one, a Python function of an int.
      kinds: all that `kind` can return.
      period: number of perturbed steps after which their kinds repeat, rare ones aside.
      averages: whether gradients are averaged over the devices already, because the method needs
        the mean itself; else the caller does it, together with what else it averages.
    """

    init: Callable[[PyTree, Now], PyTree]
    gradient: Callable[..., Gradient]
    kind: Callable[[int], str]
    kinds: tuple[str, ...]
    period: int = 1
    averages: bool = False
