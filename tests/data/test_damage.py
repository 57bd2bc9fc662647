"""Damaged files of digits are made anew; nobody has to know."""

import shutil

import numpy as np
import pytest

from samon_jax import data
from samon_jax.data import cache, reader
from samon_jax.data.dataset import Split
from samon_jax.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMON_CACHE_DIR", str(folder / "cache"))
        (folder / "data").mkdir()
        _ = data.load("digits", str(folder / "data")).train
    return folder / "data"


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


DAMAGES = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "empty": lambda file: file.write_bytes(b""),
    "deleted": lambda file: file.unlink(),
    "flipped": lambda file: file.write_bytes(flip(file.read_bytes())),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["*train*", "dataset_info.json"])
def test_damaged_digits_are_made_anew(prepared, tmp_path, monkeypatch, caplog, damage, file):
    monkeypatch.setenv("SAMON_CACHE_DIR", str(tmp_path / "cache"))
    expected = data.load("digits", str(prepared)).train
    copy = tmp_path / "data"
    shutil.copytree(prepared, copy)
    (path,) = copy.glob(f"digits/1.0.0/{file}")
    DAMAGES[damage](path)
    found = data.load("digits", str(copy)).train
    assert np.array_equal(found.images, expected.images)
    assert np.array_equal(found.labels, expected.labels)
    if file == "*train*":
        assert "made anew" in caplog.text
        assert list(copy.glob("digits/*.damaged"))  # nothing is deleted


def test_a_data_dir_that_does_not_exist_is_not_made(tmp_path):
    with pytest.raises(UserError, match=r"data.dir='.*nowhere' does not exist"):
        _ = data.load("digits", str(tmp_path / "nowhere")).train
    assert not (tmp_path / "nowhere").exists()


def test_cached_images_of_another_shape_are_decoded_again(tmp_path):
    def splits(side):
        images, labels = np.zeros((3, side, side, 1), np.uint8), np.zeros(3, np.int32)
        return {name: Split(images, labels) for name in ("train", "test")}

    path = tmp_path / "cache.npz"
    cache.cached_splits(path, lambda: splits(5))
    found = cache.cached_splits(path, lambda: splits(8), shape=(8, 8, 1))
    assert found["train"].images.shape == (3, 8, 8, 1)


def test_a_full_disk_while_digits_are_written(tmp_path, monkeypatch):
    """array_record's error is none of the system's; nothing is called damaged."""

    def full(builder):
        raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr(reader, "_prepare", full)
    monkeypatch.setenv("SAMON_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    with pytest.raises(UserError, match=r"cannot be written: .* \(write.. failed: No space left"):
        _ = data.load("digits", str(tmp_path / "data")).train
