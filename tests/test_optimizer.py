"""`samon.sam` under every way optax optimizers are run, against two plain gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import samon_jax as samon
from tests.reference import assert_close, data, is_norm, mlp, mlp_loss, two_passes

RHO, RATE = 0.4, 0.1
ON = samon.perturbation(RHO, mask=samon.only_norm)
BATCH = data(8)
STEPS = 3


def loss_fn(params):
    return mlp_loss(params, *BATCH)


GRADIENT = jax.grad(loss_fn)


def everything(path):
    return True


def momentum_sgd(moved=is_norm, rate=RATE, steps=STEPS):
    """SAM with heavy-ball momentum, written out."""
    run = jax.jit(lambda params: two_passes(loss_fn, params, RHO, moved)[1])
    params = mlp()
    velocity = jax.tree.map(jnp.zeros_like, params)
    for _ in range(steps):
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, run(params))
        params = jax.tree.map(lambda w, v: w - rate * v, params, velocity)
    return params


def train(tx):
    params = mlp()
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(GRADIENT(params), state, params, grad_fn=GRADIENT)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state)
    return params, state


BASE = optax.sgd(RATE, momentum=0.9)


@pytest.mark.parametrize(("mask", "moved"), [(samon.only_norm, is_norm), (None, everything)])
def test_jit(mask, moved):
    ascent = samon.perturbation(RHO, mask=mask or samon.all_params)
    params, state = train(samon.sam(BASE, ascent))
    assert_close(params, momentum_sgd(moved))
    assert isinstance(state, samon.SamState)
    assert int(state.ascent_state.count) == STEPS


def test_inside_chain():
    """`grad_fn` reaches it through `optax.chain`; what follows acts on the sharp update."""
    tx = optax.chain(samon.sam(optax.trace(0.9), ON), optax.scale(-RATE))
    assert_close(train(tx)[0], momentum_sgd())


def test_inject_hyperparams_inside_chain():
    ascent = optax.inject_hyperparams(samon.perturbation, static_args=samon.STATIC_ARGS)(
        rho=RHO, mask=samon.only_norm
    )
    base = optax.inject_hyperparams(optax.sgd)(learning_rate=RATE, momentum=0.9)
    tx = optax.chain(samon.sam(base, optax.chain(optax.clip_by_global_norm(0.1), ascent)))
    params, state = train(tx)
    assert_close(params, momentum_sgd())
    assert float(state[0].ascent_state[1].hyperparams["rho"]) == pytest.approx(RHO)
    assert float(state[0].optimizer_state.hyperparams["learning_rate"]) == pytest.approx(RATE)


def test_extra_arguments_reach_the_base_optimizer():
    seen = []

    def update(updates, state, params=None, *, value, **_):
        seen.append((value, params is not None))
        return updates, state

    base = optax.GradientTransformationExtraArgs(lambda params: (), update)
    params = mlp()
    tx = samon.sam(base, ON)
    updates, _ = tx.update(GRADIENT(params), tx.init(params), params, grad_fn=GRADIENT, value=3.0)
    assert seen == [(3.0, True)]
    assert_close(updates, two_passes(loss_fn, params, RHO, is_norm)[1])


def test_pmap():
    """Every device makes its own ε; the descent is common."""
    params, (x, y) = mlp(), data(32)
    x, y = x.reshape(8, 4, 3), y.reshape(8, 4, 2)
    tx = samon.sam(optax.sgd(RATE), ON, axis_name="batch")

    def step(params, state, x, y):
        gradient = jax.grad(lambda params: mlp_loss(params, x, y))
        updates, state = tx.update(gradient(params), state, params, grad_fn=gradient)
        return optax.apply_updates(params, updates), state

    run = jax.pmap(step, "batch", in_axes=(None, None, 0, 0), out_axes=None)
    actual, state = run(params, tx.init(params), x, y)
    plain = jax.jit(lambda x, y: two_passes(mlp_loss, params, RHO, is_norm, x, y)[1])
    grads = [plain(x[i], y[i]) for i in range(8)]
    expected = jax.tree.map(lambda w, *g: w - RATE * np.mean(np.stack(g), 0), params, *grads)
    assert_close(actual, expected)
    assert int(state.ascent_state.count) == 1


def test_train_state_with_sam_as_its_optimizer():
    state = TrainState.create(apply_fn=None, params=mlp(), tx=samon.sam(BASE, ON))

    @jax.jit
    def step(state):
        updates, opt_state = state.tx.update(
            GRADIENT(state.params), state.opt_state, state.params, grad_fn=GRADIENT
        )
        params = optax.apply_updates(state.params, updates)
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state)

    for _ in range(STEPS):
        state = step(state)
    assert int(state.step) == STEPS
    assert_close(state.params, momentum_sgd())


def test_train_state_with_value_and_grad():
    state = TrainState.create(apply_fn=None, params=mlp(), tx=BASE)
    compute = samon.value_and_grad(loss_fn, ON)

    @jax.jit
    def step(state, ascent_state):
        _, grads, ascent_state = compute(state.params, ascent_state)
        return state.apply_gradients(grads=grads), ascent_state

    ascent_state = ON.init(state.params)
    for _ in range(STEPS):
        state, ascent_state = step(state, ascent_state)
    assert_close(state.params, momentum_sgd())


class Model(nnx.Module):
    def __init__(self):
        for name, leaves in mlp().items():
            setattr(self, name, nnx.Dict({k: nnx.Param(v) for k, v in leaves.items()}))


def nnx_params(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def test_nnx_optimizer_with_sam():
    model = Model()
    optimizer = nnx.Optimizer(model, samon.sam(BASE, ON), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        # `grad_fn` gets what nnx.Optimizer hands to optax: the pure state.
        grads = jax.grad(lambda state: loss_fn(nnx.to_pure_dict(state)))(
            nnx.state(model, nnx.Param)
        )
        gradient = jax.grad(lambda params: loss_fn(nnx.to_pure_dict(params)))
        optimizer.update(model, grads, grad_fn=gradient)

    for _ in range(STEPS):
        step(model, optimizer)
    assert_close(nnx_params(model), momentum_sgd())


def test_nnx_optimizer_with_value_and_grad():
    model = Model()
    optimizer = nnx.Optimizer(model, BASE, wrt=nnx.Param)
    compute = samon.value_and_grad(lambda state: loss_fn(nnx.to_pure_dict(state)), ON)

    @nnx.jit
    def step(model, optimizer, ascent_state):
        _, grads, ascent_state = compute(nnx.state(model, nnx.Param), ascent_state)
        optimizer.update(model, grads)
        return ascent_state

    ascent_state = ON.init(nnx.state(model, nnx.Param))
    for _ in range(STEPS):
        ascent_state = step(model, optimizer, ascent_state)
    assert_close(nnx_params(model), momentum_sgd())


@pytest.mark.parametrize("opaque_mode", [True, False])
def test_as_the_adversary_of_optax_contrib_sam(opaque_mode):
    adversary = optax.chain(ON, optax.scale(-1))
    tx = optax.contrib.sam(BASE, adversary, sync_period=2, opaque_mode=opaque_mode)
    params = mlp()
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        arguments = {"grad_fn": lambda params, _: GRADIENT(params)} if opaque_mode else {}
        updates, state = tx.update(GRADIENT(params), state, params, **arguments)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS if opaque_mode else 2 * STEPS):
        params, state = step(params, state)
    assert_close(params, momentum_sgd())


def test_same_as_value_and_grad():
    """The other way to the same update, with a base optimizer that has a state of its own."""
    base = optax.adamw(1e-2)
    params, compute = mlp(), samon.value_and_grad(loss_fn, ON)
    state, ascent_state = base.init(params), ON.init(params)

    @jax.jit
    def step(params, state, ascent_state):
        _, grads, ascent_state = compute(params, ascent_state)
        updates, state = base.update(grads, state, params)
        return optax.apply_updates(params, updates), state, ascent_state

    for _ in range(STEPS):
        params, state, ascent_state = step(params, state, ascent_state)
    actual, sam_state = train(samon.sam(base, ON))
    assert_close(actual, params)
    assert_close(sam_state.optimizer_state, state)


def test_missing_arguments():
    tx, params = samon.sam(BASE, ON), mlp()
    with pytest.raises(samon.UserError, match="grad_fn=None"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(samon.UserError, match="params=None"):
        tx.update(params, tx.init(params), grad_fn=GRADIENT)
