"""One training step of every method, for what measures them: `cost` and `accelerator`."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import samon_jax as samon
from samon_jax import models
from samon_jax.labels import path_strings

PyTree = Any

MOMENTUM = 0.9
RHO = 0.5


class Step(NamedTuple):
    """One row: a name and `step(params, state, images, labels) -> (params, state)`."""

    name: str
    step: Callable[..., tuple[PyTree, PyTree]]
    state: PyTree


def image_shape(model: str) -> tuple[int, int, int]:
    """Height, width and channels of the images that a model of `samon_jax.models` is for.

    Example:
      >>> image_shape("digits-resnet"), image_shape("wrn-28-10"), image_shape("imagenet-resnet-50")
      ((8, 8, 1), (32, 32, 3), (224, 224, 3))
    """
    if model.startswith("digits"):
        return 8, 8, 1
    if model == "three-stages":
        return 8, 8, 3
    large = model.startswith("imagenet") or re.fullmatch(r"vit-\w+-\d+", model)
    return (224, 224, 3) if large else (32, 32, 3)


def random_examples(
    shape: tuple[int, int, int], batch: int, classes: int
) -> tuple[jax.Array, jax.Array]:
    """Normal images [batch, *shape] and uniform labels [batch], always the same."""
    images = jax.random.normal(jax.random.key(0), (batch, *shape))
    return images, jax.random.randint(jax.random.key(1), (batch,), 0, classes)


def create(
    name: str, classes: int, dtype: str, shape: tuple[int, int, int]
) -> tuple[Any, dict[str, PyTree]]:
    """A model and its variables; those without BatchNorm have no "batch_stats"."""
    model: Any = models.create(name, classes, dtype=jnp.dtype(dtype))
    images = jnp.zeros((2, *shape))
    init = jax.jit(lambda key: model.init(key, images, train=False))
    return model, dict(init(jax.random.key(2)))


def last_stages(params: PyTree, count: int) -> str | None:
    """A path regex for the last `count` stages of a network and the norm after them.

    Networks without stages, Vision Transformers, count as three stages of equally many blocks.

    Args:
      params: of a model of `samon_jax.models`.
      count: number of stages, less than there are.

    Returns:
      An argument of `samon_jax.only_norm_in`; None if there are neither stages nor blocks, or too
      few of them.

    Example:
      >>> last_stages({"stage1_block0": {}, "stage2_block0": {}, "stage3_block0": {}}, 1)
      '^(stage3_|norm_out)'
      >>> last_stages({f"block{i}": {} for i in range(6)}, 2)
      '^(block2/|block3/|block4/|block5/|norm_out)'
    """
    stages = sorted({int(m[1]) for name in params if (m := re.match(r"stage(\d+)_", name))})
    blocks = sorted(int(m[1]) for name in params if (m := re.fullmatch(r"block(\d+)", name)))
    if stages:
        chosen = [f"stage{stage}_" for stage in stages[-count:]] if count < len(stages) else []
    else:
        chosen = [f"block{i}/" for i in blocks[len(blocks) * (3 - count) // 3 :]]
        chosen = chosen if 0 < len(chosen) < len(blocks) else []
    return f"^({'|'.join([*chosen, 'norm_out'])})" if chosen else None


def loss_of(model: Any, variables: dict[str, PyTree]) -> Callable[..., tuple[jax.Array, PyTree]]:
    """`loss_fn(params, images, labels) -> (mean cross-entropy, new statistics of BatchNorm)`."""
    fixed = {name: value for name, value in variables.items() if name != "params"}

    def loss_fn(params: PyTree, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, PyTree]:
        logits, updates = model.apply(
            {"params": params, **fixed}, images, train=True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, updates.get("batch_stats", {})

    return loss_fn


def plain(loss_fn: Callable[..., Any], params: PyTree, lr: float = 0.1) -> Step:
    """SGD with momentum 0.9."""
    sgd = optax.sgd(lr, momentum=MOMENTUM)

    def step(
        params: PyTree, state: PyTree, images: jax.Array, labels: jax.Array
    ) -> tuple[PyTree, PyTree]:
        grads, _ = jax.grad(loss_fn, has_aux=True)(params, images, labels)
        updates, state = sgd.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return Step("SGD", step, sgd.init(params))


def sharp(
    name: str,
    loss_fn: Callable[..., Any],
    params: PyTree,
    mask: Any,
    lr: float = 0.1,
    m: int | None = None,
    direction: str | None = None,
) -> Step:
    """SGD on the gradient of `samon_jax.value_and_grad` with the variant "sam".

    With a `direction`, one pass: see `samon_jax.single_pass`.
    """
    sgd = optax.sgd(lr, momentum=MOMENTUM)
    ascent = samon.variant("sam", RHO, mask=mask)
    if direction is not None:
        ascent = samon.single_pass(ascent, direction)
    batch = None if m is None else (0, 1)
    gradient = samon.value_and_grad(loss_fn, ascent, has_aux=True, m=m, batch_argnums=batch)

    def step(
        params: PyTree, state: PyTree, images: jax.Array, labels: jax.Array
    ) -> tuple[PyTree, PyTree]:
        optimizer_state, ascent_state = state
        _, grads, ascent_state = gradient(params, ascent_state, images, labels)
        updates, optimizer_state = sgd.update(grads, optimizer_state, params)
        return optax.apply_updates(params, updates), (optimizer_state, ascent_state)

    return Step(name, step, (sgd.init(params), ascent.init(params)))


def peer(loss_fn: Callable[..., Any], params: PyTree, lr: float = 0.1) -> Step:
    """`optax.contrib.sam` in its opaque mode, the one that takes one step per batch."""
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(RHO))
    tx = optax.contrib.sam(optax.sgd(lr, momentum=MOMENTUM), adversary, opaque_mode=True)

    def step(
        params: PyTree, state: PyTree, images: jax.Array, labels: jax.Array
    ) -> tuple[PyTree, PyTree]:
        def grad_fn(params: PyTree, _: int = 0) -> PyTree:
            return jax.grad(loss_fn, has_aux=True)(params, images, labels)[0]

        updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    return Step("optax.contrib.sam", step, tx.init(params))


def all_steps(model: Any, variables: dict[str, PyTree], lr: float = 0.1) -> list[Step]:
    """Every method as one step of SGD with momentum 0.9.

    Args:
      model: of `samon_jax.models`.
      variables: {"params": ...} and, with BatchNorm, "batch_stats".
      lr: learning rate.

    Returns:
      SGD, optax.contrib.sam, SAM-all, SAM-ON and, where the model has that many stages and norms
      in them, SAM-ON in the last two and in the last stage; SAM-ON in one pass.
    """
    params, loss_fn = variables["params"], loss_of(model, variables)
    rows = [
        plain(loss_fn, params, lr),
        peer(loss_fn, params, lr),
        sharp("SAM-all", loss_fn, params, samon.all_params, lr),
        sharp("SAM-ON", loss_fn, params, samon.only_norm, lr),
    ]
    for count, name in ((2, "SAM-ON, last two stages"), (1, "SAM-ON, last stage")):
        regex = last_stages(params, count)
        if regex and any(re.search(regex, path) for path in path_strings(params)):
            rows.append(sharp(name, loss_fn, params, samon.only_norm_in(regex), lr))
    one_pass = "SAM-ON in one pass"
    rows.append(sharp(one_pass, loss_fn, params, samon.only_norm, lr, direction="momentum"))
    return rows
