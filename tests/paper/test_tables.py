"""The grid against the printed paper: sizes, numbers copied by hand, and settings."""

import dataclasses
import doctest
import importlib
from pathlib import Path

import pytest

import samon_jax.paper
from samon_jax.errors import UserError
from samon_jax.paper import catalog as catalog_module
from samon_jax.paper.catalog import catalog, find
from samon_jax.paper.grid import Published
from samon_jax.paper.results import heading
from samon_jax.paper.runs import cell_config, cell_directory, radii
from samon_jax.training.run import resolve

ALL = list(catalog().values())
ROOM = Path(samon_jax.paper.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOM).with_suffix("").parts) for path in ROOM.rglob("[a-z]*.py")
)


def cell(table, row, column):
    (found,) = (c for c in catalog()[table].cells if c.row.text == row and c.column.text == column)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    assert doctest.testmod(importlib.import_module(f"samon_jax.paper.{module}")).failed == 0


# (networks) x (1 base optimizer + 6 variants x 2 masks) x (halves of the table), and so on.
@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("table1", 3 * 13 * 2),
        ("table2", 8),
        ("table4", 10 * 6),
        ("table13", 9),
        ("table15", 6 * 6),
        ("table3", 2 * 13 * 2),
        ("table5", 5),
        ("table10", 3 * 13 * 2),
        ("table11", 4 * 13 * 2),
        ("table12", 7),
        ("table17", 2 * 3),
        ("figure1", 6 * 3),
        ("figure2", 6 * 3),
        ("figure3", 2 * 5),
        ("figure4", 4 + 6),
        ("figure4right", 2 * (2 + 3 + 4 + 5)),
        ("figure6", 6 * 3),
        ("figure7", 6 * 3),
        ("figure8", 4 + 2 * 6),
        ("figure10", 6 * 2),
        ("figure11", 3 * 3 + 4),
        ("table16", 3),
        ("study", 13),
        ("translation-study", 3),
    ],
)
def test_number_of_cells(name, cells):
    table = catalog()[name]
    assert len(table.cells) == cells
    assert len({(c.row.text, c.column.text) for c in table.cells}) == cells
    if name.startswith("table"):
        assert all(c.published is not None for c in table.cells)


def test_there_is_nothing_else():
    assert len(catalog()) == 24


# Sums over all printed numbers, added up from the paper's text: means, standard deviations.
@pytest.mark.parametrize(
    ("name", "means", "stds"),
    [
        ("table1", 6297.55, 19.3),
        ("table2", 621.43, 0.6),
        ("table4", 1859.05, 20.126),
        ("table15", 791.44, 17.72),
        ("table3", 4140.26, 14.0),
        ("table10", 7513.48, 7.7),
        ("table11", 8908.99, 66.5),
        ("table5", 83.11 + 84.19 + 80.97 + 83.94 + 83.14, 0.9),
        ("table16", 34.56 + 34.83 + 34.95, 0.37),
        ("table12", 83.11 + 84.19 + 80.97 + 83.94 + 83.14 + 83.53 + 81.01, 1.1),
    ],
)
def test_sums_of_the_tables(name, means, stds):
    published = [c.published for c in catalog()[name].cells]
    assert sum(p.mean for p in published) == pytest.approx(means, abs=1e-6)
    assert sum(p.std for p in published) == pytest.approx(stds, abs=1e-6)


