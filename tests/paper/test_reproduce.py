"""The command against runs whose accuracy is a formula, and once against real training."""

import dataclasses
import json
import re

import numpy as np
import pytest

import main
from samon_jax.drawing import style
from samon_jax.errors import UserError
from samon_jax.paper import reproduce
from samon_jax.paper.grid import NO_RHO, Cell, Metric, Published, Rho, Table, label
from samon_jax.paper.reproduce import Request
from samon_jax.training import loop
from samon_jax.training.config import default_config
from samon_jax.training.journal import claim
from samon_jax.workdir import files

BASE = {"data.name": "random10", "model": "tiny", "num_devices": 1, "batch_size": 64}
SMALL = {"data.train_examples": 128, "data.test_examples": 64, "log.tensorboard": False}
SGD = BASE | {"sam.variant": "none"}
SAM = BASE | {"sam.variant": "sam", "sam.mask": "all"}


def make_table(extra=None, name="table1"):
    extra = extra or {}
    cells = (
        Cell(label("SGD"), label("net", "all"), SGD | extra, NO_RHO, Published(70.0, 0.2)),
        Cell(
            label(("SAM", "sam")), label("net", "all"), SAM | extra, Rho("known", (0.1,)),
            Published(71.0, None),
        ),
        Cell(
            label(("SAM", "sam")), label("net", "ON"), SAM | {"sam.mask": "only_norm"} | extra,
            Rho("search", (0.5, 1.0, 5.0), "Table 7"), Published(72.5, 0.1),
        ),
    )  # fmt: skip
    return Table(name, "A toy", cells, ("something is unknown",))


SWEEP = Table(
    "figure1",
    "A toy over ρ",
    tuple(
        Cell(label("SAM"), label(mask), SAM | {"sam.mask": mask}, Rho("sweep", (0.1, 0.2)))
        for mask in ("all", "no_norm")
    ),
    kind="sweep",
)
LINES = Table(
    "figure4right",
    "A toy over m",
    tuple(
        Cell(
            label("bs=64"),
            label("SAM-all", f"m={m}"),
            SAM | {"sam.m": m},
            Rho("known", (0.1,)),
            Published(50.0, 1.0) if m == 64 else None,
        )
        for m in (32, 64)
    ),
    kind="lines",
)


def accuracy(config):
    """What the fake training below ends with: distinct for every method, ρ and seed."""
    value = 0.5 + 0.01 * config.seed
    if config.sam.variant != "none":
        value += 0.1 - 0.01 * abs(config.sam.rho - 1.0) + 0.02 * (config.sam.mask == "all")
    return value


@pytest.fixture
def trained(monkeypatch):
    """Replaces training by `accuracy`; returns the configs that were trained, in order."""
    configs = []

    def train(config, directory):
        claim(directory, config)
        summary = {"test_accuracy": accuracy(config), "seconds": 1.0, "steps": 1}
        files.write_json(directory / files.SUMMARY, summary)
        configs.append(config)
        return summary

    monkeypatch.setattr(loop, "train", train)
    return configs


@pytest.fixture
def pictures():
    """Asks for pictures, which most tests do without."""


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch, request):
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(reproduce, "draw", lambda *args, **kwargs: None)


def use(monkeypatch, *tables):
    monkeypatch.setattr(reproduce, "find", lambda name: tables)


def lines(path):
    """Cells of the Markdown table: [row, column, ρ, measured, published, seeds, state]."""
    return [
        [part.strip() for part in line.strip("|").split("|")]
        for line in path.read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| row")
    ]


