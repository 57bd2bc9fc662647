import json

import pytest
import tiny

from samon_jax.errors import UserError
from samon_jax.training import workdir


def test_claim_writes_the_config_once(tmp_path):
    folder = tmp_path / "new" / "run"
    config = tiny.config()
    workdir.claim(folder, config)
    assert json.loads((folder / "config.json").read_text()) == json.loads(config.to_json())
    workdir.claim(folder, config)
    assert workdir.load_config(folder).to_json() == config.to_json()


def test_claim_refuses_another_config_and_names_the_fields(tmp_path):
    workdir.claim(tmp_path, tiny.config())
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(UserError) as error:
        workdir.claim(tmp_path, tiny.config(sam__rho=0.7, epochs=3))
    message = str(error.value)
    assert "sam.rho: 0.2 there, 0.7 now" in message
    assert "epochs: 2 there, 3 now" in message
    assert "\n" not in message
    assert (tmp_path / "config.json").read_text() == before


def test_claim_lets_data_dir_and_reporting_differ(tmp_path):
    workdir.claim(tmp_path, tiny.config())
    workdir.claim(tmp_path, tiny.config(data__dir="/elsewhere", log__every_seconds=1.0))
    assert workdir.load_config(tmp_path).data.dir == "/elsewhere"


@pytest.mark.parametrize("content", ["{", "[]", '{"speed": 1}', '{"epochs": "two"}'])
def test_a_damaged_config_is_one_clear_line(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        workdir.load_config(tmp_path)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing"):
        workdir.load_config(tmp_path)


def test_metrics_are_trimmed_to_the_checkpoint(tmp_path):
    for step in (10, 20, 30):
        workdir.append_metrics(tmp_path, {"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')  # the process died while writing
    assert [record["step"] for record in workdir.read_metrics(tmp_path)] == [10, 20, 30]
    kept = workdir.trim_metrics(tmp_path, 20)
    assert kept == [{"step": 10}, {"step": 20}]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 10}\n{"step": 20}\n'


def test_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        workdir.claim(tmp_path / "file", tiny.config())
