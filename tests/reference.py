"""Independent references in NumPy: Table 9 of the paper, and SAM as two plain gradients.

Nothing here uses samon_jax. Trees of parameters are flattened to {"/"-joined path: array}.
"""

import jax
import jax.numpy as jnp
import numpy as np


def flat(tree):
    """{"a/b": leaf} of a nested dict."""
    if not isinstance(tree, dict):
        return {"": tree}
    return {
        f"{name}/{path}".rstrip("/"): leaf
        for name, child in tree.items()
        for path, leaf in flat(child).items()
    }


def nested(paths):
    """The inverse of `flat`."""
    tree = {}
    for path, leaf in paths.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def table9(variant, rho, weights, grads, selected, biases):
    """ε of Eq. 5 with T of Table 9, in float64.

    Args:
      variant: row of the table.
      rho: radius.
      weights: {path: array}.
      grads: {path: array}.
      selected: {path: True, False or an array of bools}; T = 0 where it is False.
      biases: paths of the biases, those of norms included.
    """
    t, g = {}, {path: np.asarray(grad, np.float64) for path, grad in grads.items()}
    for path, leaf in weights.items():
        w = np.asarray(leaf, np.float64)
        if variant == "sam":
            t[path] = np.ones_like(w)
        elif variant in ("elementwise_l2", "elementwise_linf"):
            t[path] = np.abs(w)
        elif variant == "elementwise_l2_orig":  # T = 1 for biases: text of section 3.2
            t[path] = np.ones_like(w) if path in biases else np.abs(w) + 0.01
        elif variant == "layerwise_l2":
            t[path] = np.full_like(w, np.sqrt(np.sum(w**2)))
        elif variant == "fisher":
            t[path] = (1 + g[path] ** 2) ** -0.5
        t[path] = np.where(selected[path], t[path], 0.0)
    if variant == "elementwise_linf":
        return {path: rho * t[path] * np.sign(g[path]) for path in t}
    norm = np.sqrt(sum(np.sum((t[path] * g[path]) ** 2) for path in t))
    return {path: rho * t[path] ** 2 * g[path] / (norm or 1.0) for path in t}


def sam_epsilon(rho, grads, moved):
    """ε of plain SAM over the leaves whose path `moved` accepts; `grads` is a nested dict."""
    g = {path: np.asarray(leaf, np.float64) for path, leaf in flat(grads).items()}
    norm = np.sqrt(sum(np.sum(leaf**2) for path, leaf in g.items() if moved(path)))
    return nested(
        {
            path: rho * leaf / (norm or 1.0) if moved(path) else np.zeros_like(leaf)
            for path, leaf in g.items()
        }
    )


def two_passes(loss_fn, params, rho, moved, *args, **kwargs):
    """Loss at w and gradient at w + ε of plain SAM; `moved(path)` says which leaves ε covers."""
    compute = jax.value_and_grad(lambda params: loss_fn(params, *args, **kwargs))
    loss, grads = compute(params)
    norm = jnp.sqrt(sum(jnp.sum(g**2) for path, g in flat(grads).items() if moved(path)))
    step = rho / jnp.where(norm > 0, norm, 1.0)
    weights, grads = flat(params), flat(grads)
    perturbed = {
        path: (w + step * grads[path]).astype(w.dtype) if moved(path) else w
        for path, w in weights.items()
    }
    return loss, compute(nested(perturbed))[1]


def assert_close(actual, expected, tolerance=1e-5):
    """Equal structure, and every leaf equal within `tolerance` of the largest magnitude."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    scale = max([float(np.max(np.abs(b), initial=0.0)) for _, b in pairs], default=0.0)
    for a, b in pairs:
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (scale or 1.0))


def mlp(seed=0):
    """Parameters of a small network: kernel a, norm1, kernel b, norm2, kernel and bias c."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "a": {"kernel": draw(3, 4)},
        "b": {"kernel": draw(4, 4)},
        "c": {"kernel": draw(4, 2), "bias": draw(2)},
        "norm1": {"scale": 1 + 0.3 * draw(4), "bias": 0.3 * draw(4)},
        "norm2": {"scale": 1 + 0.3 * draw(4), "bias": 0.3 * draw(4)},
    }


def normalize(x, norm):
    """BatchNorm over the leading axis."""
    centred = x - x.mean(0)
    return centred / jnp.sqrt(jnp.mean(centred**2, 0) + 1e-3) * norm["scale"] + norm["bias"]


def mlp_loss(params, x, y):
    """Squared error of the network on x [n, 3], y [n, 2]; examples interact through the norms."""
    h = jnp.tanh(normalize(x @ params["a"]["kernel"], params["norm1"]))
    h = jnp.tanh(normalize(h @ params["b"]["kernel"], params["norm2"]))
    return jnp.mean((h @ params["c"]["kernel"] + params["c"]["bias"] - y) ** 2)


def data(n, seed=1):
    """x [n, 3] and y [n, 2]."""
    rng = np.random.default_rng(seed)
    return jnp.float32(rng.normal(size=(n, 3))), jnp.float32(rng.normal(size=(n, 2)))


def is_norm(path):
    """Norm parameters of `mlp`, by name: it is only used for that network."""
    return path.startswith("norm")