# Copied by hand from the printed tables.
@pytest.mark.parametrize(
    ("table", "row", "column", "mean", "std"),
    [
        ("table1", "basic SGD", "RN-56 all", 72.82, 0.3),
        ("table2", "RN-50", "layer. ℓ2 all", 78.14, 0.05),
        ("table4", "ImageNet", "AdamW SAM-ON", 71.37, 0.026),
        ("table4", "ObjectNet", "Lion SAM-all", 13.93, 0.40),
        ("table4", "ℓ∞ 0.5/255", "Lion vanilla", 15.86, 0.13),
        ("table13", "ViT-S/16", "SGD", 81.62, None),
        ("table13", "ViT-S/16", "el. ℓ∞ ON", 81.84, None),
        ("table15", "ℓ2 1.00", "AdamW SAM-ON", 5.58, 0.19),
        ("table1", "basic SGD", "WRN-28 all", 80.71, 0.2),
        ("table1", "basic SAM", "WRN-28 ON", 84.19, 0.2),
        ("table1", "basic el. ℓ2 orig.", "RNxT ON", 81.90, 0.4),
        ("table1", "basic Fisher", "RN-56 ON", 75.65, 0.1),
        ("table1", "+AA SGD", "RNxT all", 80.31, 0.3),
        ("table1", "+AA el. ℓ∞", "RN-56 all", 74.89, 0.4),
        ("table1", "+AA layer. ℓ2", "WRN-28 ON", 85.95, 0.1),
        ("table3", "AdamW", "CIFAR-100 ViT-T all", 63.79, 0.0),
        ("table3", "SAM", "CIFAR-10 ViT-S ON", 92.71, 0.0),
        ("table3", "el. ℓ2 orig.", "CIFAR-100 ViT-T ON", 71.25, 0.3),
        ("table3", "layer. ℓ2", "CIFAR-10 ViT-T ON", 93.08, 0.2),
        ("table10", "basic SGD", "RNxT all", 95.37, 0.1),
        ("table10", "basic layer. ℓ2", "WRN-28 all", 97.02, 0.0),
        ("table10", "+AA el. ℓ2", "RN-56 ON", 94.82, 0.2),
        ("table10", "+AA Fisher", "RNxT all", 96.77, 0.0),
        ("table11", "CIFAR-100 SGD", "DenseNet-100 all", 77.00, 0.2),
        ("table11", "CIFAR-100 layer. ℓ2", "VGG-13 ON", 77.91, 0.2),
        ("table11", "CIFAR-10 el. ℓ∞", "VGG-16 all", 94.74, 0.2),
        ("table11", "CIFAR-10 layer. ℓ2", "VGG-19 all", 66.21, 48.7),
        ("table12", "WRN-28", "SSAM-D 99.95%", 81.01, 0.1),
        ("table5", "WRN-28", "SSAM-F 50%", 83.94, 0.1),
        ("table16", "Transformer", "vanilla", 34.56, 0.11),
        ("table16", "Transformer", "SAM-ON", 34.95, 0.16),
        ("table17", "ResNet-101", "SGD", 78.75, None),
        ("table17", "ResNet-101", "SAM ρ=0.01", 78.63, None),
        ("table17", "ResNet-101", "SAM ρ=0.05", 79.27, None),
        ("table17", "WRN-28", "SGD", 63.49, None),
        ("table17", "WRN-28", "SAM ρ=0.01", 64.48, None),
        ("table17", "WRN-28", "SAM ρ=0.05", 62.70, None),
        ("figure3", "RNxT", "SAM-ON", 82.22, 0.2),
    ],
)
def test_numbers(table, row, column, mean, std):
    assert cell(table, row, column).published == Published(mean, std)


@pytest.mark.parametrize("number", ["84.19", "82.22", "83.94", "31.28", "0.296", "3728", "2.643"])
def test_a_printed_number_stands_in_one_place(number):
    texts = [path.read_text() for path in ROOM.parent.rglob("*.py")]
    assert sum(text.count(number) for text in texts) == 1


def test_tables_from_elsewhere(monkeypatch):
    """A table is registered; the papers' come first, and no name may be there twice."""
    monkeypatch.setattr(catalog_module, "_MAKERS", list(catalog_module._MAKERS))
    other = dataclasses.replace(catalog()["table17"], name="elsewhere")
    try:
        catalog_module.register(lambda: [other])
        assert find("Elsewhere") == (other,)
        assert list(catalog())[-1] == "elsewhere"
        assert heading(other) == "Elsewhere"
        catalog_module.register(lambda: [other])
        with pytest.raises(UserError, match="table 'elsewhere' is there twice"):
            catalog()
    finally:
        catalog.cache_clear()


