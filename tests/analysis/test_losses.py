import jax
import jax.numpy as jnp
import numpy as np

from samon_jax.analysis import losses


def numpy_dlr(logits, label):
    ordered = np.sort(logits)[::-1]
    other = max(value for index, value in enumerate(logits) if index != label)
    return -(logits[label] - other) / (ordered[0] - ordered[2])


def test_dlr_equals_its_definition():
    random = np.random.default_rng(0)
    logits = random.normal(size=(50, 7)) * 10 ** random.uniform(-2, 2, size=(50, 1))
    labels = random.integers(0, 7, 50)
    expected = [numpy_dlr(row, label) for row, label in zip(logits, labels, strict=True)]
    value = losses.dlr(jnp.array(logits, jnp.float32), jnp.array(labels))
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(value) > 0, logits.argmax(1) != labels)


def test_dlr_by_hand():
    logits = jnp.array([[5.0, 3.0, 1.0, 0.0], [5.0, 3.0, 1.0, 0.0]])
    np.testing.assert_allclose(losses.dlr(logits, jnp.array([0, 3])), [-2 / 4, 5 / 4], rtol=1e-6)


def test_normalized_cross_entropy_equals_numpy():
    random = np.random.default_rng(1)
    logits, labels = random.normal(size=(20, 10)) * 30 + 5, random.integers(0, 10, 20)
    z = logits - logits.mean(1, keepdims=True)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    expected = np.log(np.exp(z).sum(1)) - z[np.arange(20), labels]
    value = losses.normalized_cross_entropy(jnp.array(logits, jnp.float32), jnp.array(labels))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    again = losses.normalized_cross_entropy(jnp.array(7 * logits, jnp.float32), jnp.array(labels))
    np.testing.assert_allclose(again, value, rtol=1e-5)


def test_normalized_cross_entropy_of_constant_logits_has_a_finite_gradient():
    gradient = jax.grad(lambda z: losses.normalized_cross_entropy(z, jnp.array([1])).sum())(
        jnp.ones((1, 4))
    )
    assert np.isfinite(gradient).all()
