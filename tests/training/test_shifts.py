"""Accuracy on other pictures of ImageNet's classes, from a checkpoint."""

import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from samon_jax.data import objectnet, pictures
from samon_jax.data.imagenet_records import MEAN, STD, PreparedRecords
from samon_jax.errors import UserError
from samon_jax.training.config import default_config
from samon_jax.training.loop import train
from samon_jax.training.reading import read
from samon_jax.training.shifts import FILE, evaluate_shift, evaluate_shifts, score


@pytest.fixture(scope="module")
def data_dir(photographs, tmp_path_factory):
    """ImageNet, an ImageNet-R and an ObjectNet, all of photographs."""
    directory = tmp_path_factory.mktemp("shifts")
    shutil.copytree(photographs / "imagenet2012", directory / "imagenet2012")
    records = PreparedRecords("imagenet2012", photographs, "test").read(range(12))
    _write_imagenet_r(directory, [records[i] for i in (0, 2, 3, 7, 8)])
    _write_objectnet(directory / "objectnet-1.0", records)
    return directory


def _write_imagenet_r(directory, records):
    import tensorflow_datasets as tfds

    stock = type(tfds.builder("imagenet_r", data_dir=directory))

    class Builder(stock, skip_registration=True):
        pkg_dir_path, name = stock.pkg_dir_path, stock.name
        url_infos = {}  # noqa: RUF012

        def _split_generators(self, dl_manager):
            return {"test": self._of_records()}

        def _of_records(self):
            for x in records:
                image = io.BytesIO(x.data)
                yield x.name, {"image": image, "label": x.label, "file_name": x.name}

    Builder(data_dir=directory, file_format="array_record").download_and_prepare()


MAPPINGS = {
    "folder_to_objectnet_label.json": {"roof": "Roof", "coat": "Coat", "spoon": "Spoon"},
    # The classes at 698, 652 and 3, whose lines in the file of names are not their labels.
    "objectnet_to_imagenet_1k.json": {"Roof": "palace, big; shark", "Coat": "uniform"},
    "pytorch_to_imagenet_2012_id.json": {"698": 0, "652": 2, "3": 1},
}


def _write_objectnet(folder, records):
    (folder / "mappings").mkdir(parents=True)
    for name, content in MAPPINGS.items():
        (folder / "mappings" / name).write_text(json.dumps(content))
    names = folder / "mappings" / "imagenet_to_label_2012_v2"
    names.write_text("palace, big\nshark\nuniform\nspoon\n")
    for name in MAPPINGS["folder_to_objectnet_label.json"]:
        (folder / "images" / name).mkdir(parents=True)
    for i, record in enumerate(records[:6]):
        file = folder / "images" / ("roof", "coat", "spoon")[i % 3] / f"{i}.png"
        Image.open(io.BytesIO(record.data)).save(file)


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """A small network with 1,000 outputs after two steps, and the variables it has."""
    config = default_config()
    config.data.name, config.data.dir = "imagenet2012", str(data_dir)
    config.data.image_size, config.data.crop_padding = 16, 0
    config.model, config.epochs, config.batch_size, config.num_devices = "resnet-8", 1, 18, 1
    config.eval_batch_size, config.data.threads = 8, 2
    config.sam.variant, config.log.tensorboard = "none", False
    directory = tmp_path_factory.mktemp("run")
    train(config, directory)
    return directory


def logits_by_hand(run, files, border=0):
    """One picture after the other: Pillow, the formula of normalization, the model."""
    trained = read(run)
    images = np.empty((len(files), 16, 16, 3), np.uint8)
    for image, data in zip(images, files, strict=True):
        picture = pictures.decode(data)
        picture = picture[border : len(picture) - border, border : picture.shape[1] - border]
        pictures.write_centre(picture, 0.875, image)
    normal = ((images / 255 - np.array(MEAN)) / np.array(STD)).astype(np.float32)
    apply = jax.jit(lambda v, x: trained.task.model.apply(v, x, train=False))
    return np.asarray(apply(trained.variables, normal))


