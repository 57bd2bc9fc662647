"""Pictures in folders, and what is said when they are not as they should be."""

import pytest

from samon_jax.data.folder import FolderRecords, split_directory
from samon_jax.data.photographs import CLASSES
from samon_jax.errors import UserError


def test_labels_are_the_sorted_names_of_the_classes(photograph_folders):
    records = FolderRecords(photograph_folders / "val")
    assert len(records) == 12
    found = records.read(range(12))
    assert sorted(record.label for record in found) == sorted([0, 1, 2] * 4)
    assert len({record.label for record in found[:4]}) > 1  # not class after class
    for record in found:
        assert sorted(CLASSES)[record.label] in record.name
        assert record.data[:2] == b"\xff\xd8"


def test_labels_of_a_split_are_those_of_the_training_classes(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.PNG").write_bytes(b"?")
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    records = FolderRecords(tmp_path, ("a", "b"))
    assert [record.label for record in records.read(range(len(records)))] == [1]
    with pytest.raises(UserError, match=r"has the class 'b', which the training split does not"):
        FolderRecords(tmp_path, ("a",))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, r"the folder '.*' does not exist$"),
        ([], r"has no classes; it must have one sub-folder for each$"),
        (["x.jpg"], r"has no classes; it must have one sub-folder for each$"),
        (["cat/notes.txt"], r"hold no pictures"),
    ],
)
def test_a_folder_without_classes_or_pictures_is_an_error(tmp_path, files, message):
    directory = tmp_path / "pictures"
    if files is not None:
        directory.mkdir()
    for file in files or ():
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).touch()
    with pytest.raises(UserError, match=message) as error:
        FolderRecords(directory)
    assert "\n" not in str(error.value)


def test_splits_have_their_usual_names(photograph_folders, tmp_path):
    assert split_directory(photograph_folders, "test").name == "val"
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"no sub-folder test or val or validation for .*: train$"):
        split_directory(tmp_path, "test")
