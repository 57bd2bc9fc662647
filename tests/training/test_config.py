import json

import pytest
import tiny
from ml_collections import ConfigDict

from samon_jax.errors import UserError
from samon_jax.training import setup
from samon_jax.training.config import default_config, validate


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


NAN = float("nan")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"seed": -1}, ["seed=-1", "0 <= seed"]),
        ({"dtype": "float16"}, ["dtype='float16'", "bfloat16"]),
        ({"epochs": 0}, ["epochs=0", ">= 1"]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"batch_size": 9}, ["batch_size=9", "2 devices"]),
        ({"model": "wrn-27-10"}, ["wrn-27-10"]),
        ({"model": "vgg"}, ["vgg", "wrn-<depth>-<width>"]),
        ({"label_smoothing": 1.0}, ["label_smoothing=1.0"]),
        ({"steps_per_dispatch": -1}, ["steps_per_dispatch=-1"]),
        ({"data__crop_padding": -1}, ["data.crop_padding=-1"]),
        ({"optimizer__name": "adam"}, ["optimizer.name='adam'", "adamw"]),
        ({"optimizer__lr": 0.0}, ["optimizer.lr=0.0", "> 0"]),
        ({"optimizer__lr": NAN}, ["optimizer.lr=nan"]),
        ({"optimizer__clip_norm": -1.0}, ["optimizer.clip_norm=-1.0"]),
        ({"optimizer__accumulate": 0}, ["optimizer.accumulate=0"]),
        ({"schedule__name": "linear"}, ["schedule.name='linear'", "cosine"]),
        (
            {"schedule__warmup_epochs": 3.0},
            ["schedule.warmup_epochs=3.0", "schedule.cooldown_epochs=0.0", "sum", "epochs=2"],
        ),
        ({"compare__seeds": -1}, ["compare.seeds=-1", ">= 0"]),
        ({"seed": 2**32 - 1, "compare__seeds": 2}, ["compare.seeds=2", "seed + seeds"]),
        ({"data__name": "imagenet"}, ["data.name='imagenet'", "cifar100"]),
        ({"sam__variant": "gsam"}, ["sam.variant='gsam'", "layerwise_l2", "none"]),
        ({"sam__rho": -0.1}, ["sam.rho=-0.1", ">= 0"]),
        ({"sam__rho": NAN}, ["sam.rho=nan"]),
        ({"sam__eta": -1.0}, ["sam.eta=-1.0", ">= 0"]),
        ({"sam__mask": "bn"}, ["sam.mask='bn'", "only_norm_in:<regex>"]),
        ({"sam__mask": "only_norm_in:("}, ["only_norm_in:(", "regular expression"]),
        ({"sam__mask": "random:1.5"}, ["random:1.5", "0 <= value < 1"]),
        ({"sam__mask": "random:much"}, ["random:much"]),
        ({"sam__m": 48}, ["sam.m=48", "64"]),
        ({"sam__start": 3}, ["sam.start=3"]),
        ({"sam__start": 2, "sam__stop": 1}, ["sam.stop=1"]),
        ({"sam__batch_stats": "none"}, ["sam.batch_stats='none'", "perturbed"]),
        ({"checkpoint__keep": 0}, ["checkpoint.keep=0"]),
    ],
)
def test_each_bad_value_is_one_clear_line(fields, words):
    with pytest.raises(UserError) as error:
        validate(tiny.config(**fields), 2)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sam__eta": 0.1}, r"^sam\.eta=0\.1 has no effect on variant='sam'"),
        ({"sam__mask": "only_norm_in:zzz"}, r"^sam\.mask='only_norm_in:zzz'.*stage1_norm"),
        ({"data__crop_padding": 9}, r"^data\.crop_padding=9 .* at most 8"),
        ({"data__auto_augment": True}, r"^data\.auto_augment=True .*'digits'.* needs 3"),
    ],
)
def test_what_model_and_data_do_not_allow_names_the_field(fields, message):
    with pytest.raises(UserError, match=message):
        setup.set_up(tiny.config(**fields))


@pytest.mark.parametrize("m", [0, 16, 64, 128])
def test_m_may_divide_a_device_or_span_devices(m):
    validate(tiny.config(sam__m=m), 2)


def test_config_is_not_changed_by_validation():
    config = tiny.config()
    before = config.to_json()
    validate(config, 1)
    assert isinstance(config, ConfigDict)
    assert config.to_json() == before