def test_figures_carry_only_what_a_table_prints():
    """A number in a figure is that of the table's cell with the same settings."""
    default = {"optimizer.decay": "all", "batch_size": 128, "sam.m": 0}.items()
    printed = [own for name in ("table1", "table5") for own in catalog()[name].cells]
    carried = 0
    for table in ALL:
        for own in table.cells if table.name.startswith("figure") else ():
            if own.published is not None:
                settings = dict(own.fields.items() - default)
                assert own.published in [c.published for c in printed if c.fields == settings]
                carried += 1
    assert carried == 2 * 3 + 2 + 3  # Figure 3, batch size 128 of Figure 4, Figure 11


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.name)
def test_every_config_is_allowed(table):
    """Every run's config passes all checks, and no two runs share a directory."""
    directories = set()
    for own in table.cells:
        for rho in radii(own):
            config = cell_config(own, rho, seed=1)
            config = resolve(config)
            if config.data.name == "imagenet2012":  # of the 8 devices here
                seven = table.name == "table13" and config.sam.variant != "none"  # "7×A100", A.2
                assert config.num_devices == (7 if seven else 8)
            directories.add(cell_directory(table, own, rho, 0))
        if config.data.name == "imagenet2012":
            continue  # compared with Table 8 in tests/test_imagenet_config.py
        if config.task == "translation" and table.ours:
            continue  # see test_translation_study.py
        if config.task == "translation":
            # As fairseq's example for IWSLT'14 has them.
            settings = config.optimizer.lr, config.optimizer.weight_decay, config.label_smoothing
            assert settings == (5e-4, 1e-4, 0.1)
            assert (config.schedule.name, config.schedule.warmup_steps) == ("inverse_sqrt", 4000)
            assert (config.translation.batch_tokens, config.translation.dropout) == (4096, 0.3)
            assert (config.translation.vocabulary, config.translation.lowercase) == (10_000, True)
            continue
        epochs = own.fields["epochs"] if table.ours else 200
        assert (config.epochs, config.label_smoothing, config.num_devices) == (epochs, 0.1, 1)
        vit = config.model.startswith("vit")
        assert config.optimizer.name == ("adamw" if vit else "sgd")
        assert config.optimizer.lr == (1e-4 if vit else 0.1)
        assert config.optimizer.weight_decay == 5e-4
        if table.name != "figure4right":
            assert config.batch_size == (64 if vit else 128)
        if vit:
            assert config.data.auto_augment
    assert len(directories) == sum(len(radii(own)) for own in table.cells)


