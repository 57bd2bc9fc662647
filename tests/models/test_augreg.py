"""AugReg's files: what they hold, made by hand, and what is said of those that do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samon_jax.errors import UserError
from samon_jax.models import augreg
from samon_jax.models.vit import VisionTransformer

WIDTH, HEADS, DEPTH, PATCH = 24, 3, 2, 4


def make_arrays(grid=4, classes=9, width=WIDTH, heads=HEADS, depth=DEPTH, patch=PATCH):
    """Arrays with the names and shapes of a published file."""
    rng = np.random.default_rng(0)

    def array(*shape):
        return rng.normal(size=shape).astype(np.float32)

    arrays = {
        "cls": array(1, 1, width),
        "embedding/kernel": array(patch, patch, 3, width),
        "embedding/bias": array(width),
        "Transformer/posembed_input/pos_embedding": array(1, 1 + grid**2, width),
        "Transformer/encoder_norm/scale": array(width),
        "Transformer/encoder_norm/bias": array(width),
        "head/kernel": array(width, classes),
        "head/bias": array(classes),
    }
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for name in ("query", "key", "value"):
            arrays[f"{attention}/{name}/kernel"] = array(width, heads, width // heads)
            arrays[f"{attention}/{name}/bias"] = array(heads, width // heads)
        arrays[f"{attention}/out/kernel"] = array(heads, width // heads, width)
        arrays[f"{attention}/out/bias"] = array(width)
        for name in ("LayerNorm_0", "LayerNorm_2"):
            arrays[f"{block}/{name}/scale"] = array(width)
            arrays[f"{block}/{name}/bias"] = array(width)
        for name, a, b in (("Dense_0", width, 4 * width), ("Dense_1", 4 * width, width)):
            arrays[f"{block}/MlpBlock_3/{name}/kernel"] = array(a, b)
            arrays[f"{block}/MlpBlock_3/{name}/bias"] = array(b)
    return arrays


def model(**changes):
    settings = {"num_classes": 5, "width": WIDTH, "heads": HEADS, "depth": DEPTH, "patch": PATCH}
    return VisionTransformer(**(settings | changes))


def shapes_of(module, side=16):
    images = jnp.zeros((1, side, side, 3))
    return jax.eval_shape(lambda: module.init(jax.random.key(0), images, train=False))["params"]


def save(path, arrays):
    np.savez(path, **arrays)
    return path


def attention_by_hand(x, arrays, block):
    """Multi-head attention with one product for each head, as the arrays are stored."""
    a = {k.removeprefix(f"{block}/"): v for k, v in arrays.items() if k.startswith(f"{block}/")}
    total = a["out/bias"]
    for head in range(HEADS):
        q, k, v = (
            x @ a[f"{name}/kernel"][:, head] + a[f"{name}/bias"][head]
            for name in ("query", "key", "value")
        )
        weights = jax.nn.softmax(q @ k.T / np.sqrt(WIDTH // HEADS), axis=-1)
        total = total + weights @ v @ a["out/kernel"][head]
    return total


def norm_by_hand(x, arrays, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]


def dense_by_hand(x, arrays, name):
    return x @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"]


def outputs_by_hand(image, arrays):
    """The network of the file, for one image, with erf GELU."""
    patches = image.reshape(4, PATCH, 4, PATCH, 3).transpose(0, 2, 1, 3, 4).reshape(16, -1)
    x = patches @ arrays["embedding/kernel"].reshape(-1, WIDTH) + arrays["embedding/bias"]
    x = np.concatenate([arrays["cls"][0], x])
    x = x + arrays["Transformer/posembed_input/pos_embedding"][0]
    for i in range(DEPTH):
        block = f"Transformer/encoderblock_{i}"
        y = norm_by_hand(x, arrays, f"{block}/LayerNorm_0")
        x = x + attention_by_hand(y, arrays, f"{block}/MultiHeadDotProductAttention_1")
        y = norm_by_hand(x, arrays, f"{block}/LayerNorm_2")
        y = jax.nn.gelu(dense_by_hand(y, arrays, f"{block}/MlpBlock_3/Dense_0"), approximate=False)
        x = x + dense_by_hand(y, arrays, f"{block}/MlpBlock_3/Dense_1")
    x = norm_by_hand(x[0], arrays, "Transformer/encoder_norm")
    return dense_by_hand(x, arrays, "head")


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_the_network_is_that_of_the_file(tmp_path, prefix):
    arrays = make_arrays(classes=5)
    path = save(tmp_path / "x.npz", {prefix + name: array for name, array in arrays.items()})
    module = model()
    params, notes = augreg.load(path, shapes_of(module))
    assert notes == []
    image = np.random.default_rng(1).normal(size=(16, 16, 3)).astype(np.float32)
    found = module.apply({"params": params}, image[None], train=False)[0]
    np.testing.assert_allclose(found, outputs_by_hand(image, arrays), rtol=1e-4, atol=1e-3)


def test_a_head_of_other_classes_starts_at_zero(tmp_path):
    params, notes = augreg.load(save(tmp_path / "x.npz", make_arrays()), shapes_of(model()))
    assert params["head"]["kernel"].shape == (WIDTH, 5)
    assert not params["head"]["kernel"].any()
    assert not params["head"]["bias"].any()
    assert notes == ["the head starts at 0: 9 classes there, 5 here"]


@pytest.mark.parametrize("side", [8, 24])
def test_positions_are_interpolated_as_pytorch_does(tmp_path, side):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    arrays = make_arrays(classes=5)
    params, notes = augreg.load(save(tmp_path / "x.npz", arrays), shapes_of(model(), side))
    new = side // PATCH
    assert notes == [f"positions were interpolated from 4x4 to {new}x{new}"]
    positions = arrays["Transformer/posembed_input/pos_embedding"]
    grid = torch.tensor(positions[:, 1:].reshape(1, 4, 4, WIDTH).transpose(0, 3, 1, 2))
    grid = torch.nn.functional.interpolate(grid, (new, new), mode="bilinear", align_corners=False)
    expected = grid.numpy().transpose(0, 2, 3, 1).reshape(1, new**2, WIDTH)
    np.testing.assert_allclose(params["pos_embed"][:, 1:], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(params["pos_embed"][:, :1], positions[:, :1])


def without(name):
    return lambda arrays: arrays.pop(name)


def with_array(name, shape):
    return lambda arrays: arrays.update({name: np.zeros(shape, np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("cls"), r"it lacks cls$"),
        (without("Transformer/posembed_input/pos_embedding"), r"it lacks .*pos_embedding$"),
        (without("Transformer/encoderblock_1/LayerNorm_2/bias"), r"lacks .*_1/LayerNorm_2/bias$"),
        (
            without("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/bias"),
            r"it lacks \S*_0/MultiHeadDotProductAttention_1/query/bias$",
        ),
        (with_array("pre_logits/kernel", (2, 2)), r"it also holds pre_logits/kernel$"),
        (
            with_array("Transformer/encoderblock_2/LayerNorm_0/bias", (WIDTH,)),
            r"it also holds Transformer/encoderblock_2/LayerNorm_0/bias$",
        ),
        (with_array("embedding/kernel", (16, 16, 3, WIDTH)), r"fit: embedding/kernel is \(16, 16,"),
        (
            with_array("Transformer/posembed_input/pos_embedding", (1, 16, WIDTH)),
            r"pos_embedding is \(1, 16, 24\) instead of \(1, 1 \+ n², 24\)$",
        ),
    ],
)
def test_a_file_of_another_architecture_is_refused(tmp_path, change, message):
    arrays = make_arrays()
    change(arrays)
    path = save(tmp_path / "x.npz", arrays)
    with pytest.raises(UserError, match=message) as error:
        augreg.load(path, shapes_of(model()))
    assert "\n" not in str(error.value)


def test_a_wider_network_is_refused(tmp_path):
    path = save(tmp_path / "x.npz", make_arrays(width=48))
    with pytest.raises(UserError, match=r"fit: cls is \(1, 1, 48\) instead of .* and \d+ more$"):
        augreg.load(path, shapes_of(model()))


def test_what_is_no_npz_file_is_refused(tmp_path):
    path = tmp_path / "x.npz"
    path.write_text("no")
    with pytest.raises(UserError, match=r"is no npz file that can be read"):
        augreg.load(path, shapes_of(model()))


def test_another_kind_of_network_is_refused(tmp_path):
    path = save(tmp_path / "x.npz", make_arrays())
    with pytest.raises(UserError, match="holds a Vision Transformer; model is none"):
        augreg.load(path, {"head": {"bias": jnp.zeros(3)}})
