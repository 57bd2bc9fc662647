import json

import pytest
import tiny
from ml_collections import ConfigDict

from samon_jax.errors import UserError
from samon_jax.training.config import default_config
from samon_jax.training.validation import validate


def test_defaults_are_those_of_appendix_a1():
    config = default_config()
    assert config.optimizer.lr == 0.1
    assert config.optimizer.momentum == 0.9
    assert config.optimizer.weight_decay == 0.0005
    assert config.label_smoothing == 0.1
    assert config.epochs == 200
    assert (config.data.crop_padding, config.data.flip) == (4, True)
    validate(config, 1)


def test_defaults_survive_json():
    config = default_config()
    copy = default_config().unlock()
    copy.update(json.loads(config.to_json()))
    assert copy.to_json() == config.to_json()


def test_unknown_field_is_an_error():
    with pytest.raises(AttributeError):
        default_config().sam.rhoo = 1.0


def test_a_config_of_another_make_is_one_clear_line():
    with pytest.raises(UserError, match=r"lacks the fields .*batch_size.* and \d+ more"):
        validate(ConfigDict({"lr": 0.1}), 1)
    config = ConfigDict(tiny.config().to_dict())
    del config.sam.rho
    with pytest.raises(UserError, match=r"lacks the fields sam\.rho;"):
        validate(config, 1)
    config.sam.rho = "much"
    with pytest.raises(UserError, match=r"sam\.rho='much'.*float"):
        validate(config, 1)
