"""What one training step costs: SGD, SAM-all, SAM-ON and optax.contrib.sam side by side.

    python -m benchmarks.cost --model=wrn-16-2 --batch=64

prints one Markdown table of ratios to SGD in the same process: floating-point operations and peak
memory as XLA counts them (exact), and wall-clock time (the median over rounds in which the
methods take turns, so that all of them see the same state of the machine).
"""

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import samon_jax as samon
from samon_jax import models

PyTree = Any
GradFn = Callable[[PyTree], tuple[PyTree, PyTree]]


class Method(NamedTuple):
    """One row: a name and `step(params, state, images, labels) -> (params, state)`."""

    name: str
    step: Callable[..., tuple[PyTree, PyTree]]
    state: PyTree


class Cost(NamedTuple):
    """Per step: floating-point operations, peak bytes and seconds (one entry per round)."""

    flops: float
    peak_bytes: int
    seconds: list[float]


def methods(model: Any, variables: PyTree) -> list[Method]:
    """Every method as one step of SGD with momentum 0.9 and learning rate 0.1."""
    params, stats = variables["params"], variables["batch_stats"]
    sgd = optax.sgd(0.1, momentum=0.9)

    def loss_fn(params: PyTree, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, PyTree]:
        logits, updates = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, updates["batch_stats"]

    def plain(
        params: PyTree, state: PyTree, images: jax.Array, labels: jax.Array
    ) -> tuple[PyTree, PyTree]:
        grads, _ = jax.grad(loss_fn, has_aux=True)(params, images, labels)
        updates, state = sgd.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def sharp(name: str, mask: Any) -> Method:
        ascent = samon.variant("sam", 0.5, mask=mask)
        gradient = samon.value_and_grad(loss_fn, ascent, has_aux=True)

        def step(
            params: PyTree, state: PyTree, images: jax.Array, labels: jax.Array
        ) -> tuple[PyTree, PyTree]:
            optimizer_state, ascent_state = state
            _, grads, ascent_state = gradient(params, ascent_state, images, labels)
            updates, optimizer_state = sgd.update(grads, optimizer_state, params)
            return optax.apply_updates(params, updates), (optimizer_state, ascent_state)

        return Method(name, step, (sgd.init(params), ascent.init(params)))

    def peer(name: str, adversary: optax.GradientTransformation) -> Method:
        tx = optax.contrib.sam(sgd, adversary, opaque_mode=True)

        def step(
            params: PyTree, state: PyTree, images: jax.Array, labels: jax.Array
        ) -> tuple[PyTree, PyTree]:
            def grad_fn(params: PyTree, _: int = 0) -> PyTree:
                return jax.grad(loss_fn, has_aux=True)(params, images, labels)[0]

            updates, state = tx.update(grad_fn(params), state, params, grad_fn=grad_fn)
            return optax.apply_updates(params, updates), state

        return Method(name, step, tx.init(params))

    return [
        Method("SGD", plain, sgd.init(params)),
        peer("optax.contrib.sam", optax.chain(optax.contrib.normalize(), optax.sgd(0.05))),
        sharp("SAM-all", samon.all_params),
        sharp("SAM-ON", samon.only_norm),
        sharp("SAM-ON, last two stages", samon.only_norm_in("stage[23]|norm_out")),
        sharp("SAM-ON, last stage", samon.only_norm_in("stage3|norm_out")),
    ]


def measure(
    rows: list[Method], params: PyTree, images: jax.Array, labels: jax.Array, rounds: int
) -> list[Cost]:
    """Compiles every method, then times them in turn."""
    compiled, costs = [], []
    for row in rows:
        program = jax.jit(row.step).lower(params, row.state, images, labels).compile()
        memory: Any = program.memory_analysis()
        analysis: Any = program.cost_analysis()
        peak = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
        compiled.append(program)
        costs.append(Cost(analysis["flops"], peak, []))
        jax.block_until_ready(program(params, row.state, images, labels))  # warm up
    for _ in range(rounds):
        for row, program, cost in zip(rows, compiled, costs, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program(params, row.state, images, labels))
            cost.seconds.append(time.perf_counter() - start)
    return costs


def table(rows: list[Method], costs: list[Cost]) -> str:
    """The costs as a Markdown table, every column divided by its first row, SGD."""
    base = costs[0]
    lines = [
        "| method | operations | time | peak memory | ms per step |",
        "|---|---:|---:|---:|---:|",
    ]
    for row, cost in zip(rows, costs, strict=True):
        seconds = np.array(cost.seconds)
        ratio = np.median(seconds / np.array(base.seconds))
        lines.append(
            f"| {row.name} | {cost.flops / base.flops:.3f} | {ratio:.2f} "
            f"| {cost.peak_bytes / base.peak_bytes:.3f} | {1e3 * np.median(seconds):.1f} |"
        )
    return "\n".join(lines)


def plot(path: str, rows: list[Method], costs: list[Cost], title: str) -> None:
    """Draws operations and time of every method, SGD = 1, as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    base = costs[0]
    operations = [cost.flops / base.flops for cost in costs]
    seconds = [np.median(np.array(c.seconds) / np.array(base.seconds)) for c in costs]
    y = np.arange(len(rows))
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for offset, values, label, colour in (
        (-0.2, operations, "operations", "tab:blue"),
        (0.2, seconds, "time", "tab:orange"),
    ):
        bars = axes.barh(y + offset, values, 0.38, label=label, color=colour)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(y, [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(*operations, *seconds))
    axes.set_xlabel("cost of one training step (SGD = 1)")
    axes.set_title(title, fontsize=9)
    axes.legend(loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Parses the arguments, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="wrn-16-2", help="a name of samon_jax.models")
    parser.add_argument("--batch", type=int, default=64, help="examples per step")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each method")
    parser.add_argument("--plot", help="also draw the table as a PNG at this path")
    args = parser.parse_args()

    model = models.create(args.model, args.classes, dtype=jnp.dtype(args.dtype))
    shape = (args.batch, 8, 8, 1) if args.model.startswith("digits") else (args.batch, 32, 32, 3)
    images = jax.random.normal(jax.random.key(0), shape)
    labels = jax.random.randint(jax.random.key(1), (args.batch,), 0, args.classes)
    variables = jax.jit(lambda key: model.init(key, images[:2], train=False))(jax.random.key(2))

    rows = methods(model, variables)
    costs = measure(rows, variables["params"], images, labels, args.rounds)
    title = (
        f"{args.model}, batch {args.batch}, {args.dtype}, {jax.devices()[0].device_kind}, "
        f"jax {jax.__version__}, Python {platform.python_version()}"
    )
    print(f"{title}\n\n{table(rows, costs)}")
    if args.plot:
        plot(args.plot, rows, costs, title)


if __name__ == "__main__":
    main()
