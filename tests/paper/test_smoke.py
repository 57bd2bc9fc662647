"""Two cells a day are proven to run; what cannot run is found."""

import contextlib
import dataclasses
import datetime
from unittest.mock import Mock

import pytest

from samon_jax.errors import UserError
from samon_jax.paper import smoke
from samon_jax.paper.catalog import catalog
from samon_jax.paper.grid import StandIns
from samon_jax.paper.smoke import (
    SMALLEST,
    Smoke,
    full_config,
    small_config,
    trace_step,
    train_two_steps,
)

CELLS = [(table, cell) for table in catalog().values() for cell in table.cells]


def test_two_cells_of_today(tmp_path):
    """One is traced and another trains; tomorrow it is the turn of others."""
    today = datetime.date.today()
    day = today.timetuple().tm_yday
    traced, trained = CELLS[day % len(CELLS)], CELLS[(day + len(CELLS) // 2) % len(CELLS)]
    for verb, (table, cell) in (("traced", traced), ("trained", trained)):
        print(f"{today}, {verb}: {table.name}, {cell.row.text}, {cell.column.text}")
    trace_step(full_config(*traced))
    train_two_steps(small_config(*trained), tmp_path)


def test_what_a_killed_one_left_is_removed(tmp_path):
    (tmp_path / ".smokeabc" / "run").mkdir(parents=True)
    with contextlib.closing(Smoke(tmp_path, 1)):
        assert len(list(tmp_path.iterdir())) == 1
        assert not (tmp_path / ".smokeabc").exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"sam.mask": "only_norm_in:stage9"}, "trace: UserError: sam.mask"),
        ({"sam.m": 48}, "trace: UserError: sam.m=48 must divide"),
        ({"fix_norm": True}, "trace: UserError: sam.mask='only_norm' is not allowed with fix_norm"),
    ],
)
def test_what_cannot_run_is_found(fields, reason, tmp_path):
    table, cell = next(x for x in CELLS if x[1].fields.get("sam.mask") == "only_norm")
    broken = dataclasses.replace(cell, fields=dict(cell.fields) | fields)
    assert Smoke(tmp_path, workers=1).prove(table, broken).startswith(reason)


def test_a_network_that_cannot_be_trained_is_found(tmp_path, monkeypatch):
    """The trace of the real network is fine; the small run reports what it meets."""
    monkeypatch.setitem(SMALLEST, "resnet-18", "vgg-12")
    found = next(x for x in CELLS if x[1].fields["model"] == "resnet-18")
    assert Smoke(tmp_path, workers=1).prove(*found).startswith("run: UserError: model='vgg-12'")


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    """Neither by a proof that is interrupted nor by one that fails."""
    table, cell = CELLS[0]
    for error in (KeyboardInterrupt, UserError("no")):
        monkeypatch.setattr(smoke, "trace_step", Mock(side_effect=error))
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(Smoke(tmp_path, 1)) as own:
            assert list(tmp_path.iterdir())
            assert own.prove(table, cell) == "trace: UserError: no"
        assert not list(tmp_path.iterdir())


def test_stand_ins_of_a_table(tmp_path):
    stand_ins = StandIns({"data.name": "digits"}, {"model": "digits-resnet", "epochs": 3})
    table, cell = CELLS[0]
    table = dataclasses.replace(table, stand_ins=stand_ins)
    full, small = full_config(table, cell), small_config(table, cell)
    assert (full.data.name, full.model, full.epochs) == ("digits", "resnet-56b", 200)
    assert (small.data.name, small.model, small.epochs) == ("digits", "digits-resnet", 3)


def test_small_runs_keep_the_method():
    for table, cell in CELLS:
        full, small = full_config(table, cell), small_config(table, cell)
        assert table.stand_ins or full.model in SMALLEST
        if not table.stand_ins:
            assert small.data.train_examples == 2 * small.batch_size
        assert (full.sam.m == 0) == (small.sam.m == 0)
        if full.sam.m:
            assert full.batch_size * small.sam.m == full.sam.m * small.batch_size, table.name
        for field in ("variant", "mask", "sparse", "sparsity", "rho"):
            assert small.sam[field] == full.sam[field]
        assert small.optimizer.to_dict() == full.optimizer.to_dict()
        assert small.data.auto_augment == full.data.auto_augment