def test_sets_of_tfds(run, data_dir, capsys):
    found = evaluate_shifts(run, ["imagenet2012", "imagenet_r"], "newest")
    for name, split in (("imagenet2012", "test"), ("imagenet_r", "test")):
        records = PreparedRecords(name, data_dir, split)
        records = records.read(range(len(records)))
        logits = logits_by_hand(run, [x.data for x in records])
        labels = np.array([x.label for x in records])
        own = np.unique(labels)
        shift = found[name]
        assert shift.examples == len(records)
        assert shift.classes == len(own)
        assert shift.accuracy == (logits.argmax(1) == labels).mean()
        assert shift.accuracy_own == (own[logits[:, own].argmax(1)] == labels).mean()
    assert found["imagenet_r"].examples == 5
    said = capsys.readouterr().out
    assert "imagenet_r, 5 pictures: accuracy" in said
    saved = json.loads((run / FILE).read_text())
    assert saved["imagenet_r"] == found["imagenet_r"]._asdict() | {"step": 2}


def test_objectnet(run, data_dir):
    found = evaluate_shifts(run, ["objectnet"], "newest")["objectnet"]
    folder = data_dir / "objectnet-1.0" / "images"
    files = [*sorted((folder / "coat").iterdir()), *sorted((folder / "roof").iterdir())]
    logits = logits_by_hand(run, [file.read_bytes() for file in files], border=2)
    right = [{652}] * 2 + [{698, 3}] * 2
    own = np.array([3, 652, 698])
    assert (found.examples, found.classes) == (4, 3)
    assert found.accuracy == np.mean([x.argmax() in r for x, r in zip(logits, right, strict=True)])
    best = own[logits[:, own].argmax(1)]
    assert found.accuracy_own == np.mean([x in r for x, r in zip(best, right, strict=True)])


def test_the_classes_of_a_set_are_those_of_its_pictures():
    logits = np.array([[5.0, 1, 2, 0], [5, 3, 2, 0], [5, 0, 9, 0]])
    found = score(logits, np.array([1, 1, 2]), [(0,), (1, 3), (2,)])
    assert found == (1 / 3, 2 / 3, 3, 3)  # among 1, 2 and 3: the second and the third are right


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("objectnet_to_imagenet_1k.json", {"Fork": "shark"}, r"'Fork' is not in folder_to_obj"),
        ("objectnet_to_imagenet_1k.json", {"Roof": "x; shark"}, r"'x' of 'Roof' is not in imagen"),
        ("objectnet_to_imagenet_1k.json", [1], r"does not fit: it must hold an object"),
        ("folder_to_objectnet_label.json", {"sky": "Roof", "coat": "Coat"}, r"the folder 'sky'"),
        ("pytorch_to_imagenet_2012_id.json", {"a": "b"}, r"cannot be used"),
    ],
)
def test_mappings_that_do_not_fit(data_dir, tmp_path, name, content, message):
    folder = tmp_path / "objectnet-1.0"
    shutil.copytree(data_dir / "objectnet-1.0", folder)
    (folder / "mappings" / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        objectnet.ObjectNetRecords(objectnet.find(tmp_path))
    assert "\n" not in str(error.value)


def test_what_cannot_be_evaluated_is_said(run, tmp_path):
    with pytest.raises(UserError, match=r"--data=imagenet_x is not allowed; choose among imagenet"):
        evaluate_shifts(run, ["imagenet_x"], "newest")
    with pytest.raises(UserError, match=r"'imagenet_a' is not in .*; prepare it with"):
        evaluate_shifts(run, ["imagenet_a"], "newest")
    with pytest.raises(UserError, match=r"ObjectNet is not in .*: it must hold a folder"):
        objectnet.find(tmp_path)
    trained = read(run)
    images = trained.task.images._replace(num_classes=10)
    task = dataclasses.replace(trained.task, images=images)
    with pytest.raises(UserError, match=r"does not have the 1000 classes of ImageNet$"):
        evaluate_shift(trained._replace(task=task), "imagenet_r", None)