@pytest.mark.parametrize(
    ("table", "row", "column", "fields"),
    [
        (
            "table1",
            "+AA layer. ℓ2",
            "RNxT ON",
            {"data.name": "cifar100", "model": "resnext-29-32x4d", "data.auto_augment": True}
            | {"sam.variant": "layerwise_l2", "sam.mask": "only_norm", "sam.rho": 0.2},
        ),
        ("table10", "basic SAM", "RN-56 ON", {"data.name": "cifar10", "sam.rho": 0.5}),
        ("table10", "basic SAM", "RN-56 all", {"model": "resnet-56b", "data.auto_augment": False}),
        ("table3", "AdamW", "CIFAR-10 ViT-S all", {"sam.variant": "none", "model": "vit-s"}),
        ("table17", "WRN-28", "SAM ρ=0.05", {"train_only_norm": True, "sam.rho": 0.05}),
        (
            "table12",
            "WRN-28",
            "SSAM-D 99.95%",
            {"sam.sparse": "ssam_d", "sam.sparsity": 0.9995, "sam.rho": 0.2, "sam.mask": "all"},
        ),
        ("table5", "WRN-28", "SAM-rand 99.95%", {"sam.mask": "random:0.9995"}),
        ("figure8", "ResNet-18", "SSAM-F 50%", {"sam.sparse": "ssam_f", "sam.rho": 0.1}),
        ("figure8", "ResNet-18", "SAM-rand 99.93%", {"sam.mask": "random:0.9993"}),
        ("figure3", "RNxT", "B2+B3", {"sam.mask": "only_norm_in:stage[23]", "sam.rho": 1.0}),
        ("figure4right", "bs=256", "SAM-ON m=64", {"batch_size": 256, "sam.m": 64, "sam.rho": 1.0}),
        ("figure10", "Fisher", "fix-norm", {"fix_norm": True, "sam.variant": "fisher"}),
        ("figure11", "weight decay no_norm", "SAM-ON", {"optimizer.decay": "no_norm"}),
        ("figure11", "dropout 10%", "SGD", {"norm_dropout": 0.1, "sam.variant": "none"}),
        ("figure1", "SAM", "no-norm", {"sam.mask": "no_norm", "sam.rho": 0.05}),
        ("figure2", "el. ℓ∞", "ON", {"model": "vit-s", "sam.rho": 0.025}),
    ],
)
def test_settings(table, row, column, fields):
    own = cell(table, row, column)
    config = cell_config(own, radii(own)[0], seed=0)
    for field, value in fields.items():
        section, _, name = field.rpartition(".")
        assert (config[section] if section else config)[name] == value, field


def test_figures_over_rho_sweep_table_7():
    swept = {c.row.text: c.rho.values for c in catalog()["figure1"].cells if c.column.text == "ON"}
    assert swept["SAM"] == (0.1, 0.5, 1, 5)
    by_column = {c.column.text: c.rho for c in catalog()["figure7"].cells[:3]}
    assert by_column["all"].values == by_column["no-norm"].values == (0.025, 0.05, 0.1, 0.25, 0.5)
    assert by_column["ON"].values == (1, 2.5, 5, 10, 25)


def test_cells_whose_rho_is_not_told_say_what_is_tried():
    unknown = {c.rho.values for c in catalog()["table3"].cells if c.rho.kind != "none"}
    assert len([c for c in catalog()["table3"].cells if c.rho.kind == "search"]) == 48
    assert all(len(values) == 5 for values in unknown)
    fisher = [c for c in catalog()["table1"].cells if c.row.text == "basic Fisher"]
    assert {c.rho.kind for c in fisher} == {"search"}


@pytest.mark.parametrize(
    ("asked", "name"),
    [("1", "table1"), ("Table 12", "table12"), ("fig3", "figure3"), ("Figure4Left", "figure4")],
)
def test_names(asked, name):
    assert [table.name for table in find(asked)] == [name]


def test_all():
    assert find("all") == tuple(ALL)


@pytest.mark.parametrize("asked", ["6", "figure5", "tables", ""])
def test_unknown_names_list_what_there_is(asked):
    with pytest.raises(UserError, match=r"is not here; choose one of table1, .*figure11"):
        find(asked)


@pytest.mark.parametrize(
    ("rows", "columns", "count"),
    [
        (["SAM"], [], 12),
        (["sam", "layerwise_l2"], ["RN-56"], 8),
        (["+AA el. l2 orig."], ["wrn-28-10 only_norm"], 1),
        (["+AA"], ["ON"], 18),
        (["SGD"], ["RN-56 all"], 2),
        (["el. linf"], [], 12),
    ],
)
def test_rows_and_columns(rows, columns, count):
    assert len(catalog()["table1"].select(rows, columns)) == count


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (["SAMBA"], [], "--rows=SAMBA is not in table1, which has: basic SGD; basic SAM"),
        ([], ["RN"], "--columns=RN is not in table1, which has: RN-56 all; RN-56 ON; RNxT all"),
        (["SGD"], ["ON"], "no cell of table1 in common"),
    ],
)
def test_wrong_rows_and_columns(rows, columns, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        catalog()["table1"].select(rows, columns)
