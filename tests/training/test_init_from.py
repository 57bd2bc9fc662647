"""Starting from other weights: what is taken, what is new, what is refused."""

import jax
import numpy as np
import pytest

from configs import imagenet
from samon_jax import tasks
from samon_jax.errors import UserError
from samon_jax.models.vit import VisionTransformer
from samon_jax.training.config import default_config
from samon_jax.training.init_from import start_from
from samon_jax.training.loop import train
from samon_jax.training.run import set_up
from samon_jax.workdir import checkpoints
from tests.models.test_augreg import make_arrays


def config_of(directory, **changes):
    config = default_config()
    config.data.name, config.data.dir = "folder", str(directory)
    config.data.image_size, config.data.crop_padding, config.data.threads = 16, 0, 2
    config.model, config.epochs, config.batch_size, config.num_devices = "resnet-8", 1, 18, 1
    config.eval_batch_size = 12
    config.sam.variant, config.log.tensorboard = "none", False
    for name, value in changes.items():
        config[name] = value
    return config


@pytest.fixture(scope="module")
def source(photograph_folders, tmp_path_factory):
    """A finished run on three classes."""
    directory = tmp_path_factory.mktemp("source")
    train(config_of(photograph_folders), directory)
    return directory


@pytest.fixture(scope="module")
def leaves(source):
    return checkpoints.restore(source).leaves


def initial(config):
    shapes = jax.eval_shape(tasks.create(config).init, jax.random.key(1))
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def test_a_run_starts_from_the_checkpoint_of_another(source, leaves, photograph_folders, capsys):
    run = set_up(config_of(photograph_folders, init_from=str(source), seed=5))
    state = run.initial_state()
    for name, leaf in checkpoints.leaves_by_name({"params": state.params}).items():
        np.testing.assert_array_equal(leaf, leaves[name])
    assert any(name.startswith("model_state/batch_stats") for name in leaves)
    for name, leaf in checkpoints.leaves_by_name({"model_state": state.model_state}).items():
        np.testing.assert_array_equal(leaf, leaves[name])
    assert int(state.step) == 0
    assert not any(x.any() for x in jax.tree.leaves(state.opt_state) if hasattr(x, "any"))
    assert f"weights from {source}: all were taken as they are" in capsys.readouterr().out


def test_other_classes_get_a_new_head(source, leaves, photograph_folders, tmp_path, capsys):
    for synset in (photograph_folders / "train").iterdir():
        for split in ("train", "val"):
            target = tmp_path / split / synset.name
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(photograph_folders / split / synset.name)
    for split in ("train", "val"):
        (tmp_path / split / "another").symlink_to(tmp_path / split / "n03763968")
    config = config_of(tmp_path, init_from=str(source))
    run = set_up(config)
    fresh = run.programs.init(np.uint32(0), np.float32(0)).params
    params = run.initial_state().params
    assert params["head"]["kernel"].shape == (64, 4)
    np.testing.assert_array_equal(params["head"]["kernel"], fresh["head"]["kernel"])
    np.testing.assert_array_equal(params["stem"]["kernel"], leaves["params/stem/kernel"])
    assert "the head is new: 3 classes there, 4 here" in capsys.readouterr().out


def vit_params(side, value):
    module = VisionTransformer(3, width=12, depth=1)
    images = np.zeros((1, side, side, 3))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), images, train=False))
    rng = np.random.default_rng(value)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes["params"])


def test_positions_of_another_grid_are_interpolated(tmp_path):
    params = vit_params(16, 0)
    manager = checkpoints.Checkpoints(tmp_path, 1)
    manager.save(3, {"params": params, "model_state": {}})
    manager.close()
    found, notes = start_from(str(tmp_path), {"params": vit_params(24, 1)})
    assert notes == ["positions were interpolated from 16 to 36"]
    positions = found["params"]["pos_embed"]
    assert positions.shape == (1, 37, 12)
    np.testing.assert_array_equal(positions[:, 0], params["pos_embed"][:, 0])
    head = found["params"]["head"]["kernel"]
    np.testing.assert_array_equal(head, params["head"]["kernel"])


def test_the_fine_tuning_recipe_starts_from_a_file_of_augreg(photograph_folders, tmp_path, capsys):
    """Of two blocks, in the TFDS directory; the other ten have the same names and shapes."""
    arrays = make_arrays(grid=2, width=384, heads=6, patch=16)
    np.savez(tmp_path / "x.npz", **arrays)
    config = imagenet.get_config(f"finetune_vit_s16,init_from={tmp_path / 'x.npz'}")
    config.model, config.data.image_size = "vit-s-16x2", 48
    config.data.name, config.data.dir = "folder", str(photograph_folders)
    config.batch_size = config.sam.m = 18
    config.num_devices = 1
    params = set_up(config).initial_state().params
    kernel = arrays["Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"]
    np.testing.assert_array_equal(params["block1"]["fc1"]["kernel"], kernel)
    assert params["head"]["kernel"].shape == (384, 3)
    said = capsys.readouterr().out
    assert "positions were interpolated from 2x2 to 3x3; the head starts at 0: 9 classes" in said


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet-14", r"it lacks model_state/batch_stats/stage1_block1/.*, and \d+ more$"),
        ("wrn-10-2", r"of another architecture than the model: it also holds"),
        ("vit-t", r"of another architecture than the model"),
    ],
)
def test_another_architecture_is_refused(source, photograph_folders, model, message):
    with pytest.raises(UserError, match=message) as error:
        start_from(str(source), initial(config_of(photograph_folders, model=model)))
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_said(tmp_path, photograph_folders):
    variables = initial(config_of(photograph_folders))
    with pytest.raises(UserError, match="is neither a work directory nor a file"):
        start_from(str(tmp_path / "x"), variables)
    with pytest.raises(UserError, match="holds no checkpoint"):
        start_from(str(tmp_path), variables)
    file = tmp_path / "x.npz"
    np.savez(file, cls=np.zeros(3))
    with pytest.raises(UserError, match="which holds a Vision Transformer; model is none"):
        start_from(str(file), variables)
