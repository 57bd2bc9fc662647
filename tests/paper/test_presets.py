"""Presets against the printed tables, copied here a second time as they are printed."""

import pytest

import samon_jax as samon
from samon_jax.errors import UserError
from samon_jax.paper import presets
from samon_jax.paper.presets import IMAGENET, SEARCH_SPACE, preset

# Table 7, line by line: CIFAR-10 RN | CIFAR-100 RN | ViT. The one oddity is named in presets.py.
TABLE_7 = """
sam all                 | 0.05, 0.1, 0.25 | 0.05, 0.1, 0.5, 1. | 0.025, 0.05, 0.1, 0.25, 0.5
sam only_norm           | 0.1, 0.5, 1 | 0.1, 0.5, 1., 5. | 1., 2.5, 5., 10., 25
elementwise_l2 all      | 0.5, 1, 2, 3, 5 | 0.5, 1, 2.5, 5., 10. | 0.5, 1., 2.5, 5, 10
elementwise_l2 only_norm | 0.5, 1, 2, 3, 5 | 0.5, 1., 2.5, 5., 10. | 1., 2.5, 5.,10., 25
elementwise_l2_orig all | 0.1, 0.5, 1, 5, 10 | 0.5, 1, 2.5, 5 | 0.5, 1., 2.5, 5, 10
elementwise_l2_orig only_norm | 0.1, 0.5, 1, 5, 10 | 0.5, 1., 2.5, 5 | 1., 2.5, 5.,10., 25
elementwise_linf all | 0.001, 0.005, 0.01, 0.05 | 0.001, 0.005, 0.01, 0.05 | 0.0005, 0.001, 0.0025, 0.005, 0.01
elementwise_linf only_norm | 0.01, 0.025, 0.05, 0.1 | 0.01, 0.05, 0.1, 0.5 | 0.025, 0.05, 0.1, 0.25, 0.5
layerwise_l2 all | 0.005, 0.01, 0.025, 0.05, 0.1 | 0.001, 0.01, 0.05, 0.1 | 0.001, 0.0025, 0.005, 0.01, 0.025
layerwise_l2 only_norm | 0.05, 0.1, 0.25, 0.5, 1 | 0.1, 0.2, 0.5, 1. | 0.05, 0.1, 0.25, 0.5, 1.
fisher all | 0.05, 0.1, 0.5, 1,5 | 0.05, 0.1, 0.5, 1 | 0.05, 0.1, 0.5, 1,5
fisher only_norm | 0.1, 0.5,1 ,5 , 10 | 0.1, 0.5,1 ,5 , 10 | 0.1, 0.5,1 ,5 , 10
"""  # noqa: E501


def test_table_7():
    read = {}
    for line in TABLE_7.strip().splitlines():
        name, *columns = line.split("|")
        variant, mask = name.split()
        read[variant, mask] = tuple(tuple(map(float, c.split(","))) for c in columns)
    assert read == SEARCH_SPACE


def test_chosen_values_were_tried():
    for (variant, mask), chosen in presets.PUBLISHED_RHO.items():
        for rho, tried in zip(chosen, SEARCH_SPACE[variant, mask], strict=False):
            assert rho is None or rho in tried


def test_every_variant_of_the_library_has_its_presets():
    assert set(presets.VARIANTS) == set(samon.VARIANTS)
    for variant in samon.VARIANTS:
        for mask in ("all", "only_norm", "no_norm"):
            assert preset("cifar100", "vit", variant, mask).rho is None
            found = preset("cifar10", "resnet", variant, mask)
            assert found.rho is None or found.rho in found.space
            assert list(found.space) == sorted(set(found.space))


@pytest.mark.parametrize(
    ("dataset", "variant", "mask"),
    [
        ("cifar100", "elementwise_l2_orig", "all"),
        ("cifar10", "fisher", "all"),
        ("cifar100", "fisher", "all"),
        ("cifar100", "fisher", "only_norm"),
        ("cifar100", "sam", "no_norm"),
    ],
)
def test_what_the_papers_do_not_tell_is_the_search_space(dataset, variant, mask):
    found = preset(dataset, "resnet", variant, mask)
    assert found.rho is None
    assert found.space == preset(dataset, "resnet", variant, mask.replace("no_norm", "all")).space
    assert found.source.startswith("Table 7")


def test_ssam_and_parts_of_the_norms():
    assert preset("cifar10", "resnet", "ssam_f", "all").rho == 0.1
    assert preset("cifar100", "resnet", "ssam_d", "all").rho == 0.2
    assert preset("cifar100", "resnet", "sam", "only_norm_in:stage3").rho == 1.0


# Table 8, "ρ (reported)" and "ρ (discarded)".
@pytest.mark.parametrize(
    ("architecture", "variant", "mask", "reported", "tried"),
    [
        ("resnet-50", "sam", "all", 0.05, {0.05}),
        ("resnet-50", "elementwise_l2", "only_norm", 1, {1}),
        ("resnet-50", "elementwise_linf", "all", 0.001, {0.001, 0.01}),
        ("resnet-50", "elementwise_linf", "only_norm", 0.005, {0.005, 0.05}),
        ("resnet-50", "layerwise_l2", "all", 0.005, {0.005, 0.05}),
        ("resnet-50", "layerwise_l2", "only_norm", 0.05, {0.05, 0.5}),
        ("vit-s", "sam", "all", 1, {1, 0.05, 0.1, 0.5, 2}),
        ("vit-s", "sam", "only_norm", 15, {10, 15, 20}),
        ("vit-s-lion", "sam", "only_norm", 10, {5, 10, 20}),
        ("vit-s-finetuned", "elementwise_linf", "all", 1e-4, {1e-5, 1e-4, 1e-3}),
        ("vit-s-finetuned", "layerwise_l2", "only_norm", 1e-3, {1e-3, 1e-2, 1e-1}),
    ],
)
def test_table_8(architecture, variant, mask, reported, tried):
    found = preset("imagenet", architecture, variant, mask)
    assert (found.rho, set(found.space)) == (reported, tried)


def test_schedules_of_table_8():
    rows = {
        name: (r.epochs, r.warmup_epochs, r.cooldown_epochs, r.batch_size, r.lr, r.weight_decay)
        for name, r in IMAGENET.items()
    }
    assert rows == {
        "resnet-50": (90, 3, 10, 512, 0.2, 0.0001),
        "vit-s": (300, 10, 0, 128, 0.001, 0.1),
        "vit-s-finetuned": (9, 1, 0, 896, 0.017, 0.0001),
    }
    assert [r.m for r in IMAGENET.values()] == [64, 128, 128]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mnist", "resnet", "sam", "all"), "dataset='mnist'.*cifar10, cifar100, imagenet"),
        (("cifar10", "mlp", "sam", "all"), "architecture='mlp'.*resnet, vit"),
        (("cifar10", "resnet", "gsam", "all"), "variant='gsam'.*sam, elementwise_l2"),
        (("cifar10", "resnet", "sam", "random:0.5"), "mask='random'.*all, only_norm"),
        (("cifar10", "vit", "ssam_f", "all"), "ssam_f.*architecture='resnet', mask='all'"),
        (("imagenet", "resnet-50", "fisher", "all"), "fisher.*they have: sam all"),
        (("imagenet", "vgg-13", "sam", "all"), "architecture='vgg-13'.*resnet-50, vit-s"),
    ],
)
def test_what_does_not_exist_is_named(arguments, message):
    with pytest.raises(UserError, match=message):
        preset(*arguments)
