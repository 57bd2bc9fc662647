import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from samon_jax import tasks
from samon_jax.data import autoaugment
from samon_jax.data.dataset import Description, Split
from samon_jax.data.source import Examples
from samon_jax.errors import UserError
from samon_jax.tasks.classification import Classification, cross_entropy
from samon_jax.training import devices
from samon_jax.training.config import default_config

RGB = Description("images", 10, (32, 32, 3), (0.5,) * 3, (0.25,) * 3)


class Linear(nn.Module):
    """A norm and a dense layer; its running statistics are a model state."""

    @nn.compact
    def __call__(self, images, train):
        x = images[:, ::8, ::8].reshape(len(images), -1)
        return nn.Dense(10)(nn.BatchNorm(not train)(x))


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
    return Split(images, rng.integers(0, 10, 16).astype(np.int32))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing):
    logits = np.asarray(jax.random.normal(jax.random.key(0), (5, 4)), np.float64)
    labels = np.array([0, 3, 1, 1, 2])
    target = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -(target * np.log(p)).sum(1)
    actual = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("wanted", [False, True])
def test_auto_augment_comes_before_normalization(examples, wanted):
    """With the key of a step, folded in with 2: crops and flips stay as they are without it."""
    task, key = Classification(Linear(), RGB, auto_augment=wanted), jax.random.key(5)
    seen = examples.images
    if wanted:
        seen = np.asarray(autoaugment.auto_augment(jax.random.fold_in(key, 2), seen))
        assert not np.array_equal(seen, examples.images)
    batch = task.prepare(key, examples, train=True)
    np.testing.assert_allclose(batch.images, (seen / 255 - 0.5) / 0.25, rtol=1e-5, atol=1e-5)


def test_crops_and_flips_do_not_depend_on_what_follows(examples):
    """Pixels of a crop are shifted as a whole; AutoAugment only then changes them."""
    key = jax.random.key(1)
    plain = Classification(Linear(), RGB, crop_padding=4, flip=True)
    more = Classification(Linear(), RGB, crop_padding=4, flip=True, auto_augment=True)
    moved = np.asarray(plain.prepare(key, examples, train=True).images)
    pixels = np.rint((moved * 0.25 + 0.5) * 255).astype(np.uint8)
    expected = autoaugment.auto_augment(jax.random.fold_in(key, 2), pixels)
    actual = more.prepare(key, examples, train=True).images
    np.testing.assert_allclose(actual, (np.asarray(expected) / 255 - 0.5) / 0.25, atol=1e-5)
    assert not np.array_equal(pixels, examples.images)


def test_evaluation_augments_nothing(examples):
    task = Classification(Linear(), RGB, crop_padding=4, flip=True, norm_dropout=0.5)
    for key in (None, jax.random.key(0)):
        batch = task.prepare(key, examples, train=False)
        assert batch.keys == ()
        np.testing.assert_allclose(batch.images, (examples.images / 255 - 0.5) / 0.25, atol=1e-5)


def test_losses_and_sums_written_out(examples):
    task = Classification(Linear(), RGB, label_smoothing=0.1)
    variables = task.init(jax.random.key(0))
    batch = task.prepare(jax.random.key(1), examples, train=True)
    losses, aux = task.losses(variables, batch, train=True)
    x = np.asarray(batch.images)[:, ::8, ::8].reshape(16, -1)
    z = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    dense = variables["params"]["Dense_0"]
    logits = z @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = 0.9 * np.eye(10)[examples.labels] + 0.01
    np.testing.assert_allclose(losses, -(targets * log_p).sum(1), rtol=1e-4)
    assert int(aux.sums["correct"]) == (logits.argmax(1) == examples.labels).sum()
    assert int(aux.sums["examples"]) == 16
    mean = aux.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.01 * x.mean(0), rtol=1e-3, atol=1e-6)
    assert task.describe({"correct": 4.0, "examples": 16.0}) == {"accuracy": 0.25}
    assert {name: value.dtype for name, value in aux.sums.items()} == task.sums
    # Evaluation: running statistics, no smoothing, nothing updated.
    losses, aux = task.losses(variables, batch, train=False)
    logits = x / np.sqrt(1 + 1e-5) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(losses, -log_p[np.arange(16), examples.labels], rtol=1e-4)
    assert aux.model_state == {}


@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_counts_every_example_once(examples, count):
    """Rows that only fill a batch up are repeated examples; they must not count."""
    task, shared = Classification(Linear(), RGB), devices.take(count)
    variables = task.init(jax.random.key(0))
    batch = task.prepare(None, examples, train=False)
    losses, aux = task.losses(variables, batch, train=False)

    def fetch(resident, raw):
        return Split(resident.images[raw["rows"]], resident.labels[raw["rows"]])

    def batches():
        for first in (0, 12):
            rows = np.arange(first, first + 12)
            yield {"rows": np.where(rows < 16, rows, 0), "valid": rows < 16}

    split = Examples(examples, fetch, batches())
    found = task.evaluate(shared.replicate(variables), split, shared, "val_")
    assert set(found) == {"val_loss", "val_accuracy"}
    np.testing.assert_allclose(found["val_loss"], losses.mean(), rtol=1e-5)
    assert found["val_accuracy"] == int(aux.sums["correct"]) / 16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.crop_padding": 9}, r"^data\.crop_padding=9 .* at most 8"),
        ({"data.auto_augment": True}, r"^data\.auto_augment=True .*'digits'.* needs 3"),
        ({"model": "wrn-27-10"}, r"wrn-27-10"),
        ({"task": "poetry"}, r"^task='poetry' is not allowed; it must be one of classification"),
        ({"data.name": "mnist"}, r"^data\.name='mnist' is not allowed; it must be one of digits"),
    ],
)
def test_what_model_and_data_do_not_allow_names_the_field(fields, message):
    config = default_config()
    settings = {"data.name": "digits", "model": "digits-resnet", "data.crop_padding": 1}
    config.update_from_flattened_dict(settings | fields)
    with pytest.raises(UserError, match=message):
        tasks.create(config)


def test_a_task_needs_no_examples(tmp_path):
    """Not even their folder: a model can be rebuilt where the data are not."""
    config = default_config()
    config.data.name, config.data.dir = "cifar100", str(tmp_path / "nowhere")
    config.model = "resnet-20"
    shapes = jax.eval_shape(tasks.create(config).init, jax.random.key(0))
    assert jax.tree.leaves(shapes["params"])
    assert not (tmp_path / "nowhere").exists()
