import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from samon_jax.tasks.norm_dropout import norm_dropout


class Net(nn.Module):
    """Outputs what two norms and a dense layer give."""

    @nn.compact
    def __call__(self, x):
        one = nn.LayerNorm(name="one")(x)
        two = nn.BatchNorm(use_running_average=True, name="two")(x)
        return one, two, nn.Dense(x.shape[-1], name="dense")(x)


def keys(count, seed=0):
    return jax.random.key_data(jax.random.split(jax.random.key(seed), count))


@pytest.fixture(scope="module")
def net():
    x = jax.random.normal(jax.random.key(1), (64, 500))
    variables = Net().init(jax.random.key(0), x)
    return variables, x


def apply(net, rate, seed=0, count=64):
    variables, x = net
    with norm_dropout(rate, keys(64, seed)[:count]):
        return [np.asarray(y) for y in Net().apply(variables, x[:count])]


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_outputs_of_norms_are_dropped_at_the_rate_and_the_rest_scaled(net, rate):
    plain, dropped = apply(net, 0.0), apply(net, rate)
    for clean, noisy in zip(plain[:2], dropped[:2], strict=True):
        zero = noisy == 0
        deviation = np.sqrt(rate * (1 - rate) / zero.size)
        assert abs(zero.mean() - rate) < 4 * deviation
        np.testing.assert_allclose(noisy[~zero], clean[~zero] / (1 - rate), rtol=1e-5)
    np.testing.assert_array_equal(plain[2], dropped[2])  # a dense layer is no norm
    assert not np.array_equal(dropped[0] == 0, dropped[1] == 0)  # each layer draws its own


def test_what_is_dropped_belongs_to_the_example(net):
    whole, part = apply(net, 0.5), apply(net, 0.5, count=16)
    np.testing.assert_array_equal(whole[0][:16] == 0, part[0] == 0)
    assert not np.array_equal(whole[0][0] == 0, whole[0][1] == 0)
    assert not np.array_equal(whole[0] == 0, apply(net, 0.5, seed=1)[0] == 0)


def test_dtype_stays(net):
    variables, x = net
    with norm_dropout(0.5, keys(64)):
        norm = nn.LayerNorm(dtype=jnp.bfloat16)
        y = norm.apply({"params": variables["params"]["one"]}, x)
    assert y.dtype == jnp.bfloat16
