"""One training step, as every device runs it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from samon_jax._passes.collectives import means_and_counts
from samon_jax.methods.method import Gradient, Method
from samon_jax.tasks.task import Aux, Task
from samon_jax.training.state import TrainState
from samon_jax.training.trainable import Mask, hold_fixed

PyTree = Any


class StepMetrics(NamedTuple):
    """What a training step reports, the same on every device.

    Attributes:
      loss: float32 [steps], mean over all devices of the loss that the method reports, in nats.
      sums: by name [steps], the task's, of all devices.
      finite: bool [steps], False after the last step of an epoch that left a parameter or a
        statistic infinite or NaN; True after every other step, which is not looked at.
    """

    loss: jax.Array
    sums: dict[str, jax.Array]
    finite: jax.Array


class Parts(NamedTuple):
    """What a step is made of.

    Attributes:
      task: what is learned.
      method: which gradient one descends with.
      optimizer: what becomes of it.
      fetch: of the source.
      trainable: mask of the parameters that are trained; None for all.
      batch_stats: which pass feeds the model state: "clean", "perturbed" or "both".
      steps_per_epoch: after which the sums start anew.
      axis_name: mapped axis over devices.
      gather: brings parameters that are divided among devices together for use.
      divide: divides a pytree like the parameters again.
    """

    task: Task
    method: Method
    optimizer: optax.GradientTransformation
    fetch: Callable[[PyTree, PyTree], PyTree]
    trainable: Mask | None
    batch_stats: str
    steps_per_epoch: int
    axis_name: str = "batch"
    gather: Callable[[PyTree], PyTree] = lambda params: params
    divide: Callable[[PyTree], PyTree] = lambda tree: tree


def make_step(
    parts: Parts, kind: str
) -> Callable[[tuple[TrainState, PyTree], PyTree], tuple[TrainState, StepMetrics]]:
    """Builds the program of one device for steps of one kind.

    Args:
      parts: what a step is made of.
      kind: of the method's kinds.

    Returns:
      `step((state, resident), raw) -> (state, metrics)`. The leaves of `raw` are
      [steps, examples of this device, ...], for that many steps in a row. The state is the same on
      every device before and after.
    """

    def one_step(
        state: TrainState, resident: PyTree, raw: PyTree
    ) -> tuple[TrainState, StepMetrics]:
        batch = _prepare(parts, state, resident, raw)
        losses_fn = _losses(parts, state)
        found: Gradient = parts.method.gradient(
            losses_fn, state.params, state.method_state, batch, state.now, kind
        )
        grads, loss, model_state, sums = _of_all_devices(parts, state, batch, found)
        updates, opt_state = parts.optimizer.update(
            parts.divide(grads), state.opt_state, state.params
        )
        first_of_epoch = state.step % parts.steps_per_epoch == 0

        def add(total: jax.Array, value: jax.Array) -> jax.Array:
            return jnp.where(first_of_epoch, 0, total) + value

        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            model_state=model_state,
            opt_state=opt_state,
            method_state=found.state,
            loss_sum=add(state.loss_sum, loss),
            sums={name: add(state.sums[name], value) for name, value in sums.items()},
        )
        # Losses do not tell: in XLA's fused relu on CPU, NaN becomes 0.
        finite = jax.lax.cond(
            state.step % parts.steps_per_epoch == 0,
            _all_finite,
            lambda tree: jnp.ones((), bool),
            (state.params, state.model_state),
        )
        return state, StepMetrics(loss, sums, finite)

    def step(inputs: tuple[TrainState, PyTree], raw: PyTree) -> tuple[TrainState, StepMetrics]:
        state, resident = inputs
        if len(jax.tree.leaves(raw)[0]) == 1:
            # Not a loop of one: on CPU, XLA runs convolutions inside a loop several times slower.
            state, metrics = one_step(state, resident, jax.tree.map(lambda x: x[0], raw))
            return state, jax.tree.map(lambda x: x[None], metrics)
        return jax.lax.scan(lambda state, raw: one_step(state, resident, raw), state, raw)

    return step


def _prepare(parts: Parts, state: TrainState, resident: PyTree, raw: PyTree) -> PyTree:
    """The batch of this device, augmented with its own key."""
    key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    key = jax.random.fold_in(key, jax.lax.axis_index(parts.axis_name))
    return parts.task.prepare(key, parts.fetch(resident, raw), train=True)


def _losses(parts: Parts, state: TrainState) -> Callable[..., tuple[jax.Array, Aux]]:
    """The task's losses as a function of the parameters, as methods want it."""

    def losses_fn(params: PyTree, batch: PyTree, train: bool = True) -> tuple[jax.Array, Aux]:
        params = hold_fixed(parts.gather(params), parts.trainable)
        variables = {"params": params, **state.model_state}
        return parts.task.losses(variables, batch, train)

    return losses_fn


def _of_all_devices(
    parts: Parts, state: TrainState, batch: PyTree, found: Gradient
) -> tuple[PyTree, jax.Array, PyTree, dict[str, jax.Array]]:
    """Gradient, loss and running statistics, averaged over the devices, and the sums."""
    averaged = parts.method.averages
    model_state = _next_model_state(parts, state, batch, found)
    means = (found.loss, model_state, () if averaged else found.grads)
    sums = {name: jnp.sum(value) for name, value in found.aux.sums.items()}
    (loss, model_state, grads), sums = means_and_counts(means, sums, parts.axis_name)
    return found.grads if averaged else grads, loss, model_state, sums


def _next_model_state(parts: Parts, state: TrainState, batch: PyTree, found: Gradient) -> PyTree:
    """The running statistics after the step, from the pass that `batch_stats` names."""
    clean = _mean_over_parts(found.aux.model_state, state.model_state)
    if parts.batch_stats == "clean":
        return clean
    perturbed = _mean_over_parts(found.perturbed_aux.model_state, state.model_state)
    if parts.batch_stats == "perturbed":
        return perturbed

    # As in PyTorch, where the second pass continues from what the first one left. Each pass gives
    # p = a r + (1 - a) s from the same r; one after the other they give p2 + a (p1 - r). The
    # momentum a is the model's own: the derivative of p along p1 - r.
    def update(model_state: PyTree) -> PyTree:
        variables = {"params": state.params, **model_state}
        return parts.task.losses(variables, batch, True)[1].model_state

    along = jax.tree.map(jnp.subtract, clean, state.model_state)
    _, moved = jax.jvp(update, (state.model_state,), (along,))
    return jax.tree.map(jnp.add, perturbed, moved)


def _all_finite(tree: PyTree) -> jax.Array:
    """Whether no number of any leaf is infinite or NaN."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _mean_over_parts(new: PyTree, old: PyTree) -> PyTree:
    """With m smaller than the batch, every part has statistics of its own."""
    return jax.tree.map(lambda n, o: n.reshape(-1, *o.shape).mean(0), new, old)
