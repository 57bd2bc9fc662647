import pytest
import tiny

from samon_jax.errors import UserError
from samon_jax.training import compare, sweep
from samon_jax.training.reading import load_config
from samon_jax.workdir import files


def test_markdown_table_marks_the_best():
    table = compare.markdown_table({"SGD": [0.5, 0.7], "SAM": [0.8, 0.9], "one": [0.1]})
    assert table.splitlines()[2:] == [
        "| SGD | 60.00 ± 14.14 | 2 |",
        "| SAM | **85.00 ± 7.07** | 2 |",
        "| one | 10.00 ± 0.00 | 1 |",
    ]


def test_comparison_trains_every_method_and_resumes(tmp_path, capsys):
    methods = {"SGD": {"variant": "none"}, "SAM-all": {"mask": "all", "rho": 0.05}}
    config = tiny.config(epochs=1, compare__seeds=2, seed=3)
    with config.unlocked():
        config.compare.methods.update(methods)
    accuracies = compare.compare(config, tmp_path)
    # In the order of the config, which is not the alphabet's.
    assert [(name, len(values)) for name, values in accuracies.items()] == [
        ("SGD", 2),
        ("SAM-all", 2),
    ]
    config_of = load_config(tmp_path / "SAM-all" / "seed4")
    assert (config_of.seed, config_of.sam.mask, config_of.sam.rho) == (4, "all", 0.05)
    assert sorted(path.name for path in (tmp_path / "SGD").iterdir()) == ["seed3", "seed4"]
    saved = files.read_json(tmp_path / "compare.json")
    assert saved["SGD"]["test_accuracies"] == accuracies["SGD"]
    assert (tmp_path / "compare.md").read_text() == compare.markdown_table(accuracies)
    assert (tmp_path / "compare.png").exists()
    capsys.readouterr()
    assert compare.compare(config, tmp_path) == accuracies
    assert capsys.readouterr().out.count("is finished") == 4


def test_comparison_with_an_unknown_field(tmp_path):
    config = tiny.config(compare__seeds=1, compare__methods={"x": {"radius": 1.0}})
    with pytest.raises(UserError, match=r"compare\.methods\.x"):
        compare.compare(config, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_of_several_processes_the_first_one_writes_and_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare.jax, "process_index", lambda: 1)
    monkeypatch.setattr(
        compare, "train_all", lambda configs, _: [{"test_accuracy": 0.5}] * len(configs)
    )
    config = tiny.config(compare__seeds=1, compare__methods={"SGD": {"variant": "none"}})
    assert compare.compare(config, tmp_path) == {"SGD": [0.5]}
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_several_processes_train_one_run_after_the_other(monkeypatch):
    monkeypatch.setattr(sweep.jax, "default_backend", lambda: "gpu")
    assert sweep.at_once_pays()
    monkeypatch.setattr(sweep.jax, "process_count", lambda: 2)
    assert not sweep.at_once_pays()
