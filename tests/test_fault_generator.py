"""Faults that nobody thought of: any field of a config set to anything, wherever configs come from.

What comes out is a config, or a `UserError` of one line; never another exception.
"""

import json
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from samon_jax import tasks
from samon_jax.errors import UserError
from samon_jax.training import cli, compare, optimizers, reading
from samon_jax.training.config import check_fields, default_config, identity, sections
from samon_jax.training.run import resolve

NAMES = [f"{s}.{name}" if s else name for s, fields in sections().items() for name in fields]
FIELDS = [*NAMES, *filter(None, sections()), "compare.methods.SAM.rho", "new", "sam.new"]
WORDS = ["", "all", "none", "sam", "ssam_f", "adamw", "digits", "digits-resnet", "resnet-99999999"]
WORDS += ["wrn-28-0", "wrn-99999994-1", "only_norm_in:(", "random:nan", "random:1", "translation"]
WORDS += ["random:", "multi30k", "vit-t", "only_norm_in:", "True", "1e999", "nan", "-0", "0x10"]
NUMBERS = [0, 1, -1, 2, 64, 2**31 - 1, 2**31, 2**63, 10**400, 0.0, -0.0, 0.5, 1.0, 1e-320, 1e39]
NUMBERS += [1e308, float("nan"), float("inf"), -float("inf"), True, False, None]

words = st.sampled_from(WORDS) | st.text(max_size=8)
numbers = st.sampled_from(NUMBERS) | st.integers() | st.floats()
jsonable = st.recursive(
    words | numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
objects = st.sampled_from(
    [
        np.float64(0.5), np.float32("nan"), np.int64(1), np.int8(-1), np.bool_(True),
        np.str_("sam"), np.ones(2), np.array(1), np.array([]), np.datetime64("2023-01-01"),
        jnp.ones(()), jnp.ones(3),
        b"sam", 1j, (), (1, 2), {1, 2}, object(), int, len, lambda: 1, range(3),
        Path("x"), ConfigDict(), ConfigDict({"rho": 1.0}), NotImplemented, Ellipsis, [[[[]]]],
    ]
)  # fmt: skip
anything = jsonable | objects

few = settings(max_examples=80, derandomize=True, deadline=None, database=None)
many = settings(
    max_examples=5000, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def one_line(call, *arguments):
    """The result, or None after a UserError of one line; another exception passes."""
    said = "x"
    try:
        return call(*arguments)
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) == 1, said
    return None


def prepare(config):
    """What is done with a config before data are read."""
    resolved = resolve(config)
    tasks.create(resolved)
    optimizers.make_schedule(resolved, 10)
    for name in resolved.compare.methods:
        resolve(compare._of_method(resolved, name))
    json.loads(resolved.to_json())  # it can be written
    return identity(resolved)


def base():
    config = default_config()
    config.model, config.data.name = "digits-resnet", "digits"
    config.data.crop_padding = 1
    return config


def set_anywhere(config, field, value):
    """Sets a field as a careless config file does."""
    *sections, name = field.split(".")
    with config.unlocked(), config.ignore_type():
        for section in sections:
            if not isinstance(config.get(section), ConfigDict):
                config[section] = ConfigDict()
            config = config[section]
        with config.unlocked(), config.ignore_type():
            config[name] = value


def check_field_of_a_file(field, value):
    config = base()
    try:
        set_anywhere(config, field, value)
    except (TypeError, ValueError, AttributeError, OverflowError):
        return  # ml_collections' own, which is where a config file that does this is named
    one_line(check_fields, config)
    one_line(prepare, config)


def check_two_fields(first, second, value, other):
    check_field_of_a_file(first, value)
    config = base()
    try:
        set_anywhere(config, first, value)
        set_anywhere(config, second, other)
    except (TypeError, ValueError, AttributeError, OverflowError):
        return
    one_line(prepare, config)


def check_saved_config(field, value):
    tree = json.loads(base().to_json())
    *sections, name = field.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
    node[name] = value
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(tree))
        config = one_line(reading.load_config, Path(folder))
    if config is not None:
        one_line(prepare, config)
        prepared = one_line(tasks.create, config)
        assert prepared is None or prepared.name


def check_command_line(field, value):
    arguments = [f"--config.{field}={value}", "--workdir=x"]
    root = Path(__file__).parent.parent
    parsed = one_line(cli.parse, ["main.py", f"--config={root}/configs/digits.py", *arguments])
    if parsed is not None:
        one_line(prepare, parsed.config)


CHECKS = {
    "file": (check_field_of_a_file, (st.sampled_from(FIELDS), anything)),
    "saved": (check_saved_config, (st.sampled_from(FIELDS), jsonable)),
    "command line": (check_command_line, (st.sampled_from(FIELDS), (words | numbers))),
    "two": (check_two_fields, (st.sampled_from(NAMES), st.sampled_from(NAMES), numbers, anything)),
}


@pytest.mark.parametrize("source", CHECKS)
def test_anything_in_a_field_is_a_config_or_one_line(source):
    check, arguments = CHECKS[source]
    few(given(*arguments)(check))()


@pytest.mark.parametrize(
    ("source", "arguments"),
    [
        ("file", ("compare.methods.SAM.rho", 10**400)),  # float() overflows
        ("saved", ("task", "translation")),  # of images
        ("command line", ("compare.methods.SAM.rho", "\x85")),  # a line separator
    ],
)
def test_found_before(source, arguments):
    CHECKS[source][0](*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("source", CHECKS)
def test_anything_in_a_field_many_times(source):
    check, arguments = CHECKS[source]
    many(given(*arguments)(check))()
