"""Part 2: what m-sharpness, several seeds at once and AutoAugment on the device cost."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import samon_jax as samon
from benchmarks import steps, timing
from benchmarks.accelerator import device
from benchmarks.accelerator.budget import Budget
from benchmarks.accelerator.report import Report, Result, number, table
from benchmarks.accelerator.speed import ROUND_SECONDS, ROUNDS, TIMING_SHARE, Setting
from samon_jax.data import augment, autoaugment

PyTree = Any

SEEDS = 3
_MEAN, _STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
_Call = Callable[[int], float]
_Maker = Callable[[], _Call]


def m_sharpness(setting: Setting, report: Report, budget: Budget) -> None:
    """SAM-all and SAM-ON with one ε for the batch and with one for each fourth and 16th of it."""
    _, params, images, labels, loss_fn = _problem(setting)
    rows = {"SGD": steps.plain(loss_fn, params, 1e-3)}
    for name, mask in (("SAM-ON", samon.only_norm), ("SAM-all", samon.all_params)):
        for parts in (1, 4, 16):
            m = setting.batch // parts
            if m > 0 and (parts == 1 or m > 1):
                label = f"{name}, m = {m}"
                rows[label] = steps.sharp(
                    label, loss_fn, params, mask, 1e-3, m=m if parts > 1 else None
                )
    makers: dict[str, _Maker] = {
        name: functools.partial(timing.Program, step, params, images, labels, donate=True)
        for name, step in rows.items()
    }
    _report("m-sharpness by vmap", setting, makers, "SGD", report, budget)


def seeds_at_once(setting: Setting, report: Report, budget: Budget) -> None:
    """A step of three seeds in one program against three steps of one seed."""
    model, params, images, labels, loss_fn = _problem(setting)

    def alone(step: steps.Step) -> _Call:
        one = timing.Program(step, params, images, labels, donate=True)
        return lambda length: SEEDS * one(length)

    def together(step: steps.Step) -> _Call:
        keys = jax.random.split(jax.random.key(3), SEEDS)
        several = jax.jit(jax.vmap(lambda key: model.init(key, images[:2], train=False)))(keys)
        state = jax.tree.map(lambda x: jnp.stack([x] * SEEDS), step.state)
        stacked = (jnp.stack([x] * SEEDS) for x in (images, labels))
        vectorized = steps.Step(step.name, jax.vmap(step.step), state)
        return timing.Program(vectorized, several["params"], *stacked, donate=True)

    makers: dict[str, _Maker] = {}
    for step in (
        steps.plain(loss_fn, params, 1e-3),
        steps.sharp("SAM-ON", loss_fn, params, samon.only_norm, 1e-3),
    ):
        name = f"{step.name}, {SEEDS} seeds"
        makers[f"{name}, one after the other"] = functools.partial(alone, step)
        makers[f"{name} at once"] = functools.partial(together, step)
    base = f"SGD, {SEEDS} seeds, one after the other"
    _report("Seeds at once", setting, makers, base, report, budget)


def auto_augment(setting: Setting, report: Report, budget: Budget) -> None:
    """Crop, flip and normalization of a batch on the device, with and without AutoAugment."""
    _, params, images, labels, loss_fn = _problem(setting)
    raw = jax.random.randint(jax.random.key(5), images.shape, 0, 256).astype(jnp.uint8)

    def prepared(strong: bool) -> steps.Step:
        def step(count: jax.Array, state: PyTree, raw: jax.Array, _: PyTree) -> Any:
            keys = jax.random.split(jax.random.fold_in(jax.random.key(0), count), 3)
            x = augment.random_flip(keys[1], augment.random_crop(keys[0], raw, 4))
            x = autoaugment.auto_augment(keys[2], x) if strong else x
            return count + 1, augment.normalize(x, _MEAN, _STD, jnp.dtype(setting.dtype))

        return steps.Step("", step, jnp.zeros(raw.shape, setting.dtype))

    start = jnp.zeros((), jnp.int32)
    plain, make = steps.plain(loss_fn, params, 1e-3), functools.partial
    makers: dict[str, _Maker] = {
        "a step of SGD": make(timing.Program, plain, params, images, labels, donate=True),
        "crop, flip, normalization": make(timing.Program, prepared(False), start, raw, labels),
        "the same with AutoAugment": make(timing.Program, prepared(True), start, raw, labels),
    }
    _report("AutoAugment on the device", setting, makers, "a step of SGD", report, budget)


def _problem(setting: Setting) -> tuple[Any, PyTree, jax.Array, jax.Array, Callable[..., Any]]:
    shape = steps.image_shape(setting.model)
    model, variables = steps.create(setting.model, 100, setting.dtype, shape)
    images, labels = steps.random_examples(shape, setting.batch, 100)
    return model, variables["params"], images, labels, steps.loss_of(model, variables)


def _report(
    title: str,
    setting: Setting,
    makers: dict[str, _Maker],
    base: str,
    report: Report,
    budget: Budget,
) -> None:
    """Times the rows that can be made; why another one cannot be is said, and the next one runs."""
    calls, lengths = dict[str, _Call](), dict[str, int]()
    for name, make in makers.items():
        if budget.over and calls:
            report.say(f"{title}: the time is over; left out: {name}")
            continue
        try:
            call = make()
            call(2)
            lengths[name] = max(1, min(50, round(ROUND_SECONDS / max(call(2), 1e-6))))
            calls[name] = call
        except Exception as error:
            if name == base:
                raise  # there is nothing to compare with
            report.say(f"{title}, {name}: {device.reason(error)}")
    runs: list[_Call] = [
        lambda n, call=call, length=lengths[name]: call(n * length)  # type: ignore[misc]
        for name, call in calls.items()
    ]
    times = dict(
        zip(calls, timing.take_turns(runs, ROUNDS, stop=budget.share(TIMING_SHARE)), strict=True)
    )
    report.add(
        "extra",
        f"{title} {setting.key}",
        title=title,
        model=setting.model,
        dtype=setting.dtype,
        batch=setting.batch,
        base=base,
        rows=[
            {
                "name": name,
                "time": timing.ratio(seconds, times[base]),
                "ms": 1e3 * float(np.median(seconds)),
            }
            for name, seconds in times.items()
        ],
    )


def show(results: list[Result]) -> str:
    """A table for each question."""
    return "\n\n".join(
        f"## {r['title']}: {r['model']}, {r['dtype']}, batch {r['batch']}\n\n"
        + table(
            ["", f"time / {r['base']}", "ms"],
            [
                [row["name"], number(row["time"], ".2f"), number(row["ms"], ".2f")]
                for row in r["rows"]
            ],
        )
        for r in results
    )
