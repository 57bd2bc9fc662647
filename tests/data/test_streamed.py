"""Streamed batches: a function of (seed, epoch, step), whatever reads them."""

import io
import itertools
import logging
import subprocess
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from samon_jax.data import pictures
from samon_jax.data.folder import FolderRecords
from samon_jax.data.prepare_imagenet import prepare
from samon_jax.data.source import Share
from samon_jax.data.streamed import Record, StreamedSource, take
from samon_jax.errors import UserError


def source_of(directory, **changes):
    settings = {"size": 32, "batch_size": 8, "eval_batch_size": 8, "threads": 2} | changes
    return StreamedSource(
        lambda split: FolderRecords(directory / {"test": "val"}.get(split, split)), **settings
    )


def assert_same(batches, others):
    for batch, other in itertools.zip_longest(batches, others):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_batches_are_what_they_say(photograph_folders):
    source = source_of(photograph_folders)
    assert (source.num_examples, source.steps_per_epoch) == (36, 4)
    batches = list(source.epoch(0, 0))
    ((shapes, count),) = source.shapes()
    assert count == len(batches)
    for batch in batches:
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            k: (v.shape, v.dtype) for k, v in shapes.items()
        }
    assert set(np.concatenate([b["labels"] for b in batches])) == {0, 1, 2}
    seeds = np.concatenate([b["seeds"] for b in batches])
    assert len(set(seeds)) == len(seeds)
    fetched = take((), batches[0])
    np.testing.assert_array_equal(fetched.images, batches[0]["images"])


def test_a_picture_is_the_crop_of_its_draws(photograph_folders):
    """One batch done by hand: NumPy's generator, the transcribed crop, Pillow's resize."""
    source = source_of(photograph_folders)
    batch = next(itertools.islice(source.epoch(5, 3), 2, None))
    order = np.random.default_rng((5, 3)).permutation(36)[16:24]
    draws = np.random.default_rng((5, 3, 2, 2)).random((8, pictures.DRAWS))
    records = FolderRecords(photograph_folders / "train").read(order.tolist())
    for row, record in enumerate(records):
        picture = pictures.decode(record.data)
        out = np.empty((32, 32, 3), np.uint8)
        pictures.write_crop(picture, *pictures.training_crop(*picture.shape[:2], draws[row]), out)
        np.testing.assert_array_equal(batch["images"][row], out)
        assert batch["labels"][row] == record.label


@pytest.mark.parametrize("threads", [1, 16])
def test_threads_change_nothing(photograph_folders, threads):
    expected = source_of(photograph_folders, threads=2).epoch(1, 2)
    assert_same(source_of(photograph_folders, threads=threads).epoch(1, 2), expected)


def test_any_step_can_be_begun_with(photograph_folders):
    source = source_of(photograph_folders)
    whole = list(source.epoch(0, 1))
    for start in range(5):
        assert_same(source.epoch(0, 1, start), whole[start:])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_take_their_rows_of_the_same_batches(photograph_folders, processes):
    def parts(batches_of):
        sources = [
            source_of(photograph_folders, share=Share(p, processes), devices=processes)
            for p in range(processes)
        ]
        for batches in zip(*(batches_of(s) for s in sources), strict=True):
            yield {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}

    one = source_of(photograph_folders, devices=processes)
    assert_same(parts(lambda s: s.epoch(0, 0)), one.epoch(0, 0))
    assert_same(source_of(photograph_folders, devices=1).epoch(0, 0), one.epoch(0, 0))
    assert_same(parts(lambda s: s.evaluation().batches), one.evaluation().batches)


def test_epochs_and_seeds_differ(photograph_folders):
    source = source_of(photograph_folders)
    first, *others = (next(source.epoch(*x))["images"] for x in [(0, 0), (0, 1), (1, 0)])
    assert all((first != other).any() for other in others)


@pytest.mark.parametrize(("batch_size", "devices"), [(5, 1), (12, 1), (100, 4), (7, 2)])
def test_an_evaluation_has_every_picture_once(photograph_folders, batch_size, devices):
    source = source_of(photograph_folders, eval_batch_size=batch_size, devices=devices)
    examples = source.evaluation("test")
    batches = list(examples.batches)
    assert len({batch["images"].shape for batch in batches}) == 1
    assert len(batches[0]["images"]) % devices == 0
    valid = np.concatenate([batch["valid"] for batch in batches])
    images = np.concatenate([batch["images"] for batch in batches])[valid]
    labels = np.concatenate([batch["labels"] for batch in batches])[valid]
    records = FolderRecords(photograph_folders / "val")
    assert len(images) == len(records) == 12
    out = np.empty((32, 32, 3), np.uint8)
    for image, label, record in zip(images, labels, records.read(range(12)), strict=True):
        pictures.write_centre(pictures.decode(record.data), 0.875, out)
        np.testing.assert_array_equal(image, out)
        assert label == record.label


