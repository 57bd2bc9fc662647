"""What is measured, most important first."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.accelerator import cifar, cifar_runs, extras, profile, speed, toy
from benchmarks.accelerator.budget import Budget
from benchmarks.accelerator.report import Report
from benchmarks.accelerator.speed import Setting

PARTS = ("speed", "extras", "cifar")
_MODELS = ("wrn-28-10", "imagenet-resnet-50", "vit-s-16")


class Job(NamedTuple):
    """One result.

    Attributes:
      part: of `PARTS`.
      key: of its result.
      run: measures and reports it.
    """

    part: str
    key: str
    run: Callable[[Report, Budget], None]


def jobs(tiny: bool, data: Path | None = None) -> list[Job]:
    """All results, most important first.

    Args:
      tiny: the same with a network that a CPU compiles and trains in seconds.
      data: of the part "cifar", which is left out without them.
    """
    if tiny:
        first, settings = Setting(toy.NAME, "float32", 8), []
        small = first
    else:
        first = Setting("wrn-28-10", "bfloat16", 128)
        settings = [
            Setting(model, dtype, batch)
            for dtype in ("bfloat16", "float32")
            for batch in (128, 512)
            for model in _MODELS
        ][1:]
        small = Setting("resnet-56", "bfloat16", 128)
    # The first settings of all networks, then part 2, then the rest.
    trained = cifar_runs.TINY if tiny else cifar_runs.Plan()
    part_3 = [] if data is None else [_cifar(data, trained)]
    return [
        _speed(first),
        Job("speed", f"profile {first.key}", lambda report, _: profile.run(first, report)),
        *map(_speed, settings[:2]),
        _extra("m-sharpness by vmap", extras.m_sharpness, first),
        _extra("Seeds at once", extras.seeds_at_once, small),
        _extra("AutoAugment on the device", extras.auto_augment, first),
        *map(_speed, settings[2:]),
        *part_3,
    ]


def _cifar(data: Path, trained: cifar_runs.Plan) -> Job:
    # It goes on by itself: no result of an earlier call stands for it.
    return Job(
        "cifar",
        f"cifar100 {trained.model}",
        lambda report, budget: cifar.run(data, trained, report, budget),
    )


def _speed(setting: Setting) -> Job:
    return Job("speed", setting.key, lambda report, budget: speed.run(setting, report, budget))


def _extra(title: str, measure: Callable[[Setting, Report, Budget], None], setting: Setting) -> Job:
    return Job(
        "extras",
        f"{title} {setting.key}",
        lambda report, budget: measure(setting, report, budget),
    )
