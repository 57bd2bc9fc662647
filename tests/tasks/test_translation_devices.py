"""Translation on several devices, whatever their layout, and several seeds at once."""

import functools

import jax
import numpy as np
import pytest

from samon_jax.data import make_source
from samon_jax.errors import UserError
from samon_jax.training import devices as devices_room
from samon_jax.training import loop, reading, sweep
from samon_jax.training.journal import claim
from samon_jax.training.run import set_up
from samon_jax.workdir import files
from tests.tasks import sentences


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMON_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield sentences.write(tmp_path_factory.mktemp("text"), train=60, val=6, test=7)


@pytest.fixture(scope="module")
def train(folder, tmp_path_factory):
    """`train(devices, parallel, fsdp)`: an epoch of SAM-ON with m = 4; summary and parameters."""

    @functools.cache
    def run(count, parallel="pmap", fsdp=1):
        config = sentences.config(
            folder,
            num_devices=count,
            devices__parallel=parallel,
            devices__fsdp=fsdp,
            sam__m=4,
            translation__dropout=0.0,  # a device draws its own
            translation__beam=1,
        )
        workdir = tmp_path_factory.mktemp("run")
        summary = loop.train(config, workdir)
        alone = reading.evaluate(reading.read(workdir), devices_room.take(1), "val")
        assert alone["val_loss"] == pytest.approx(summary["val_loss"], rel=1e-4)
        return summary, reading.read(workdir).variables["params"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices_room, "_DIVIDED_ELEMENTS", 8)  # the toy's leaves are small
        yield run


@pytest.mark.parametrize(
    "layout", [(2,), pytest.param((2, "jit"), marks=pytest.mark.slow), (4, "jit", 2)]
)
def test_a_run_is_the_same_on_several_devices(train, layout):
    """As many sentences share an ε, so that only rounding differs, which Adam makes larger."""
    (one, expected), (other, found) = train(1), train(*layout)
    assert one["train_loss"] > 0
    assert other["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
    for name in ("val_loss", "val_bleu", "val_chrf"):
        assert other[name] == pytest.approx(one[name], rel=1e-3)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_another_number_of_devices_is_another_run(folder, tmp_path):
    """Whatever m is: it says how many rows a batch has."""
    claim(tmp_path, set_up(sentences.config(folder, num_devices=1, sam__m=4)).config)
    with pytest.raises(UserError, match=r"num_devices"):
        claim(tmp_path, set_up(sentences.config(folder, num_devices=2, sam__m=4)).config)


def test_m_is_of_no_account_without_a_perturbation(folder):
    sources = [
        make_source(sentences.config(folder, sam__variant="none", sam__m=m)) for m in (0, 16)
    ]
    assert sources[0].shapes() == sources[1].shapes()


@pytest.mark.parametrize(("count", "m"), [(1, 16), (2, 8), (2, 3)])
def test_every_batch_has_whole_parts_for_an_epsilon(folder, count, m):
    run = set_up(
        sentences.config(
            folder,
            num_devices=count,
            sam__m=m,
            translation__shapes=3,
            translation__batch_tokens=1024,
        )
    )
    rows = {raw["source"].shape[0] for raw, _ in run.source.shapes()}
    assert {n % (count * m) for n in rows} == {0}
    assert {n % run.config.batch_size for n in rows} == {0}


def test_more_sentences_of_an_epsilon_than_a_batch_holds(folder):
    with pytest.raises(UserError, match=r"batch_tokens=128 is not allowed.*sam\.m on each of them"):
        set_up(sentences.config(folder, sam__m=64))


def test_seeds_whose_batches_differ_in_shape_go_one_after_the_other(folder, tmp_path):
    def config(seed):
        fields = {"translation__shapes": 3, "translation__batch_tokens": 64, "sam__variant": "none"}
        return sentences.config(folder, seed=seed, translation__beam=1, **fields)

    source = set_up(config(0)).source
    orders = [[raw["source"].shape for raw in source.epoch(seed, 0)] for seed in (0, 1)]
    assert orders[0] != orders[1]
    folders = [tmp_path / f"seed{seed}" for seed in (0, 1)]
    found = sweep.train_together([config(0), config(1)], folders)
    assert [files.read_summary(path) for path in folders] == found
    assert found[0]["train_loss"] != found[1]["train_loss"]
