"""The config files against the papers."""

import re
from pathlib import Path

import pytest

from configs import cifar, digits, translation
from samon_jax.errors import UserError
from samon_jax.paper.catalog import find
from samon_jax.paper.runs import cell_config
from samon_jax.training.cli import load_config, override
from samon_jax.training.config import check, differences, get, identity

ROOT = Path(__file__).parent.parent


def test_every_option_of_cifar_is_read():
    config = cifar.get_config(
        "dataset=cifar10,model=resnet-56,variant=sam,mask=all,rho=0.7,epochs=3,seed=4,"
        "optimizer=adamw,lr=0.002,weight_decay=0.03,batch_size=32"
    )
    assert config.data.name == "cifar10"
    assert config.model == "resnet-56"
    assert (config.sam.variant, config.sam.mask, config.sam.rho) == ("sam", "all", 0.7)
    assert (config.epochs, config.seed, config.batch_size) == (3, 4, 32)
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("adamw", 0.002, 0.03)
    check(config)


@pytest.mark.parametrize("value", ["3", "0.25", "sam", "cifar10", "true"])
@pytest.mark.parametrize("option", [name for name in cifar.FIELDS if name != "optimizer"])
def test_an_option_is_a_short_name_of_an_override(option, value):
    """The same text, given either way, leads to the same value or to the same complaint."""
    field = cifar.FIELDS[option]
    if option == "dataset" and value != "cifar10":
        return  # an override may name any data set
    config = cifar.get_config("variant=none")
    try:
        override(config, [f"--config.{field}={value}"])
    except UserError as error:
        complaint = str(error).replace(f"--config.{field}", option)
        with pytest.raises(UserError) as found:
            cifar.get_config(f"{option}={value}")
        assert str(found.value) == complaint
        return
    rho = "" if option == "rho" else "rho=0.5,"
    assert get(cifar.get_config(f"{rho}{option}={value}"), field) == get(config, field)


@pytest.mark.parametrize("options", ["ro=1", "rho=", "rho"])
def test_an_option_that_is_not_there(options):
    with pytest.raises(UserError, match=f"config option '{options}'.* key one of dataset, model"):
        cifar.get_config(options)


# Copied from the printed Table 4 of the workshop paper, in its order.
@pytest.mark.parametrize(
    ("variant", "mask", "cifar10", "cifar100"),
    [
        ("sam", "all", 0.1, 0.1),
        ("sam", "only_norm", 0.5, 1.0),
        ("elementwise_l2", "all", 2, 1),
        ("elementwise_l2", "only_norm", 3, 2.5),
        ("elementwise_l2_orig", "all", 0.5, None),
        ("elementwise_l2_orig", "only_norm", 0.5, 1),
        ("elementwise_linf", "all", 0.005, 0.01),
        ("elementwise_linf", "only_norm", 0.025, 0.05),
        ("layerwise_l2", "all", 0.025, 0.01),
        ("layerwise_l2", "only_norm", 0.25, 0.2),
        ("fisher", "all", None, None),
        ("fisher", "only_norm", 0.1, 0.1),
    ],
)
def test_published_rho(variant, mask, cifar10, cifar100):
    for dataset, rho in (("cifar10", cifar10), ("cifar100", cifar100)):
        options = f"dataset={dataset},variant={variant},mask={mask}"
        if rho is None:
            with pytest.raises(UserError, match="add rho=<number>"):
                cifar.get_config(options)
        else:
            assert cifar.get_config(options).sam.rho == rho


# (lr, weight decay, b2, batch size): SGD and AdamW as in appendix A.1; Lion relative to AdamW.
@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("sgd", (0.1, 5e-4, 0.999, 128)),
        ("adamw", (1e-4, 5e-4, 0.999, 64)),
        ("lion", (1e-4 / 5, 5 * 5e-4, 0.99, 64)),
    ],
)
def test_optimizers_bring_their_settings(optimizer, settings):
    config = cifar.get_config(f"model=vit-t,variant=none,optimizer={optimizer}")
    chosen = config.optimizer
    assert (chosen.lr, chosen.weight_decay, chosen.b2, config.batch_size) == settings
    check(config)


def test_the_published_rho_is_that_of_resnets():
    with pytest.raises(UserError, match=r"rho is missing.*model=vit-t"):
        cifar.get_config("model=vit-t")


def test_a_value_may_hold_commas():
    config = cifar.get_config("mask=only_norm_in:e{1,2}3,variant=sam")
    assert (config.sam.mask, config.sam.variant) == ("only_norm_in:e{1,2}3", "sam")
    assert config.sam.rho == 1.0  # of only_norm


@pytest.mark.parametrize("mask", ["no_norm", "random:0.9"])
def test_other_masks_need_a_rho(mask):
    with pytest.raises(UserError, match="rho is missing"):
        cifar.get_config(f"mask={mask}")
    assert cifar.get_config(f"mask={mask},rho=0.1").sam.mask == mask


def test_plain_sgd_needs_no_rho():
    check(cifar.get_config("variant=none"))


def test_digits_compares_four_methods_over_five_seeds():
    config = digits.get_config("compare")
    assert config.compare.seeds == 5
    assert list(config.compare.methods) == ["SGD", "SAM-all", "SAM-ON", "no-norm"]
    check(config)
    assert digits.get_config().compare.seeds == 0


COMMANDS = sorted(
    {
        name.rstrip("`,;.)")
        for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.*"), ROOT / "main.py"]
        if path.suffix in {".md", ".py", ".sh", ".sbatch", ".yaml"}
        for name in re.findall(r"--config=(configs/[^\s\\\"\]\[<…]+)", path.read_text())
    }
)


@pytest.mark.parametrize("argument", COMMANDS)
def test_configs_that_the_guides_name_can_be_loaded(argument, monkeypatch):
    """Also those of the job files, which nobody starts here."""
    monkeypatch.chdir(ROOT)
    assert check(load_config(argument)) is None


def test_the_guides_name_configs():
    assert len(COMMANDS) > 10


@pytest.mark.parametrize(("options", "row"), [("", "SAM-ON"), ("adamw", "AdamW")])
def test_translation_is_what_the_study_trains(options, row):
    (table,) = find("translation study")
    (cell,) = table.select((row,), ())
    config = translation.get_config(options)
    rho = config.sam.rho if options == "" else 0.0
    assert rho in (*cell.rho.values, 0.0)
    study = cell_config(cell, rho, config.seed)
    different = {name for name, _, _ in differences(identity(study), identity(config))}
    assert different <= {"translation.beam"}  # of the validation, which the study does greedily


def test_other_configs_of_translation():
    config = translation.get_config("iwslt")
    (table,) = find("16")
    (cell,) = table.select((), ("SAM-ON",))
    assert config.sam.rho in cell.rho.values
    assert identity(config) == identity(cell_config(cell, config.sam.rho, config.seed))
    check(translation.get_config("reversal"))
    with pytest.raises(UserError, match=r"translation\.py:ende does not exist; choose '', 'adamw'"):
        translation.get_config("ende")