def mean_and_std(values):
    mean = sum(values) / len(values)
    return mean, (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5


def test_a_table(tmp_path, monkeypatch, trained, pictures):
    use(monkeypatch, make_table())
    reproduce.reproduce(Request("1"), tmp_path)
    assert [(c.sam.variant, c.sam.rho, c.seed, c.epochs) for c in trained][3:] == [
        ("sam", 0.1, seed, 200) for seed in range(3)
    ]
    # 0.1 away from 1 by 0.9: 50 + 10 - 0.9 + 2 = 61.1, and one percent per seed.
    assert lines(tmp_path / "table1.md") == [
        ["SGD", "net all", "–", "51.00 ± 1.00", "70.00 ± 0.20", "3", "finished"],
        ["SAM", "net all", "0.1", "62.10 ± 1.00", "71.00", "3", "finished"],
        ["SAM", "net ON", "–", "–", "72.50 ± 0.10", "0", "rho unknown: --search tries 0.5, 1, 5"],
    ]
    text = (tmp_path / "table1.md").read_text()
    assert "Not the paper's setting" not in text
    assert "- Something is unknown." in text
    assert (tmp_path / "table1/sam/net-all/rho0.1/seed2/summary.json").is_file()
    written = json.loads((tmp_path / "table1.json").read_text())
    runs = written["cells"][1]["measured"][0]["runs"]
    np.testing.assert_allclose([run["test_accuracy"] for run in runs], [61.1, 62.1, 63.1])
    assert written["cells"][2]["published"] == {"mean": 72.5, "std": 0.1}
    assert written["cells"][2]["measured"] == []
    assert (tmp_path / "table1.png").read_bytes().startswith(b"\x89PNG")


def test_finished_runs_are_not_repeated_and_search_adds_the_others(tmp_path, monkeypatch, trained):
    use(monkeypatch, make_table())
    reproduce.reproduce(Request("1", rows=("SGD",)), tmp_path)
    assert len(trained) == 3
    reproduce.reproduce(Request("1"), tmp_path)
    assert len(trained) == 6
    reproduce.reproduce(Request("1", search=True), tmp_path)
    # Every ρ with the first seed; the best one, which is 1, with the others.
    searched = [(c.sam.rho, c.seed) for c in trained[6:]]
    assert searched == [(0.5, 0), (1.0, 0), (5.0, 0), (1.0, 1), (1.0, 2)]
    assert lines(tmp_path / "table1.md")[2] == [
        "SAM", "net ON", "1", "61.00 ± 1.00", "72.50 ± 0.10", "3",
        "finished: best test accuracy of seed 0 among 3 values of ρ",
    ]  # fmt: skip
    reproduce.reproduce(Request("1", search=True), tmp_path)
    assert len(trained) == 11


def test_what_another_table_has_trained_is_read_from_there(tmp_path, monkeypatch, trained):
    # SAM over ρ = 0.1 and 0.2 begins with the runs of the table.
    use(monkeypatch, make_table(), SWEEP)
    reproduce.reproduce(Request("all"), tmp_path)
    assert len(trained) == 6 + 3 + 6
    found = json.loads((tmp_path / "figure1.json").read_text())["cells"][0]["measured"]
    assert [entry["rho"] for entry in found] == [0.1, 0.2]
    assert "/table1/sam/net-all/rho0.1/seed0" in found[0]["runs"][0]["directory"]
    shown = lines(tmp_path / "figure1.md")
    assert [(row[1], row[2], row[3]) for row in shown] == [
        ("all", "0.1", "62.10 ± 1.00"),
        ("all", "0.2", "62.20 ± 1.00"),
        ("no_norm", "0.1", "60.10 ± 1.00"),
        ("no_norm", "0.2", "60.20 ± 1.00"),
    ]


def test_runs_of_several_lengths_lie_beside_each_other(tmp_path, monkeypatch, trained):
    use(monkeypatch, make_table())
    reproduce.reproduce(Request("1", rows=("SGD",)), tmp_path)
    whole = (tmp_path / "table1.md").read_text()
    reproduce.reproduce(Request("1", rows=("SGD",), seeds=1, epochs=2), tmp_path)
    assert [(c.seed, c.epochs) for c in trained[3:]] == [(0, 2)]
    text = (tmp_path / "table1-epochs2.md").read_text()
    assert "**Not the paper's setting: 2 epochs instead of 200, 1 seeds instead of 3.**" in text
    shown = lines(tmp_path / "table1-epochs2.md")
    assert shown[0][3] == "50.00"  # one run has no standard deviation
    assert (tmp_path / "table1/sgd/net-all/rho0/seed0-epochs2/summary.json").is_file()
    assert (tmp_path / "table1.md").read_text() == whole
    for request in (Request("1", rows=("SGD",)), Request("1", rows=("SGD",), seeds=1, epochs=2)):
        reproduce.reproduce(request, tmp_path)
    assert len(trained) == 4
    assert (tmp_path / "table1.md").read_text() == whole


def test_runs_of_an_older_version_are_finished(tmp_path, monkeypatch, trained):
    """Their config.json lacks the fields that have come since, and may have others' defaults."""
    use(monkeypatch, make_table())
    reproduce.reproduce(Request("1", rows=("SAM",), columns=("all",)), tmp_path)
    before = (tmp_path / "table1.md").read_text()
    for path in tmp_path.glob("table1/*/*/*/*/config.json"):
        config = json.loads(path.read_text())
        del config["norm_dropout"], config["sam"]["gsam_alpha"], config["optimizer"]["clip_norm"]
        path.write_text(json.dumps(config))
    reproduce.reproduce(Request("1", rows=("SAM",), columns=("all",)), tmp_path)
    assert len(trained) == 3
    assert (tmp_path / "table1.md").read_text() == before


@pytest.mark.parametrize(
    "content", ["", "[1]", "{}", '{"steps": 1, "test_accuracy": null}', "\x00"]
)
def test_a_damaged_summary_is_named_and_its_run_not_finished(
    content, tmp_path, monkeypatch, trained, capsys
):
    use(monkeypatch, make_table())
    reproduce.reproduce(Request("1", rows=("SGD",)), tmp_path)
    broken = tmp_path / "table1/sgd/net-all/rho0/seed1/summary.json"
    broken.write_text(content)
    capsys.readouterr()
    reproduce.reproduce(Request("1", rows=("SGD",)), tmp_path)
    assert [c.seed for c in trained] == [0, 1, 2, 1]
    assert ("summary.json" in capsys.readouterr().out) == ("null" not in content)
    assert lines(tmp_path / "table1.md")[0][3] == "51.00 ± 1.00"


def test_a_metric_of_its_own(tmp_path, monkeypatch, trained):
    """What training does not measure is measured once on each finished run, if it is asked for."""
    measured = []

    def measure(directory):
        measured.append(directory)
        return 0.1 * (1 + int(directory.name.removeprefix("seed")))

    robust = Metric("robust_accuracy", "robust accuracy (%)", 0.01, measure)
    table = make_table()
    cells = (
        table.cells[0],
        dataclasses.replace(table.cells[0], row=label("robust"), metric=robust),
    )
    use(monkeypatch, dataclasses.replace(table, cells=cells))
    reproduce.reproduce(Request("1", rows=("SGD",)), tmp_path)
    assert not measured
    for _ in range(2):
        reproduce.reproduce(Request("1"), tmp_path)
    shown = lines(tmp_path / "table1.md")
    assert [row[3] for row in shown] == ["51.00 ± 1.00", "20.00 ± 10.00"]
    assert len(trained) == len(measured) == 3
    assert "Test accuracy (%), robust accuracy (%) after" in (tmp_path / "table1.md").read_text()
    (measured[1] / "measured.json").write_text("[")
    reproduce.reproduce(Request("1"), tmp_path)
    assert len(measured) == 4


def test_a_measure_that_fails_is_the_cell_s(tmp_path, monkeypatch, trained):
    def measure(directory):
        raise UserError("there are no such data")

    robust = Metric("robust_accuracy", "robust accuracy (%)", 0.01, measure)
    table = make_table()
    first = table.cells[0]
    cells = (dataclasses.replace(first, metric=robust), dataclasses.replace(first, row=label("x")))
    use(monkeypatch, dataclasses.replace(table, cells=cells))
    with pytest.raises(UserError, match=r"^1 of 2 cells failed"):
        reproduce.reproduce(Request("1"), tmp_path)
    states = [row[-1] for row in lines(tmp_path / "table1.md")]
    assert states == ["failed: there are no such data", "finished"]
    assert len(trained) == 3


def test_a_failed_cell_does_not_stop_the_others(tmp_path, monkeypatch, trained):
    use(monkeypatch, make_table())
    train = loop.train

    def failing(config, directory):
        if config.sam.variant == "none" and config.seed == 1:
            raise UserError("loss is nan | at step 3")
        return train(config, directory)

    monkeypatch.setattr(loop, "train", failing)
    with pytest.raises(UserError, match=r"^1 of 3 cells failed; .*table1\.md say why$"):
        reproduce.reproduce(Request("1"), tmp_path)
    assert (tmp_path / "table1.md").read_text().count("loss is nan \\| at step 3") == 1
    shown = lines(tmp_path / "table1.md")
    mean, std = mean_and_std([50.0, 52.0])  # seeds 0 and 2
    assert shown[0][3] == f"{mean:.2f} ± {std:.2f}"
    assert shown[1][-1] == "finished"


def test_on_accelerators_the_seeds_of_a_cell_are_trained_at_once(tmp_path, monkeypatch, trained):
    calls = []

    def train_together(configs, directories):
        calls.append([(c.sam.variant, c.sam.rho, c.seed) for c in configs])
        return [loop.train(*run) for run in zip(configs, directories, strict=True)]

    monkeypatch.setattr("samon_jax.training.sweep.jax.default_backend", lambda: "gpu")
    monkeypatch.setattr("samon_jax.training.sweep.train_together", train_together)
    use(monkeypatch, make_table())
    reproduce.reproduce(Request("1", search=True), tmp_path)
    assert calls == [
        [("none", 0.0, seed) for seed in range(3)],
        [("sam", 0.1, seed) for seed in range(3)],
        [("sam", rho, 0) for rho in (0.5, 1.0, 5.0)],
        [("sam", 1.0, seed) for seed in (1, 2)],
    ]
    assert len(trained) == 11


def test_a_radius_that_diverges_does_not_end_a_search(tmp_path, monkeypatch, trained):
    use(monkeypatch, make_table())
    train = loop.train

    def failing(config, directory):
        if config.sam.rho == 1.0:  # would be the best one
            raise UserError("loss is nan")
        return train(config, directory)

    monkeypatch.setattr(loop, "train", failing)
    reproduce.reproduce(Request("1", columns=("ON",), search=True), tmp_path)
    shown = lines(tmp_path / "table1.md")[2]
    assert shown[2:4] == ["0.5", "60.50 ± 1.00"]  # 0.5 away from 1; 5 is farther
    assert shown[-1].endswith("among 3 values of ρ, of which 1 failed")


def test_a_sweep_with_a_failure_shows_its_other_points(tmp_path, monkeypatch, trained):
    use(monkeypatch, SWEEP)
    train = loop.train

    def failing(config, directory):
        if (config.sam.rho, config.sam.mask) == (0.2, "all"):
            raise UserError("loss is nan")
        return train(config, directory)

    monkeypatch.setattr(loop, "train", failing)
    with pytest.raises(UserError, match=r"^1 of 2 cells failed"):
        reproduce.reproduce(Request("figure1"), tmp_path)
    states = [row[-1] for row in lines(tmp_path / "figure1.md")]
    assert states == ["finished", "failed: loss is nan", "finished", "finished"]


def test_seeds_that_fail_together_are_tried_alone(tmp_path, monkeypatch, trained):
    def train_together(configs, directories):
        raise UserError("seed 1: loss is nan")

    monkeypatch.setattr("samon_jax.training.sweep.jax.default_backend", lambda: "gpu")
    monkeypatch.setattr("samon_jax.training.sweep.train_together", train_together)
    use(monkeypatch, make_table())
    reproduce.reproduce(Request("1", rows=("SGD",)), tmp_path)
    assert [c.seed for c in trained] == [0, 1, 2]


def test_real_training(tmp_path, monkeypatch):
    use(monkeypatch, make_table(SMALL))
    request = Request("1", rows=("SAM",), columns=("all",), seeds=2, epochs=1)
    reproduce.reproduce(request, tmp_path)
    accuracies = []
    for seed in range(2):
        folder = tmp_path / f"table1/sam/net-all/rho0.1/seed{seed}-epochs1"
        accuracies.append(100 * json.loads((folder / "summary.json").read_text())["test_accuracy"])
        assert json.loads((folder / "config.json").read_text())["seed"] == seed
    mean, std = mean_and_std(accuracies)
    assert lines(tmp_path / "table1-epochs1.md")[1][3] == f"{mean:.2f} ± {std:.2f}"

    def refuse(config, directory):
        raise AssertionError("a finished run is trained again")

    monkeypatch.setattr(loop, "train", refuse)
    reproduce.reproduce(request, tmp_path)
    assert lines(tmp_path / "table1-epochs1.md")[1][3] == f"{mean:.2f} ± {std:.2f}"


@pytest.fixture
def drawn(monkeypatch, pictures):
    """The figures that were drawn."""
    found = []
    monkeypatch.setattr(style, "save", lambda figure, path: found.append(figure))
    return found


def points(axes, kind):
    """(x, y) of what the legend calls `kind`."""
    return {
        tuple(np.round([*map(float, x), *map(float, y)], 6).tolist())
        for container in axes.containers
        if container.get_label().endswith(kind)
        for x, y in [container.lines[0].get_data()]
    }


def test_picture_of_a_table(tmp_path, monkeypatch, trained, drawn):
    """With two rows, each has a picture of its own."""
    use(monkeypatch, make_table())
    reproduce.reproduce(Request("1"), tmp_path)
    sgd, sam = drawn[-1].axes
    assert [axes.get_title() for axes in (sgd, sam)] == ["SGD", "SAM"]
    assert [{x for x, _ in points(axes, "measured")} for axes in (sgd, sam)] == [{51.0}, {62.1}]
    assert {x for x, _ in points(sgd, "published")} == {70.0}
    assert {x for x, _ in points(sam, "published")} == {71.0, 72.5}
    assert [text.get_text() for text in sam.get_yticklabels()] == ["net all", "net ON"]


def test_picture_of_curves(tmp_path, monkeypatch, trained, drawn):
    use(monkeypatch, SWEEP)
    reproduce.reproduce(Request("figure1"), tmp_path)
    (axes,) = drawn[-1].axes
    assert points(axes, "measured") == {(0.1, 0.2, 62.1, 62.2), (0.1, 0.2, 60.1, 60.2)}
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "ρ")


