"""Attacks on pictures of ImageNet's validation set, some at a time."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from samon_jax.data import pictures
from samon_jax.data.imagenet_records import PreparedRecords
from samon_jax.paper import imagenet_measures

SIDE = 16


def features(inputs):
    return inputs[:, ::4, ::4].reshape(len(inputs), -1)


@pytest.fixture
def images_and_labels(photographs):
    records = PreparedRecords("imagenet2012", photographs, "test").read(range(12))
    images = np.empty((12, SIDE, SIDE, 3), np.uint8)
    for image, record in zip(images, records, strict=True):
        pictures.write_centre(pictures.decode(record.data), 0.875, image)
    return images / np.float32(255), np.array([record.label for record in records])


@pytest.fixture
def run(photographs, images_and_labels, monkeypatch):
    """A linear network that gets some of the pictures right."""
    images, labels = images_and_labels
    half = np.asarray(features(images))[::2]
    weights = np.zeros((half.shape[1], 1000), np.float32)
    for x, label in zip(half, labels[::2], strict=True):
        weights[:, label] += x - half.mean(0)
    data = SimpleNamespace(name="imagenet2012", dir=str(photographs), eval_crop=0.875)
    run = SimpleNamespace(
        config=SimpleNamespace(data=data),
        images=SimpleNamespace(image_shape=(SIDE, SIDE, 3)),
        apply=lambda params, inputs: features(inputs) @ params,
        params=jnp.asarray(weights),
        normalizer=lambda: None,
    )
    monkeypatch.setattr(imagenet_measures.trained, "load", lambda directory, which: run)
    monkeypatch.setattr(imagenet_measures, "_AT_ONCE", 6)
    return run


def test_no_attack_is_the_accuracy_and_a_strong_one_leaves_little(run, images_and_labels):
    images, labels = images_and_labels
    clean = np.mean(np.asarray(run.apply(run.params, images)).argmax(1) == labels)
    assert 0 < clean <= 1
    found = [imagenet_measures.robustness("linf", radius, "x").measure(None) for radius in (0, 255)]
    assert found[0] == clean
    assert found[1] == 0  # every picture can be made any other
