import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.strip().splitlines()
]


def test_first_example_is_short_and_trains():
    assert len(BLOCKS[0].strip().splitlines()) <= 15
    x = jax.random.normal(jax.random.key(0), (16, 4))

    def loss_fn(params, batch):
        output = batch @ params["kernel"] * params["norm"]["scale"]
        return jnp.mean((output - batch.sum(1, keepdims=True)) ** 2)

    params = {"kernel": jnp.full((4, 2), 0.1), "norm": {"scale": jnp.ones(2)}}
    scope = {"loss_fn": loss_fn, "params": params}
    exec(BLOCKS[0], scope)
    opt_state, ascent_state, losses = scope["opt_state"], scope["ascent_state"], []
    for _ in range(30):
        params, opt_state, ascent_state, loss = scope["step"](params, opt_state, ascent_state, x)
        losses.append(float(loss))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("index", range(1, len(BLOCKS)))
def test_other_examples_run(index):
    scope: dict = {}
    exec(BLOCKS[index], scope)
    if "grads" in scope and "params" in scope:
        norms = [float(jnp.abs(g).sum()) for g in jax.tree.leaves(scope["grads"])]
        assert len(norms) == len(jax.tree.leaves(scope["params"]))
        assert all(jnp.isfinite(jnp.array(norms)))
        assert any(norms)


def test_commands_make_their_own_environment():
    assert len(COMMANDS) >= 2
    for command in COMMANDS[:2]:
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert "main.py --config=configs/digits.py --workdir=" in COMMANDS[0]
    assert "-m pytest" in COMMANDS[1]


def test_files_that_commands_and_links_name_exist():
    names = re.findall(r"(?:configs|benchmarks|docs)/[\w.-]+\.(?:py|md|png)", README)
    assert names
    for name in names:
        assert (ROOT / name).is_file(), name


def test_ci_runs_the_readme_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    find = re.search(r"\$\((grep .*README\.md)\)", script)
    assert find
    assert 'eval "$test_command"' in script
    found = subprocess.run(["bash", "-c", find[1]], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.strip() == COMMANDS[1]


def test_requirements_need_no_tensorflow():
    pinned = (ROOT / "requirements.txt").read_text()
    assert not re.search(r"^tensorflow(-cpu|-gpu)?==", pinned, re.MULTILINE)
    lines = [x for x in pinned.splitlines() if x and not x.startswith("#")]
    assert all(re.match(r"^[\w.-]+==[\w.]+( ; python_version (<|>=) \"3.12\")?$", x) for x in lines)
    assert sys.version_info >= (3, 11)