def test_picture_over_m(tmp_path, monkeypatch, trained, drawn):
    use(monkeypatch, LINES)
    reproduce.reproduce(Request("figure4right"), tmp_path)
    (axes,) = drawn[-1].axes
    assert points(axes, "measured") == {(32.0, 64.0, 62.1, 62.1)}
    assert points(axes, "published") == {(64.0, 50.0)}
    assert axes.get_xlabel() == "m"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table=99"], "--table=99 is not here; choose one of table1, table2"),
        ([], "--table is missing"),
        (["--table=1", "--rows=XYZ"], "--rows=XYZ is not in table1, which has: basic SGD"),
        (["--table=1", "--columns=XYZ"], "--columns=XYZ is not in table1, which has: RN-56 all"),
        (["--table=all", "--rows=SAM"], "--rows and --columns need one --table"),
        (["--table=1", "--seeds=0"], "--seeds=0 is not allowed; it must be an integer >= 1"),
        (["--table=1", "--seeds=x"], "--seeds=x is not allowed"),
        (["--table=1", "--epochs=-1"], "--epochs=-1 is not allowed"),
        (["--table=1", "--scale=tiny"], "--scale=tiny is not allowed"),
        (["--table=1", "--scale=smoke", "--seeds=2"], "--seeds=2 has no effect with --scale=smoke"),
        (["--table=1", "--config=configs/digits.py"], "which has the configs of the papers"),
        (["--table=1", "--config.epochs=2"], "--config.epochs is not allowed"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
    command = ["main.py", "--mode=reproduce", f"--workdir={tmp_path / 'runs'}", *arguments]
    assert main.main(command) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_its_flags_belong_to_it(capsys):
    assert main.main(["main.py", "--config=configs/digits.py", "--workdir=x", "--seeds=3"]) == 2
    line = "--seeds=3 has no effect with --mode=train; it is for --mode=reproduce"
    assert line in capsys.readouterr().err


def test_the_command_trains_and_the_defaults_are_the_papers(tmp_path, monkeypatch, trained):
    use(monkeypatch, make_table())
    command = ["main.py", "--mode=reproduce", "--table=1", f"--workdir={tmp_path / 'runs'}"]
    assert main.main([*command, "--rows=SAM, XY", "--search"]) == 2
    assert main.main([*command, "--rows=SAM,SGD", "--columns=ON", "--search"]) == 0
    assert {(c.epochs, c.batch_size) for c in trained} == {(default_config().epochs, 64)}
    assert len(trained) == 5
    assert len(re.findall("not finished", (tmp_path / "runs/table1.md").read_text())) == 2
