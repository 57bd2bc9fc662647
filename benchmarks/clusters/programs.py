"""What compiled programs of four devices hold and move, by XLA's own account."""

import re
from typing import Any

import jax
import numpy as np

from benchmarks.clusters.small import config
from samon_jax.training import run

BYTES = {"f32": 4, "s32": 4, "u32": 4, "u8": 1, "pred": 1, "bf16": 2, "f64": 8, "s64": 8, "u64": 8}
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BATCH = 16
# Name -> fields of the section `devices`, and sam.m (0: a device's or a group's share).
LAYOUTS: dict[str, tuple[dict[str, Any], int]] = {
    "replicated, an ε per device": ({"parallel": "jit"}, 0),
    "fsdp=4, one ε": ({"parallel": "jit", "fsdp": 4}, 0),
    "replicated, one ε": ({"parallel": "jit"}, BATCH),
    "fsdp=2, an ε per group": ({"parallel": "jit", "fsdp": 2}, 0),
}


def set_up(model: str, layout: str, devices: int = 4, batch: int = BATCH, **sam: Any) -> run.Run:
    """A run on noise of CIFAR's shape."""
    fields, m = LAYOUTS[layout]
    chosen = config(3, variant="sam", m=m, **sam)
    chosen.model, chosen.data.name, chosen.batch_size = model, "random10", batch
    chosen.data.crop_padding, chosen.data.train_examples = 0, batch
    chosen.devices.update(fields)
    chosen.num_devices = devices
    chosen.optimizer.name = "adamw" if model.startswith("vit") else "sgd"
    return run.set_up(chosen)


def compiled(made: run.Run) -> Any:
    """The step as XLA compiles it, without computing anything."""
    layout = made.devices._layout
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout(x)), made.template()
    )
    call = next(made.calls(0, 0))
    program = made.programs.step(call.kind)
    return program.lower((state, made.resident), call.raw).compile()


def moved(text: str) -> dict[str, tuple[int, float]]:
    """Bytes of collectives in a compiled program, by kind.

    Args:
      text: HLO, after partitioning.

    Returns:
      For each kind: operand bytes on one device, and bytes that each device sends if the
      collective goes around a ring: (n - 1) / n of the whole array for a gather or a
      reduce-scatter over n devices, and twice that for an all-reduce.

    Example:
      >>> line = "x = f32[8,4]{1,0} all-gather(f32[2,4]{1,0} y), replica_groups={{0,1,2,3}}"
      >>> moved(line)
      {'all-gather': (32, 96.0)}
    """
    found: dict[str, tuple[int, float]] = {}
    shapes = _shapes_by_name(text)
    pattern = rf"= (\(?[a-z].*?) ({'|'.join(KINDS)})(-start)?\((.*?)\)(.*)"
    for result, kind, started, operands, rest in re.findall(pattern, text):
        inline = _bytes(operands)
        given = inline or sum(shapes.get(name, 0) for name in re.findall(r"%[\w.\-]+", operands))
        whole = _bytes(result) - (given if started and kind == "all-gather" else 0)
        devices = _group_size(rest)
        whole = given if kind in ("all-reduce", "reduce-scatter") else whole
        passed = (2 if kind == "all-reduce" else 1) * whole * (devices - 1) / devices
        before = found.get(kind, (0, 0.0))
        found[kind] = before[0] + given, before[1] + passed
    return found


def _shapes_by_name(text: str) -> dict[str, int]:
    pattern = r"(%[\w.\-]+) = (\(.*?\)|\S+) "
    return {name: _bytes(shape) for name, shape in re.findall(pattern, text)}


def _bytes(shapes: str) -> int:
    return sum(
        BYTES.get(dtype, 4) * int(np.prod([int(n) for n in dimensions.split(",") if n] or [1]))
        for dtype, dimensions in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    )


def _group_size(rest: str) -> int:
    """Devices of a collective: replica_groups={{0,1},{2,3}} or replica_groups=[2,2]<=[4]."""
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return match[1].count(",") + 1
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(match[1])
    return 4


def memory(model: str) -> None:
    """Prints bytes of each device's state, and of what collectives move in a step."""
    jax.config.update("jax_disable_most_optimizations", True)  # of XLA's loops, not the partitioner
    print("| layout | mask | state, MiB a device | collectives, MiB of operands | sent, MiB |")
    print("|---|---|---|---|---|")
    for layout in LAYOUTS:
        for mask in ("only_norm", "all"):
            made = set_up(model, layout, mask=mask)
            program = compiled(made)
            images = sum(x.nbytes for x in jax.tree.leaves(made.source.resident))
            state = (program.memory_analysis().argument_size_in_bytes - images) / 2**20
            by_kind = moved(program.as_text())
            parts = ", ".join(f"{k} {v[0] / 2**20:.2f}" for k, v in sorted(by_kind.items()))
            sent = sum(v[1] for v in by_kind.values()) / 2**20
            print(f"| {layout} | {mask} | {state:.1f} | {parts} | {sent:.1f} |", flush=True)


def operations() -> None:
    """Prints operations of a step, in those of the plain one, with more and more devices."""
    print("| model | layout | operations |\n|---|---|---|")
    for model in ("wrn-16-2", "vit-s"):
        for layout, devices in (
            ("replicated, an ε per device", 1),
            ("replicated, an ε per device", 4),
            ("fsdp=4, one ε", 4),
        ):
            # As many examples share an ε everywhere: the work of a device for parameters alone,
            # the optimizer's for instance, has the same part in all counts.
            batch = 64 * (4 if layout.startswith("replicated") and devices == 4 else 1)
            made = set_up(model, layout, devices, batch)
            ratio = (made.flops_per_step() or 0) / (made.flops_per_step(perturb=False) or 1)
            print(f"| {model} | {layout}, {devices} devices | {ratio:.4f} |", flush=True)
