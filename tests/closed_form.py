"""A model whose losses and gradients are written out in NumPy, float64; nothing uses samon_jax.

Example i has the loss (s (x_i · w) + b - y_i)². The vector of parameters is [w, b, s], the order of
`jax.tree.leaves`.
"""

import jax
import jax.numpy as jnp
import numpy as np

PARAMS = {
    "kernel": jnp.array([0.5, -1.0, 0.8]),
    "norm": {"bias": jnp.array([0.2]), "scale": jnp.array([1.3])},
}
ALL = np.ones(5)
NORM = np.array([0.0, 0.0, 0.0, 1.0, 1.0])


def losses_fn(params, x, y):
    """Losses [n] of x [n, 3] and y [n], in JAX."""
    return (x @ params["kernel"] * params["norm"]["scale"] + params["norm"]["bias"] - y) ** 2


def loss_fn(params, x, y):
    return losses_fn(params, x, y).mean()


def data(n, seed=0):
    rng = np.random.default_rng(seed)
    return jnp.float32(rng.normal(size=(n, 3))), jnp.float32(rng.normal(size=n))


def vector(tree):
    """All leaves of a pytree, in float64."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def losses(v, x, y):
    x, y = np.float64(x), np.float64(y)
    return (v[4] * (x @ v[:3]) + v[3] - y) ** 2


def gradient(v, x, y):
    """Of the mean loss by [w, b, s]."""
    x, y = np.float64(x), np.float64(y)
    twice = 2 * (v[4] * (x @ v[:3]) + v[3] - y) / len(x)
    return np.concatenate([v[4] * (twice @ x), [twice.sum()], [twice @ (x @ v[:3])]])


def sam_epsilon(g, rho, moved):
    """ε = ρ g / ‖g‖ over the entries where `moved` is 1 (Foret et al. 2021, Eq. 2)."""
    length = np.linalg.norm(g * moved)
    return rho * g * moved / (length or 1.0)