class Listed:
    """Records in memory."""

    def __init__(self, records):
        self.records = records

    def __len__(self):
        return len(self.records)

    def read(self, indices):
        return [self.records[i] for i in indices]


@pytest.fixture
def damaged(photograph_folders):
    """Records of which two in a row are truncated."""
    records = FolderRecords(photograph_folders / "train").read(range(6))
    for i in (2, 3):
        records[i] = records[i]._replace(name=f"bad{i}", data=records[i].data[:900])
    settings = {"size": 16, "batch_size": 6, "eval_batch_size": 6, "threads": 2}
    return StreamedSource(lambda split: Listed(records), **settings)


def test_training_goes_on_without_a_truncated_picture(damaged, caplog):
    with caplog.at_level(logging.WARNING):
        batches = [next(damaged.epoch(0, epoch)) for epoch in range(2)]
        again = [next(damaged.epoch(0, epoch)) for epoch in range(2)]
    assert_same(batches, again)
    assert set(damaged.damaged) == {"bad2", "bad3"}
    assert len(caplog.records) == 2  # each is named once
    assert "bad2" in caplog.text
    assert "2 so far" in caplog.text


def test_an_evaluation_stops_at_a_truncated_picture(damaged):
    with pytest.raises(UserError, match=r"^picture 'bad2' of split 'test' cannot be decoded"):
        list(damaged.evaluation().batches)


def test_nothing_but_truncated_pictures_is_an_error():
    source = StreamedSource(
        lambda split: Listed([Record("x", b"", 0)] * 4),
        size=16,
        batch_size=2,
        eval_batch_size=2,
        threads=1,
    )
    with pytest.raises(UserError, match="no picture of the training split"):
        list(source.epoch(0, 0))


def test_a_closed_iterator_leaves_no_thread(photograph_folders):
    batches = source_of(photograph_folders).epoch(0, 0)
    next(batches)
    assert any(t.name.startswith("pictures") for t in threading.enumerate())
    batches.close()
    assert not any(t.name.startswith("pictures") for t in threading.enumerate())


def test_limits_and_too_large_batches(photograph_folders):
    source = source_of(photograph_folders, limits={"train": 10, "test": 5})
    assert source.num_examples == 10
    valid = np.concatenate([b["valid"] for b in source.evaluation().batches])
    assert valid.sum() == 5
    with pytest.raises(UserError, match=r"data.train_examples=37 is not allowed; .* has 36"):
        _ = source_of(photograph_folders, limits={"train": 37}).num_examples
    with pytest.raises(UserError, match=r"batch_size=64 is not allowed; .* has 36 examples"):
        _ = source_of(photograph_folders, batch_size=64).steps_per_epoch


def test_a_border_is_cut_off(photograph_folders):
    cut = source_of(photograph_folders, border=2)
    batch = next(cut.evaluation().batches)
    (record,) = FolderRecords(photograph_folders / "val").read([0])
    out = np.empty((32, 32, 3), np.uint8)
    pictures.write_centre(pictures.decode(record.data)[2:-2, 2:-2], 0.875, out)
    np.testing.assert_array_equal(batch["images"][0], out)


_MEMORY = """
import sys
from pathlib import Path
from samon_jax.data.imagenet_records import PreparedRecords
from samon_jax.data.streamed import StreamedSource

source = StreamedSource(
    lambda split: PreparedRecords("imagenet2012", Path(sys.argv[1]), split),
    size=64, batch_size=4, eval_batch_size=4, threads=2,
)
def peak():  # ru_maxrss would begin with the memory of the process that started this one
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024
found = []
for _ in source.epoch(0, 0):
    found.append(peak())
print(len(found), found[3], found[-1])
"""


def test_the_data_set_is_never_in_memory(tmp_path):
    """On disk it has 240 MB, decoded as many; after the fourth batch memory grows by less than 60.

    The pictures are small files with 4 MB after their end, which no decoder reads.
    """
    file, rng = io.BytesIO(), np.random.default_rng(0)
    noise = rng.integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1100, 1100)).save(file, "JPEG", quality=60)
    folder = tmp_path / "train" / "n03763968"
    folder.mkdir(parents=True)
    (folder / "0.JPEG").write_bytes(file.getvalue() + rng.bytes(4_000_000))
    for i in range(1, 60):
        (folder / f"{i}.JPEG").hardlink_to(folder / "0.JPEG")
    prepare(tmp_path, tmp_path / "out", progress=False)
    size = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.array_record*"))
    assert size > 230e6
    found = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    batches, early, late = map(int, found.stdout.split())
    assert batches == 15
    assert late - early < 60
    assert late < 2048  # MiB, all in all
