"""Loading: digits from nothing, CIFAR from disk, the cache, and what the messages say."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

import samon_jax as samon
from samon_jax import data
from samon_jax.data import cache, reader

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def directories(tmp_path, monkeypatch):
    """An empty cache and an empty data directory; returns the data directory."""
    monkeypatch.setenv("SAMON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture(scope="module")
def cifar100_dir():
    directory = Path(os.environ.get("TFDS_DATA_DIR") or REPOSITORY.parent / "shared" / "data")
    if not list(directory.glob("cifar100/*/dataset_info.json")):
        pytest.skip(f"CIFAR-100 is not in {directory}; set TFDS_DATA_DIR to where it is")
    return str(directory)


@pytest.fixture(scope="module")
def cifar100(cifar100_dir, tmp_path_factory):
    """CIFAR-100 and the directory in which it is cached."""
    with pytest.MonkeyPatch.context() as patch:
        directory = tmp_path_factory.mktemp("cifar100")
        patch.setenv("SAMON_CACHE_DIR", str(directory))
        dataset = data.load("cifar100", cifar100_dir)
        assert len(dataset.train.labels) + len(dataset.test.labels) == 60_000  # reads both
        return dataset, directory


def assert_same(first, second):
    for split in ("train", "test"):
        a, b = getattr(first, split), getattr(second, split)
        np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(a.labels, b.labels)


def check_types(dataset):
    for split in (dataset.train, dataset.test):
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int32
        assert split.images.ndim == 4
        assert split.labels.shape == split.images.shape[:1]
        assert set(split.labels) == set(range(dataset.num_classes))


def check_statistics(dataset, tolerance):
    levels = np.arange(256) / 255
    for channel, (mean, std) in enumerate(zip(dataset.mean, dataset.std, strict=True)):
        pixels = dataset.train.images[..., channel].ravel()
        share = np.bincount(pixels, minlength=256) / pixels.size
        assert mean == pytest.approx(share @ levels, abs=tolerance)
        assert std == pytest.approx(
            np.sqrt(share @ levels**2 - (share @ levels) ** 2), abs=tolerance
        )


def test_digits_are_those_of_scikit_learn(directories):
    dataset = data.load("digits")
    check_types(dataset)
    check_statistics(dataset, 5e-5)  # four decimals
    assert dataset.train.images.shape == (1437, 8, 8, 1)
    assert dataset.test.images.shape == (360, 8, 8, 1)
    levels, labels = load_digits(return_X_y=True)
    ours = [
        (label, *image.ravel())
        for split in (dataset.train, dataset.test)
        for image, label in zip(split.images, split.labels, strict=True)
    ]
    # 255 / 16 = 15.9375: the level k becomes 16 k minus k / 16, rounded.
    table = [round(255 * k / 16) for k in range(17)]
    theirs = [
        (label, *(table[int(level)] for level in row))
        for row, label in zip(levels, labels, strict=True)
    ]
    assert sorted(ours) == sorted(theirs)
    shares = np.bincount(dataset.test.labels) / np.bincount(labels)
    assert np.abs(shares * 1797 / 360 - 1).max() < 0.03  # stratified
    assert list(dataset.test.labels[:10]) == [7, 6, 3, 7, 7, 2, 2, 8, 9, 3]  # fixed

    files = sorted(file.name for file in directories.rglob("*") if file.is_file())
    assert files == [
        "dataset_info.json",
        "digits-test.array_record-00000-of-00001",
        "digits-train.array_record-00000-of-00001",
        "features.json",
    ]
    times = {file: file.stat().st_mtime_ns for file in directories.rglob("*")}
    assert_same(dataset, data.load("digits"))
    assert times == {file: file.stat().st_mtime_ns for file in directories.rglob("*")}


def test_digits_in_a_read_only_data_dir_go_to_the_cache(tmp_path, directories):
    directories.mkdir()
    directories.chmod(0o555)
    first = data.load("digits")
    assert len(first.train.labels) == 1437
    assert not list(directories.iterdir())
    assert (tmp_path / "cache" / "tfds" / "digits").is_dir()
    assert_same(first, data.load("digits"))


def test_digits_that_can_be_written_nowhere(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAMON_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(samon.UserError, match="SAMON_CACHE_DIR") as error:
        _ = data.load("digits", str(tmp_path / "file")).train
    assert "\n" not in str(error.value)


def test_digits_lose_a_race_without_harm(directories, monkeypatch):
    expected = data.load("digits")
    # The other process renamed its files just before this one.
    answers = iter([False, True])
    monkeypatch.setattr(reader, "_is_prepared", lambda builder: next(answers))
    assert_same(expected, data.load("digits"))
    assert not list(directories.rglob("incomplete*"))


def test_neither_tensorflow_nor_tfds_is_imported_early(tmp_path):
    code = """
