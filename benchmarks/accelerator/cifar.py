"""Part 3: ResNet-56 on CIFAR-100 with SGD, SAM-all and SAM-ON, seeds at once, over several calls.

What finished runs leave in <out>/runs are work directories like any other, which

    python main.py --mode=reproduce --table=1 --columns=RN-56 --workdir=<out>/runs

takes for the runs of Table 1 that they are, where everything that the project needs is installed.
"""

import statistics
from pathlib import Path

from benchmarks.accelerator import cifar_data
from benchmarks.accelerator.budget import Budget
from benchmarks.accelerator.cifar_runs import METHODS, Plan, Runs
from benchmarks.accelerator.report import Report, Result, number, table
from samon_jax.errors import UserError

# Epochs that a method is trained before it is another's turn.
TURN = 5
# An epoch is begun if so many times the last one's seconds are left.
MARGIN = 1.2


def run(data: Path, plan: Plan, report: Report, budget: Budget) -> None:
    """Trains as many epochs as fit, in turns, and reports after each turn.

    Args:
      data: see `cifar_data.read`.
      plan: what is trained.
      report: gets one result a method; its folder keeps what another call goes on from.
      budget: of the call.

    Raises:
      UserError: the data are missing or damaged, or the folder holds other runs.
    """
    dataset = cifar_data.read(data)
    everything = []
    for name in METHODS:
        runs = Runs(name, plan, dataset)
        saved = report.out / f"cifar-{name.lower()}.npz"
        if saved.exists():
            runs.load(saved)
            report.say(f"{name}: going on after epoch {runs.epochs_done} of {plan.epochs}")
        everything.append((runs, saved))
    resident = test = None
    last: dict[str, float] = {}  # seconds of an epoch; the first one compiles, too
    failed: set[str] = set()
    while waiting := [
        (runs, saved) for runs, saved in everything if not runs.done and runs.name not in failed
    ]:
        runs, saved = min(waiting, key=lambda pair: pair[0].epochs_done)
        if budget.left < MARGIN * last.get(runs.name, 0.0) or budget.over:
            report.say(f"cifar: the minutes end before another epoch of {runs.name} would")
            return
        if resident is None:
            resident = runs.devices.replicate(runs.source.resident)
            test = runs.devices.replicate(runs.source.evaluation("test").resident)
        runs.start()
        try:
            for _ in range(min(TURN, plan.epochs - runs.epochs_done)):
                last[runs.name] = runs.train_epoch(resident, test)
                if budget.left < MARGIN * last[runs.name]:
                    break
        except UserError as error:  # it diverged; the others go on
            report.say(f"cifar: {error}")
            failed.add(runs.name)
            continue
        runs.save(saved)
        if runs.done:
            runs.export(report.out / "runs")
        _report(runs, report)


def _report(runs: Runs, report: Report) -> None:
    plan = runs.plan
    names = ("train_loss", "train_accuracy", "test_accuracy")
    curve = [
        {"epoch": records[0]["epoch"], **{n: [r[n] for r in records] for n in names}}
        for records in zip(*runs.records, strict=True)
    ]
    speed = statistics.median(r["examples_per_second"] for r in runs.records[0])
    report.add(
        "cifar",
        f"cifar100 {plan.model} {runs.name}",
        name=runs.name,
        title=f"CIFAR-100, {plan.model}, {plan.seeds} seeds at once",
        rho=runs.rho,
        epochs=plan.epochs,
        images_per_second=plan.seeds * speed,
        curve=curve,
    )


def show(results: list[Result]) -> str:
    """A table of the methods: how far they are, and what they reach."""
    rows = []
    for r in results:
        accuracies = [100 * a for a in r["curve"][-1]["test_accuracy"]]
        spread = statistics.stdev(accuracies) if len(accuracies) > 1 else None
        fits = statistics.mean(r["curve"][-1]["train_accuracy"])
        rows.append(
            [
                r["name"],
                f"{r['rho']:g}" if r["rho"] else "–",
                f"{r['curve'][-1]['epoch']} of {r['epochs']}",
                f"{statistics.mean(accuracies):.2f} ± {number(spread, '.2f')}",
                f"{100 * fits:.2f}",
                f"{r['images_per_second']:,.0f}",
            ]
        )
    head = ["method", "ρ", "epochs", "test accuracy, %", "training accuracy, %", "images / s"]
    return f"## {results[-1]['title']}\n\n{table(head, rows)}"
