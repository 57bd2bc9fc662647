import json
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from samon_jax.errors import UserError
from samon_jax.workdir import checkpoints
from samon_jax.workdir.checkpoints import (
    Checkpoints,
    fit,
    leaves_by_name,
    restore,
    saved_steps,
)
from samon_jax.workdir.seal import checksum

ACCURACIES = {10: 0.9, 20: 0.95, 30: 0.6, 40: None, 50: 0.7}


def state_at(step):
    return {
        "step": jnp.int32(step),
        "params": {"kernel": jnp.full((40, 30), float(step)), "bias": jnp.arange(3.0) * step},
        "nothing": (),
    }


def read(workdir, **settings):
    """State and step of what `restore` finds."""
    found = restore(workdir, **settings)
    return fit(found, state_at(0), workdir), found.step


def same(state, step):
    return (
        all(
            np.array_equal(state["params"][name], value)
            for name, value in state_at(step)["params"].items()
        )
        and int(state["step"]) == step
    )


@pytest.fixture
def workdir(tmp_path):
    saver = Checkpoints(tmp_path, keep=2)
    for step, accuracy in ACCURACIES.items():
        saver.save(step, state_at(step), accuracy)
    saver.close()
    return tmp_path


def test_keeps_the_newest_and_the_best(workdir):
    assert saved_steps(workdir) == [20, 40, 50]
    for which, step in (("newest", 50), ("best", 20)):
        state, found = read(workdir, which=which)
        assert found == step
        assert same(state, step)


def test_no_checkpoint_is_none(tmp_path):
    assert restore(tmp_path) is None


def test_checksum_sees_every_bit_name_shape_and_type():
    leaves = leaves_by_name({"a": np.arange(6, dtype=np.float32), "b": ()})
    flipped = leaves["a"].copy()
    flipped.view(np.uint8)[5] ^= 1
    others = [
        {"a": flipped},
        {"c": leaves["a"]},
        {"a": leaves["a"].reshape(2, 3)},
        {"a": leaves["a"].view(np.int32)},
    ]
    assert checksum(leaves) == checksum({"a": jnp.arange(6.0)})
    assert len({checksum(leaves), *map(checksum, others)}) == 5


def test_the_score_may_be_of_any_task(tmp_path):
    """Larger is better, and a loss with its sign changed does as well."""
    saver = Checkpoints(tmp_path, keep=1, identity={"seed": 3})
    for step, score in ((1, -4.0), (2, -2.0), (3, -3.0)):
        saver.save(step, state_at(step), score)
    saver.close()
    assert saved_steps(tmp_path) == [2, 3]
    best = restore(tmp_path, which="best")
    assert (best.step, best.score, best.identity) == (2, -2.0, {"seed": 3})


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (state_at(0) | {"more": jnp.zeros(2)}, "it holds no more"),
        (
            state_at(0) | {"params": state_at(0)["params"] | {"bias": jnp.zeros(4)}},
            r"params/bias is float32\[3\] there, float32\[4\] in the model",
        ),
        (state_at(0) | {"step": jnp.float32(0)}, r"step is int32\[\] there, float32\[\] in the"),
    ],
)
def test_a_state_that_does_not_fit_is_an_error_not_a_damage(workdir, template, words):
    """What is whole is believed: nothing is passed over, nothing moved."""
    said = []
    found = restore(workdir, say=said.append)
    with pytest.raises(UserError, match=f"checkpoint of step 50 .* does not fit .*{words}"):
        fit(found, template, workdir)
    assert said == []
    assert saved_steps(workdir) == [20, 40, 50]
    assert not (workdir / checkpoints.UNREADABLE).exists()


def test_a_part_of_what_was_saved_can_be_had(workdir):
    part = fit(restore(workdir), without(state_at(0), "step"), workdir)
    np.testing.assert_array_equal(part["params"]["bias"], np.arange(3.0) * 50)