import sys
from samon_jax import data
assert "tensorflow_datasets" not in sys.modules
dataset = data.load("digits")
assert "tensorflow_datasets" not in sys.modules
dataset.train
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def test_unknown_name():
    with pytest.raises(samon.UserError, match=r"'mnist' does not exist.*digits, cifar10, cifar100"):
        data.load("mnist")


@pytest.mark.parametrize("given", [True, False])
def test_missing_data_set_says_how_to_prepare_it(tmp_path, directories, given):
    directory = str(tmp_path / "elsewhere") if given else str(directories)
    Path(directory).mkdir(exist_ok=True)
    with pytest.raises(samon.UserError) as error:
        _ = data.load("cifar10", directory if given else None).train
    message = str(error.value)
    assert "\n" not in message
    assert f"'cifar10' is not in {directory};" in message
    assert "pip install '.[prepare]'" in message
    command = message.partition('python -c "')[2].removesuffix('"')
    compile(command, "message", "exec")
    assert f"tfds.builder('cifar10', data_dir='{directory}', file_format='array_record')" in command


def test_data_dir_is_argument_then_variable_then_default(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", "/variable")
    assert reader.resolve_data_dir(str(tmp_path)) == tmp_path
    assert reader.resolve_data_dir(None) == Path("/variable")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert reader.resolve_data_dir(None) == Path.home() / "tensorflow_datasets"


def test_cache_dir_order(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("SAMON_CACHE_DIR", "/own")
    assert cache.cache_dir() == Path("/own")
    monkeypatch.delenv("SAMON_CACHE_DIR")
    assert cache.cache_dir() == Path("/xdg/samon_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_dir() == Path.home() / ".cache" / "samon_jax"


def small_splits(value=0):
    split = data.Split(
        images=np.full((3, 2, 2, 1), value, np.uint8), labels=np.arange(3, dtype=np.int32)
    )
    return {"train": split, "test": split}


def unexpected_decode():
    raise AssertionError("the cache should have been read")


def test_cache_is_written_once_and_read_back(tmp_path):
    path = tmp_path / "new" / "a.npz"
    cache.cached_splits(path, lambda: small_splits(7))
    again = cache.cached_splits(path, unexpected_decode)
    assert [file.name for file in path.parent.iterdir()] == ["a.npz"]
    np.testing.assert_array_equal(again["test"].images, small_splits(7)["test"].images)
    assert again["test"].labels.dtype == np.int32


def damage_pixel(content):
    position = content.index(bytes([7] * 12))
    return content[:position] + b"\x08" + content[position + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda c: b"", lambda c: c[: len(c) // 2], lambda c: b"x" * len(c), damage_pixel]
)
def test_corrupt_cache_is_rebuilt(tmp_path, caplog, damage):
    path = tmp_path / "a.npz"
    cache.cached_splits(path, lambda: small_splits(7))
    path.write_bytes(damage(path.read_bytes()))
    rebuilt = cache.cached_splits(path, lambda: small_splits(7))
    assert "decoding again" in caplog.text
    assert (rebuilt["train"].images == 7).all()
    cache.cached_splits(path, unexpected_decode)


def test_cache_that_cannot_be_written_is_done_without(tmp_path, caplog):
    (tmp_path / "file").touch()
    splits = cache.cached_splits(tmp_path / "file" / "a.npz", lambda: small_splits(7))
    assert (splits["train"].images == 7).all()
    assert "cannot be written" in caplog.text


def test_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.cached_splits(tmp_path / "a.npz", small_splits)
    assert not list(tmp_path.iterdir())


def test_fingerprint_sees_name_size_and_time(tmp_path):
    file = tmp_path / "a"
    file.write_text("1")
    os.utime(file, ns=(0, 0))
    seen = {cache.fingerprint([file])}
    file.write_text("12")
    os.utime(file, ns=(0, 0))
    seen.add(cache.fingerprint([file]))
    os.utime(file, ns=(0, 1))
    seen.add(cache.fingerprint([file]))
    file = file.rename(tmp_path / "b")
    seen.add(cache.fingerprint([file]))
    assert len(seen) == 4
    assert cache.fingerprint([file]) in seen


def test_cifar100_is_complete(cifar100):
    dataset, _ = cifar100
    check_types(dataset)
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert dataset.test.images.shape == (10_000, 32, 32, 3)
    assert set(np.bincount(dataset.train.labels)) == {500}
    assert set(np.bincount(dataset.test.labels)) == {100}
    check_statistics(dataset, 3e-4)  # the constants in use are rounded differently


def test_cifar100_images_are_the_decoded_pngs(cifar100, cifar100_dir):
    import io

    import tensorflow_datasets as tfds
    from PIL import Image

    dataset, _ = cifar100
    source = tfds.builder("cifar100", data_dir=cifar100_dir).as_data_source(
        split="train", decoders={"image": tfds.decode.SkipDecoding()}
    )
    for i in (0, 12_499, 12_500, 49_999):  # also across files
        with Image.open(io.BytesIO(source[i]["image"])) as image:
            np.testing.assert_array_equal(dataset.train.images[i], np.asarray(image))
        assert dataset.train.labels[i] == source[i]["label"]


def test_cifar100_is_decoded_only_once(cifar100, cifar100_dir, monkeypatch):
    dataset, directory = cifar100
    monkeypatch.setenv("SAMON_CACHE_DIR", str(directory))
    monkeypatch.setattr(reader, "_decode", lambda builder: unexpected_decode())
    assert_same(dataset, data.load("cifar100", cifar100_dir))


def copy_of_cifar100(cifar100_dir, directory):
    """The data set as links, from which a test can take files away."""
    original = next(Path(cifar100_dir).glob("cifar100/*/dataset_info.json")).parent
    copy = directory / "cifar100" / original.name
    copy.mkdir(parents=True)
    for file in original.iterdir():
        (copy / file.name).symlink_to(file)
    return copy


def test_damaged_data_set(cifar100_dir, directories):
    copy = copy_of_cifar100(cifar100_dir, directories)
    shard = min(copy.glob("cifar100-train*"))
    shard.unlink()
    with pytest.raises(samon.UserError, match="is damaged") as error:
        _ = data.load("cifar100").train
    assert shard.name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["digits", "random10", "cifar100"])
def test_a_split_that_is_not_there_is_no_damage(name, tmp_path):
    data.load("digits", str(tmp_path)).read("test")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(samon.UserError, match=rf"'{name}' has no split 'val'; it has train and te"):
        data.load(name, str(tmp_path)).read("val")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"\xff", b"[]", None])
def test_damaged_description_of_a_data_set(cifar100_dir, directories, content):
    info = copy_of_cifar100(cifar100_dir, directories) / "dataset_info.json"
    half = info.read_bytes()[: info.stat().st_size // 2]
    info.unlink()
    info.write_bytes(half if content is None else content)
    with pytest.raises(samon.UserError, match="move it away and prepare it with") as error:
        _ = data.load("cifar100").train
    assert "\n" not in str(error.value)


def test_data_set_in_a_format_of_tensorflow(cifar100_dir, directories):
    copy = copy_of_cifar100(cifar100_dir, directories)
    info = (copy / "dataset_info.json").read_text()
    (copy / "dataset_info.json").unlink()
    (copy / "dataset_info.json").write_text(info.replace("array_record", "tfrecord"))
    with pytest.raises(samon.UserError, match="has the format tfrecord, which needs TensorFlow"):
        _ = data.load("cifar100").train
