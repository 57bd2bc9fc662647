"""ImageNet's format: the preparer, and what reads it back."""

import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samon_jax.data import photographs as shipped
from samon_jax.data import pictures, prepare_imagenet
from samon_jax.data.folder import FolderRecords
from samon_jax.data.imagenet_records import PreparedRecords
from samon_jax.data.photographs import CLASSES
from samon_jax.data.prepare_imagenet import main, prepare
from samon_jax.errors import UserError


def test_records_are_the_files(photographs, photograph_folders):
    import tensorflow_datasets as tfds

    names = tfds.builder("imagenet2012", data_dir=photographs).info.features["label"].names
    for split, folder in (("train", "train"), ("test", "val")):
        records = PreparedRecords("imagenet2012", photographs, split)
        files = FolderRecords(photograph_folders / folder)
        assert len(records) == len(files)
        expected = {Path(x.name).name: x for x in files.read(range(len(files)))}
        for record in records.read(range(len(records))):
            assert record.data == expected[record.name].data
            assert names[record.label] == sorted(CLASSES)[expected[record.name].label]


def test_the_stock_builder_decodes_them(photographs):
    import tensorflow_datasets as tfds

    source = tfds.builder("imagenet2012", data_dir=photographs).as_data_source("validation")
    records = PreparedRecords("imagenet2012", photographs, "test")
    np.testing.assert_array_equal(source[3]["image"], pictures.decode(records.read([3])[0].data))


def test_tensorflow_is_not_imported(photographs):
    code = (
        "import sys; from pathlib import Path\n"
        "from samon_jax.data.imagenet_records import PreparedRecords\n"
        f"PreparedRecords('imagenet2012', Path({str(photographs)!r}), 'train').read([0])\n"
        "assert 'tensorflow' not in sys.modules and 'jax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def encoded(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def add(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def archives(tmp_path):
    """ImageNet's two archives, with a picture in CMYK and a PNG under a wrong name."""
    image = photographs_small()
    data = {
        "n03763968": {"n03763968_1.JPEG": encoded(image, "JPEG")},
        "n03877845": {
            "n03877845_1.JPEG": encoded(image.convert("CMYK"), "JPEG"),
            "n03877845_2.JPEG": encoded(image, "PNG"),
        },
    }
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as train:
        for synset, files in data.items():
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for name, content in files.items():
                    add(archive, name, content)
            add(train, f"{synset}.tar", inner.getvalue())
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as validation:
        for i in (2, 1):
            name = f"ILSVRC2012_val_{i:08d}.JPEG"
            add(validation, name, data["n03763968"]["n03763968_1.JPEG"])
    return tmp_path, data


def photographs_small():
    return shipped.photographs()[0].resize((40, 30))


def test_archives_are_prepared_and_odd_files_repaired(archives, capsys):
    source, data = archives
    assert main([str(source), str(source / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("3 pictures for train, 2 pictures for validation\n")
    assert "1281167" in captured.err  # the bar
    records = PreparedRecords("imagenet2012", source / "out", "train")
    found = {record.name: record for record in records.read(range(3))}
    original = data["n03763968"]["n03763968_1.JPEG"]
    assert found["n03763968_1.JPEG"].data == original  # to the byte
    for name in ("n03877845_1.JPEG", "n03877845_2.JPEG"):
        with Image.open(io.BytesIO(found[name].data)) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            before = pictures.decode(data["n03877845"][name]).astype(int)
            assert np.abs(np.asarray(image) - before).mean() < 4
    assert [found[name].label for name in sorted(found)] == [652, 698, 698]
    # The first two of TFDS's list, in the order of names whatever that of the archive.
    validation = PreparedRecords("imagenet2012", source / "out", "test").read(range(2))
    labels = {record.name: record.label for record in validation}
    assert labels == {"ILSVRC2012_val_00000001.JPEG": 65, "ILSVRC2012_val_00000002.JPEG": 970}


def test_mistakes_of_the_preparer_are_one_line(tmp_path, capsys, photographs):
    assert main([str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds neither ILSVRC2012_img_train.tar and" in capsys.readouterr().err
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "x.jpg").write_bytes(encoded(photographs_small(), "JPEG"))
    assert main([str(tmp_path), str(photographs)]) == 2
    assert "exists already; remove it" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"the class 'cat' is none of ImageNet's 1,000"):
        prepare(tmp_path, tmp_path / "out", progress=False)
    (tmp_path / "train" / "cat").rename(tmp_path / "train" / "n03763968")
    (tmp_path / "train" / "n03763968" / "x.jpg").write_bytes(b"no")
    with pytest.raises(UserError, match=r"x\.jpg cannot be decoded \(no picture\)"):
        prepare(tmp_path, tmp_path / "out", progress=False)


def test_what_is_missing_is_said(photographs, tmp_path):
    with pytest.raises(UserError, match=r"'imagenet2012' is not in .*; prepare it with: .*python"):
        PreparedRecords("imagenet2012", tmp_path, "train")
    with pytest.raises(UserError, match=r"'imagenet_r' is not in .*; prepare it with: .*python"):
        PreparedRecords("imagenet_r", tmp_path, "test")
    with pytest.raises(UserError, match=r"no split 'minival'; it has train, validation$"):
        PreparedRecords("imagenet2012", photographs, "minival")
    shutil.copytree(photographs, tmp_path / "copy")
    (info,) = (tmp_path / "copy").rglob("dataset_info.json")
    info.write_text("{")
    with pytest.raises(UserError, match=r"'imagenet2012' in .* is damaged \(.*prepare it with: "):
        PreparedRecords("imagenet2012", tmp_path / "copy", "train")


def test_a_split_that_was_not_prepared_is_named(tmp_path, photograph_folders, capsys):
    (tmp_path / "train").symlink_to(photograph_folders / "train")
    prepare_imagenet.prepare(tmp_path, tmp_path / "out", progress=False)
    assert "has no split 'validation'; it is left out" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"has no split 'validation'; it has train$"):
        PreparedRecords("imagenet2012", tmp_path / "out", "test")
