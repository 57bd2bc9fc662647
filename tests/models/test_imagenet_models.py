"""ImageNet's networks: sizes, beginnings, and equality with plain PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samon_jax as samon
from samon_jax import models
from samon_jax.errors import UserError

NAMES = ("imagenet-resnet-50", "vit-s-32", "vit-s-16")


def shapes_of(name, classes=1000):
    model = models.create(name, classes)
    images = jnp.zeros((1, 224, 224, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))


@pytest.mark.parametrize(
    ("name", "parameters", "of_norms"),
    [
        ("imagenet-resnet-50", 25_557_032, 53_120),
        ("vit-s-32", 22_878_952, 19_200),
        ("vit-s-16", 22_050_664, 19_200),
    ],
)
def test_sizes_are_the_published_ones(name, parameters, of_norms):
    params = shapes_of(name)["params"]
    sizes = jax.tree.map(lambda x: int(np.prod(x.shape)), params)
    labels = samon.label_params(params)
    norms = jax.tree.map(lambda s, label: s * label.startswith("norm"), sizes, labels)
    assert sum(jax.tree.leaves(sizes)) == parameters
    assert sum(jax.tree.leaves(norms)) == of_norms


def test_every_block_begins_as_its_shortcut():
    module = models.create("imagenet-resnet-50", 10).clone(blocks=(2, 1))
    params = module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)["params"]
    blocks = {name: block for name, block in params.items() if name.startswith("stage")}
    assert len(blocks) == 3
    for block in blocks.values():
        assert (block["norm3"]["scale"] == 0).all()
        assert (block["norm1"]["scale"] == 1).all()
        assert (block["norm2"]["scale"] == 1).all()
    assert (params["stem_norm"]["scale"] == 1).all()


def test_a_network_of_some_blocks_is_the_beginning_of_the_whole_one():
    small, whole = (shapes_of(name)["params"] for name in ("vit-s-16x2", "vit-s-16"))
    assert set(whole) - set(small) == {f"block{i}" for i in range(2, 12)}
    assert small == {name: whole[name] for name in small}


@pytest.mark.parametrize("depth", [50, 152])
def test_a_name_that_could_mean_two_networks_is_refused(depth):
    with pytest.raises(UserError, match=f"say imagenet-resnet-{depth} for .*cifar-resnet-{depth}"):
        models.create(f"resnet-{depth}", 10)
    assert models.create(f"cifar-resnet-{depth}", 10).depth == depth
    assert sum(models.create(f"imagenet-resnet-{depth}", 10).blocks) * 3 + 2 == depth


def random_variables(module, side):
    """Variables in which nothing is 0 or 1, and statistics of norms are not trivial."""
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), train=False)
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        last, noise = path[-1].key, rng.normal(size=leaf.shape).astype(np.float32)
        if last == "kernel":
            return noise / np.sqrt(np.prod(leaf.shape[:-1]))
        if last in ("scale", "var"):
            return 0.7 + 0.3 * np.abs(noise)
        return 0.1 * noise

    return jax.tree_util.tree_map_with_path(draw, dict(shapes))


def logits(module, variables, images):
    return jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, images)


def test_resnet_50_equals_pytorchs():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests.models import torch_models

    module = models.create("imagenet-resnet-50", 7)
    variables = random_variables(module, 64)
    reference = torch_models.fill(torch_models.ResNet(7), variables).eval()
    images = np.random.default_rng(1).normal(size=(2, 65, 96, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    found = logits(module, variables, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_resnet_equals_pytorchs_in_training():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests.models import torch_models

    module = models.create("imagenet-resnet-50", 7).clone(blocks=(1, 2))
    variables = random_variables(module, 64)
    reference = torch_models.fill(torch_models.ResNet(7, (1, 2)), variables).train()
    images = np.random.default_rng(1).normal(size=(4, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    found, updated = module.apply(variables, images, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    # PyTorch averages the unbiased variance, n / (n - 1) of ours: compare means.
    means = updated["batch_stats"]["stage2_block1"]["norm3"]["mean"]
    theirs = reference.stage2_block1.norm3.running_mean.numpy()
    np.testing.assert_allclose(means, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("patch", [32, 16])
def test_vits_equal_pytorchs(patch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests.models import torch_models

    module = models.create(f"vit-s-{patch}", 7)
    variables = random_variables(module, 224)
    reference = torch_models.fill(torch_models.ViT(7, patch), {"params": variables["params"]})
    images = np.random.default_rng(1).normal(size=(1, 224, 224, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference.eval()(torch.tensor(images.transpose(0, 3, 1, 2))).numpy()
    found = logits(module, variables, images)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
