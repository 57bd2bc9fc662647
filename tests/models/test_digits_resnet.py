"""The digits network learns its data set within seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from samon_jax import data, models
from samon_jax.data import augment


@pytest.mark.usefixtures("optimized")
def test_digits_resnet_exceeds_98_percent(tmp_path):
    epochs, batch_size = 8, 128
    dataset = data.load("digits", str(tmp_path))
    model = models.create("digits-resnet", dataset.num_classes)
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8, 8, 1)), train=False))
    variables = init(jax.random.key(0))
    params, stats = variables["params"], variables["batch_stats"]
    steps = len(dataset.train.labels) // batch_size
    schedule = optax.warmup_cosine_decay_schedule(0, 0.1, steps, epochs * steps)
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(schedule, momentum=0.9))
    opt_state = optimizer.init(params)

    def normalized(images):
        return augment.normalize(images, dataset.mean, dataset.std)

    @jax.jit
    def step(params, stats, opt_state, images, labels):
        def loss(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": stats},
                normalized(images),
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updates["batch_stats"]

        grads, new_stats = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new_stats, opt_state

    rng = np.random.default_rng(0)
    for _ in range(epochs):
        order = rng.permutation(len(dataset.train.labels))
        for batch in np.split(order[: steps * batch_size], steps):
            params, stats, opt_state = step(
                params,
                stats,
                opt_state,
                dataset.train.images[batch],
                dataset.train.labels[batch],
            )
    trained = {"params": params, "batch_stats": stats}
    apply = jax.jit(lambda images: model.apply(trained, normalized(images), train=False))
    logits = apply(dataset.test.images)
    assert (np.asarray(logits).argmax(-1) == dataset.test.labels).mean() > 0.98
