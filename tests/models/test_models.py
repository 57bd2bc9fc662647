"""Counts, names, dtypes and BatchNorm of the models, and their forward pass against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samon_jax as samon
from samon_jax import models
from samon_jax.models.resnet import subsample_and_pad
from tests.models.helpers import (
    NumpyNorm,
    count,
    count_norms,
    equations,
    forward,
    initialize,
    np_conv,
    paths,
    shapes,
)


def test_wrn_28_10_has_the_published_size():
    # Stages of 4 blocks (28 = 6 * 4 + 4) with 160, 320 and 640 channels; 3x3 kernels have 9 pixels.
    stem = 9 * 3 * 16
    stage1 = 9 * 16 * 160 + 7 * 9 * 160 * 160 + 16 * 160  # the last term is the 1x1 shortcut
    stage2 = 9 * 160 * 320 + 7 * 9 * 320 * 320 + 160 * 320
    stage3 = 9 * 320 * 640 + 7 * 9 * 640 * 640 + 320 * 640
    head = 640 * 100 + 100
    # The first norm of each stage sees the channels of the stage before; two numbers per channel.
    norms = 2 * ((16 + 7 * 160) + (160 + 7 * 320) + (320 + 7 * 640) + 640)
    assert norms == 17_952
    assert stem + stage1 + stage2 + stage3 + head + norms == 36_536_884

    params = shapes("wrn-28-10", 100)
    assert count(params) == 36_536_884
    assert count_norms(params) == 17_952
    assert round(100 * count_norms(params) / count(params), 2) == 0.05  # per cent, section 4.1


def test_wrn_of_width_1_has_no_shortcut_in_stage_1():
    convs = 9 * (3 * 16 + 2 * 16 * 16 + (16 + 32) * 32 + (32 + 64) * 64)
    shortcuts = 16 * 32 + 32 * 64
    norms = 2 * ((16 + 16) + (16 + 32) + (32 + 64) + 64)
    assert count(shapes("wrn-10-1", 10)) == convs + shortcuts + norms + 64 * 10 + 10


@pytest.mark.parametrize(
    ("name", "num_classes", "total"),
    [("resnet-56", 100, 858_868), ("resnet-56b", 100, 861_620), ("resnet-20", 10, 269_722)],
)
def test_resnet_sizes(name, num_classes, total):
    # He et al. print 0.27 M for ResNet-20 and 0.85 M for ResNet-56 with 10 classes (Table 6).
    n = {"resnet-56": 9, "resnet-56b": 9, "resnet-20": 3}[name]
    stage1 = 2 * n * 9 * 16 * 16
    stage2 = 9 * 16 * 32 + (2 * n - 1) * 9 * 32 * 32
    stage3 = 9 * 32 * 64 + (2 * n - 1) * 9 * 64 * 64
    norms = 2 * (16 + 2 * n * (16 + 32 + 64))  # one after the stem, one after every 3x3 convolution
    shortcuts = 0
    if name.endswith("b"):  # option B: 1x1 convolutions into stages 2 and 3, each with a norm
        shortcuts = 16 * 32 + 32 * 64
        norms += 2 * (32 + 64)
    head = 64 * num_classes + num_classes
    assert 9 * 3 * 16 + stage1 + stage2 + stage3 + shortcuts + norms + head == total

    params = shapes(name, num_classes)
    assert count(params) == total
    assert count_norms(params) == norms


def test_digits_resnet_size():
    convs = 9 * (1 * 16 + 2 * 16 * 16 + (16 + 32) * 32 + (32 + 64) * 64)
    shortcuts = 16 * 32 + 32 * 64
    norms = 2 * ((16 + 16) + (16 + 32) + (32 + 64) + 64)
    params = shapes("digits-resnet", 10, (8, 8, 1))
    assert count(params) == convs + shortcuts + norms + 64 * 10 + 10
    assert count_norms(params) == norms


@pytest.mark.parametrize("name", ["wrn-16-2", "resnet-14", "digits-resnet"])
def test_names_of_layers(name):
    params = shapes(name, 10, (8, 8, 1) if name == "digits-resnet" else (32, 32, 3))
    blocks = {"wrn-16-2": 2, "resnet-14": 2, "digits-resnet": 1}[name]
    around = {"stem", "head", "stem_norm" if name == "resnet-14" else "norm_out"}
    stages = {f"stage{s}_block{b}" for s in (1, 2, 3) for b in range(blocks)}
    assert set(params) == around | stages
    with_shortcut = {
        "wrn-16-2": {"stage1_block0", "stage2_block0", "stage3_block0"},
        "resnet-14": set(),
        "digits-resnet": {"stage2_block0", "stage3_block0"},
    }[name]
    for stage in stages:
        shortcut = {"shortcut"} if stage in with_shortcut else set()
        assert set(params[stage]) == {"norm1", "norm2", "conv1", "conv2"} | shortcut
        assert set(params[stage]["conv1"]) == {"kernel"}
    mask = samon.only_norm_in("stage3")(params)
    assert paths(mask, lambda selected: selected) == {
        f"stage3_block{b}/norm{i}/{leaf}"
        for b in range(blocks)
        for i in (1, 2)
        for leaf in ("scale", "bias")
    }


@pytest.mark.parametrize("name", ["wrn-10-1", "resnet-8", "digits-resnet"])
def test_bfloat16_computes_in_bfloat16_and_stores_float32(name):
    model, images, variables = initialize(name, jnp.bfloat16)
    exact, _, _ = initialize(name)
    stored = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype("float32")}
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))(variables, images)
    # Walks into the jitted sub-programs (relu) as well.
    convs = [e for e in equations(program.jaxpr) if e.primitive.name == "conv_general_dilated"]
    assert len(convs) >= 7
    assert {e.outvars[0].aval.dtype for e in convs} == {jnp.dtype("bfloat16")}

    logits, updates = forward(model, variables, images)
    assert logits.dtype == jnp.float32
    assert logits.shape == (4, 5)
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}
    expected, _ = forward(exact, variables, images)
    difference = np.abs(np.asarray(logits - expected)).max() / np.abs(np.asarray(expected)).max()
    assert 0 < difference < 0.1  # bfloat16 has 8 bits


def test_initialization_is_that_of_the_pytorch_codes():
    def kernels(name):
        model = models.create(name, 100)
        params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)["params"]
        assert not np.asarray(params["head"]["bias"]).any()
        conv = params["stage3_block0"]["conv1"]["kernel"]
        return np.asarray(conv), np.asarray(params["head"]["kernel"])

    conv, head = kernels("wrn-10-2")
    assert conv.shape == (3, 3, 64, 128)
    assert conv.std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)  # fan out
    assert np.abs(conv).max() > 3.5 * conv.std()  # not truncated
    bound = 1 / np.sqrt(128)
    assert 0.99 * bound < np.abs(head).max() <= bound
    assert head.std() == pytest.approx(bound / np.sqrt(3), rel=0.02)  # uniform

    conv, head = kernels("resnet-8")
    assert conv.std() == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.03)  # fan in
    assert head.std() == pytest.approx(np.sqrt(2 / 64), rel=0.03)


def test_option_a_shortcut_by_hand():
    x = np.arange(2 * 4 * 4 * 3, dtype=np.float32).reshape(2, 4, 4, 3)
    y = np.zeros((2, 2, 2, 8), np.float32)
    for i in range(2):
        for j in range(2):
            y[:, i, j, 2:5] = x[:, 2 * i, 2 * j]
    np.testing.assert_array_equal(subsample_and_pad(jnp.asarray(x), 8, 2), y)
    np.testing.assert_array_equal(subsample_and_pad(jnp.asarray(x), 3, 1), x)


# --- The networks once more, in NumPy and float64 ------------------------------------------------


def np_resnet8(p, s, x, norm, projection=False):
    x = np_conv(x, p["stem"]["kernel"])
    x = np.maximum(norm(x, p["stem_norm"], s["stem_norm"], "stem_norm"), 0)
    for stage in (1, 2, 3):
        name, stride = f"stage{stage}_block0", 1 if stage == 1 else 2
        q, t = p[name], s[name]
        y = np_conv(x, q["conv1"]["kernel"], stride)
        y = np.maximum(norm(y, q["norm1"], t["norm1"], f"{name}/norm1"), 0)
        y = norm(np_conv(y, q["conv2"]["kernel"]), q["norm2"], t["norm2"], f"{name}/norm2")
        if stage > 1 and projection:
            x = np_conv(x, q["shortcut"]["kernel"], stride)
            x = norm(x, q["shortcut_norm"], t["shortcut_norm"], f"{name}/shortcut_norm")
        elif stage > 1:
            old = x[:, ::2, ::2]
            x = np.zeros_like(y)
            quarter = y.shape[3] // 4
            x[..., quarter : 3 * quarter] = old
        x = np.maximum(x + y, 0)
    return x.mean((1, 2)) @ np.asarray(p["head"]["kernel"]) + np.asarray(p["head"]["bias"])


def np_resnet8b(p, s, x, norm):
    return np_resnet8(p, s, x, norm, projection=True)


def np_preact(p, s, x, norm, stem_stride=1):
    x = np_conv(x, p["stem"]["kernel"], stem_stride)
    for stage in (1, 2, 3):
        name, stride = f"stage{stage}_block0", 1 if stage == 1 else 2
        q, t = p[name], s[name]
        a = np.maximum(norm(x, q["norm1"], t["norm1"], f"{name}/norm1"), 0)
        y = np_conv(a, q["conv1"]["kernel"], stride)
        y = np.maximum(norm(y, q["norm2"], t["norm2"], f"{name}/norm2"), 0)
        y = np_conv(y, q["conv2"]["kernel"])
        x = y + (x if stage == 1 else np_conv(a, q["shortcut"]["kernel"], stride))
    x = np.maximum(norm(x, p["norm_out"], s["norm_out"], "norm_out"), 0)
    return x.mean((1, 2)) @ np.asarray(p["head"]["kernel"]) + np.asarray(p["head"]["bias"])


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("name", "reference", "channels"),
    [
        ("resnet-8", np_resnet8, 3),
        ("resnet-8b", np_resnet8b, 3),
        ("wrn-10-1", np_preact, 3),
        ("wrn-10-1-stem2", partial(np_preact, stem_stride=2), 3),
        ("digits-resnet", np_preact, 1),
    ],
)
def test_forward_pass_equals_numpy(name, reference, channels, train):
    model, images, variables = initialize(name, image_shape=(8, 8, channels))
    params, stats = variables["params"], variables["batch_stats"]
    logits, updates = forward(model, variables, images, train)
    norm = NumpyNorm(train)
    expected = reference(params, stats, np.asarray(images, np.float64), norm)
    np.testing.assert_allclose(logits, expected, rtol=2e-3, atol=2e-3)
    if not train:
        same = jax.tree.map(np.array_equal, updates["batch_stats"], stats)
        assert all(jax.tree.leaves(same))
        return
    assert 2 * len(norm.running) == len(jax.tree.leaves(stats))
    for path, (mean, var) in norm.running.items():
        node = updates["batch_stats"]
        for part in path.split("/"):
            node = node[part]
        np.testing.assert_allclose(node["mean"], mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(node["var"], var, rtol=1e-4, atol=1e-4)


def test_each_device_has_its_own_statistics():
    model, _, variables = initialize("resnet-8")
    images = jax.random.normal(jax.random.key(2), (2, 4, 8, 8, 3)) * jnp.array([1.0, 3.0]).reshape(
        2, 1, 1, 1, 1
    )
    together = jax.pmap(
        lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"]),
        axis_name="batch",
        devices=jax.devices()[:2],
    )(images)
    for device in (0, 1):
        alone = forward(model, variables, images[device])
        jax.tree.map(
            lambda a, b, i=device: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-4),
            together,
            alone,
        )
    first, second = together[1]["batch_stats"]["stem_norm"]["var"]
    assert not np.allclose(first, second, rtol=0.1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrn-27-10", "model='wrn-27-10': depth=27 of a WideResNet must be 6n + 4"),
        ("wrn-4-10", "depth=4"),
        ("wrn-28-0", "width=0"),
        ("resnet-19", "model='resnet-19': depth=19 of a CIFAR ResNet must be 6n + 2"),
        ("resnet-2", "depth=2"),
        ("wrn-28", "model='wrn-28' does not exist; choose one of cifar-resnet-<depth>, "),
        ("vgg", "digits-resnet"),
        ("wrn-28-10x", "does not exist"),
    ],
)
def test_wrong_names(name, said):
    with pytest.raises(samon.UserError) as error:
        models.create(name, 10)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_num_classes():
    with pytest.raises(samon.UserError, match="num_classes=0"):
        models.create("resnet-8", 0)


def test_names_are_listed():
    assert {"wrn-<depth>-<width>", "resnet-<depth>", "digits-resnet"} <= set(models.names())