def test_numbers_that_are_not_finite_are_not_saved(tmp_path):
    saver = Checkpoints(tmp_path, keep=1)
    with pytest.raises(UserError, match=r"^params/bias is not finite after step 7, and was not"):
        saver.save(7, state_at(7) | {"params": {"bias": jnp.array([1.0, np.inf])}})
    saver.close()
    assert saved_steps(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (ValueError("UNAVAILABLE: Error writing [OS error 27]: File too large"), "File too large"),
        (ValueError("trees of other shapes"), None),
        (TypeError("no array"), None),
        (RuntimeError("a bug"), None),
    ],
)
def test_only_what_the_system_refuses_is_a_write_error(tmp_path, monkeypatch, error, reported):
    """Another exception is a bug, whose traceback says where."""
    saver = Checkpoints(tmp_path, keep=1)

    def fail(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(saver._manager, "save", fail)
        with pytest.raises(UserError if reported else type(error)) as raised:
            saver.save(1, state_at(1))
    saver.close()
    if reported:
        assert str(raised.value).endswith(f"checkpoints cannot be written: {reported}")
    else:
        assert raised.value is error


def test_a_checkpoint_of_another_version_is_not_called_damaged(workdir):
    file = workdir / checkpoints.DIRECTORY / "50" / "checksum" / "metadata"
    content = json.loads(file.read_text())
    del content["own_crc32"]  # which that version did not write
    file.write_text(json.dumps(content | {"format": 1}))
    with pytest.raises(UserError, match=r"step 50 .* written by another version") as error:
        restore(workdir)
    assert not isinstance(error.value, checkpoints.UnreadableError)


def largest_file(folder):
    return max(
        (file for file in folder.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
    )


def damage(file, how):
    if how == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif how == "garbage":
        file.write_bytes(b"\x00garbage\xff" * 20)
    elif how == "flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 16
        file.write_bytes(bytes(content))
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["truncated", "garbage", "flipped", "missing"])
@pytest.mark.parametrize("what", ["data", "manifest.ocdbt", "_METADATA", "checksum"])
def test_a_damaged_checkpoint_is_never_believed(workdir, capfd, how, what):
    folder = workdir / checkpoints.DIRECTORY / "50"
    if what == "data":
        file = largest_file(folder / "state" / "d")
    else:
        file = folder / "checksum" / "metadata" if what == "checksum" else folder / "state" / what
    damage(file, how)
    said = []
    state, step = read(workdir, say=said.append)
    if step == 50:  # Orbax can do without this file
        assert what == "_METADATA"
        assert said == []
    else:
        assert step == 40
        assert len(said) == 1
        assert "step 50" in said[0]
        assert "using the one of step 40" in said[0]
    assert same(state, step)
    assert capfd.readouterr() == ("", "")


def test_wrong_values_with_intact_files_are_noticed(workdir):
    """A checkpoint of other numbers under this step's checksum."""
    base = workdir / checkpoints.DIRECTORY
    shutil.rmtree(base / "50" / "state")
    shutil.copytree(base / "20" / "state", base / "50" / "state")
    said = []
    assert read(workdir, say=said.append)[1] == 40
    assert "checksum differs" in said[0]


@pytest.mark.parametrize("change", [{"format": 3}, {"score": 2.0}, {"identity": {"seed": 1}}])
def test_what_is_beside_the_values_is_checked_too(workdir, change):
    file = workdir / checkpoints.DIRECTORY / "50" / "checksum" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    said = []
    assert read(workdir, say=said.append)[1] == 40
    assert "step 50" in said[0]
    assert "checksum differs" in said[0]
    assert read(workdir, which="best", say=said.append)[1] == 20


def test_best_falls_back_to_the_next_best(workdir):
    damage(largest_file(workdir / checkpoints.DIRECTORY / "20" / "state" / "d"), "truncated")
    said = []
    assert read(workdir, which="best", say=said.append)[1] == 50
    assert "step 20" in said[0]


def test_nothing_readable_is_an_error(workdir):
    for step in saved_steps(workdir):
        damage(workdir / checkpoints.DIRECTORY / str(step) / "checksum" / "metadata", "missing")
    with pytest.raises(checkpoints.UnreadableError, match=r"step 50.*step 40.*step 20"):
        restore(workdir)


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from samon_jax.errors import UserError
from samon_jax.processes import environment
from samon_jax.workdir.checkpoints import Checkpoints

environment.quiet_libraries()
saver = Checkpoints(Path(sys.argv[1]), keep=2)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    try:
        saver.save(1, {"kernel": np.random.default_rng(0).normal(size=10_000)}, 0.5)
        saver.wait()
    finally:
        saver.close()
except UserError as error:
    print(error)
"""


def test_a_write_error_in_the_background_is_one_line(tmp_path):
    """The limit on the size of files takes the place of a full disk."""
    process = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True
    )
    line = f"{tmp_path / checkpoints.DIRECTORY} cannot be written: File too large"
    assert process.stdout.startswith(line), process.stderr
    assert process.stdout.count("\n") == 1
    assert process.stderr == ""


def test_unreadable_checkpoints_are_moved_not_deleted(workdir):
    file = largest_file(workdir / checkpoints.DIRECTORY / "50" / "state" / "d")
    damage(file, "garbage")
    state, step = read(workdir, say=lambda line: None)
    said = []
    checkpoints.set_aside_after(workdir, step, say=said.append)
    moved = workdir / checkpoints.UNREADABLE / "50"
    assert said == [f"moved the unreadable checkpoint of step 50 to {moved}"]
    assert largest_file(moved / "state" / "d").read_bytes().startswith(b"\x00garbage")
    saver = Checkpoints(workdir, keep=2)
    saver.save(50, state_at(50), 0.7)
    saver.close()
    state, step = read(workdir)
    assert (step, same(state, 50)) == (50, True)


def test_a_half_written_checkpoint_is_ignored(workdir):
    half = workdir / checkpoints.DIRECTORY / "60.orbax-checkpoint-tmp-0"
    shutil.copytree(workdir / checkpoints.DIRECTORY / "50", half)
    assert read(workdir)[1] == 50
    saver = Checkpoints(workdir, keep=2)
    saver.save(60, state_at(60), 0.1)
    saver.close()
    assert read(workdir)[1] == 60
    assert not half.exists()
