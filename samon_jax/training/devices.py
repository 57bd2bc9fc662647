"""Where a run computes: the devices that share a batch, of one process or of many.

Task, Source and Method do not know how many there are, whether the axis over them is `jax.pmap`'s
or that of `jax.shard_map` under `jax.jit`, or whether parameters are divided among them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from samon_jax._fields import Field, integer, one_of
from samon_jax.data.source import Share
from samon_jax.errors import UserError
from samon_jax.training.paced import Paced

PyTree = Any

FIELDS: dict[str, Field] = {
    "num_devices": Field(0, integer(0), "over all processes; 0 = all there are"),
    "steps_per_dispatch": Field(
        0, integer(0), "steps per call of the program; 0 = 1 on CPU, else <= 50"
    ),
}
# Section `devices` of a config.
LAYOUT_FIELDS: dict[str, Field] = {
    "parallel": Field(
        "pmap", one_of("pmap", "jit"), "jax.pmap, or jax.shard_map under jax.jit: the same step"
    ),
    "fsdp": Field(
        1,
        integer(1),
        "each group of so many devices holds the large leaves of parameters and optimizer state "
        "once, and shares an ε; > 1 needs parallel=jit",
    ),
}
# Arrays with fewer dimensions or elements are the same on every device: norm parameters, biases.
_DIVIDED_DIMENSIONS = 2
_DIVIDED_ELEMENTS = 2**12


@dataclasses.dataclass(frozen=True)
class Devices:
    """Devices that share each batch, and the programs that run on all of them.

    Attributes:
      all: the devices of all processes, in the order of their shares.
      axis_name: by which a program names the axis over the groups.
      parallel: "pmap" or "jit".
      fsdp: devices of a group, among which large parameters are divided; 1 divides nothing. The
        step sees a group as one device.
    """

    all: tuple[jax.Device, ...]
    axis_name: str = "batch"
    parallel: str = "pmap"
    fsdp: int = 1

    @property
    def count(self) -> int:
        """How many there are, over all processes."""
        return len(self.all)

    @property
    def groups(self) -> int:
        """Parts of a batch with an ε of their own: the devices, unless these share parameters."""
        return self.count // self.fsdp

    @property
    def share(self) -> Share:
        """Which part of each batch this process feeds."""
        processes = sorted({device.process_index for device in self.all})
        return Share(processes.index(jax.process_index()), len(processes))

    @property
    def is_writer(self) -> bool:
        """Whether this process writes what only one may write."""
        return jax.process_index() == 0

    @property
    def steps_per_call(self) -> int:
        """Steps in one call of a program, where the config does not say.

        One on CPU, where XLA runs convolutions inside loops several times slower.
        """
        return 1 if self.all[0].platform == "cpu" else 50

    def compile(self, step: Callable[..., PyTree], *, rows_axis: int = 1) -> Any:
        """A program of all devices.

        Args:
          step: `step(same, own) -> same`, for one device: the first argument and the result are the
            same on every device, `own` is this device's share.
          rows_axis: where `own` has its rows as `shard` divides them, the axis of the devices
            included.

        Returns:
          A function of a pytree from `replicate` or `place` and one from `shard`, whose result is
          laid out likewise; with a method `lower` that takes shapes.
        """
        program: Any
        if self.parallel == "jit":
            program = _Jitted(self, step, rows_axis)
        else:
            program = jax.pmap(
                step,
                axis_name=self.axis_name,
                in_axes=(None, 0),
                out_axes=None,
                devices=self.all,
            )
            if self.share.processes > 1:
                program = _Pmapped(self, step, program)
        simulated = self.all[0].platform == "cpu" and len(self._local) > 1
        return Paced(program) if simulated else program

    def shard(self, raw: PyTree) -> PyTree:
        """Divides this process's host arrays [rows, ...]: [devices, rows / devices, ...].

        The devices are those of this process, or its groups.
        """
        return jax.tree.map(lambda x: x.reshape(self._blocks, -1, *x.shape[1:]), raw)

    def shard_steps(self, raw: PyTree) -> PyTree:
        """Divides [steps, rows, ...] likewise: [devices, steps, rows / devices, ...]."""

        def divide(x: np.ndarray) -> np.ndarray:
            x = x.reshape(len(x), self._blocks, -1, *x.shape[2:])
            return np.ascontiguousarray(x.swapaxes(0, 1))

        return jax.tree.map(divide, raw)

    def replicate(self, tree: PyTree) -> PyTree:
        """Copies a pytree to every device once, laid out as `compile` wants it.

        Arrays laid out otherwise would be copied again at every call.

        Args:
          tree: of arrays, the same in every process.
        """
        layout = self.replicated
        if layout.is_fully_addressable:
            return jax.device_put(tree, layout)
        # `device_put` would compare the values of all processes, over the network.
        return jax.tree.map(lambda x: _everywhere(x, layout), tree)

    def place(self, state: PyTree) -> PyTree:
        """Lays a state out: as `replicate` does, but large leaves divided within a group."""
        # To read what XLA had no memory for takes forever on CPU; to wait for it is an error.
        jax.block_until_ready(state)
        if self.fsdp == 1:
            return self.replicate(state)
        return jax.tree.map(lambda x: _everywhere(x, self._layout(x)), state)

    def make(self, init: Callable[..., PyTree], *arguments: Any) -> PyTree:
        """`place(init(*arguments))`; what is divided is never whole on a device."""
        if self.fsdp == 1:
            return self.place(init(*arguments))
        layouts = jax.tree.map(self._layout, jax.eval_shape(init, *arguments))
        return jax.block_until_ready(jax.jit(init, out_shardings=layouts)(*arguments))

    def to_host(self, tree: PyTree) -> PyTree:
        """NumPy arrays of a replicated or placed pytree; every process has to call it."""
        jax.block_until_ready(tree)
        if self.fsdp > 1 and self.share.processes > 1:
            whole = _to(self.replicated)
            return jax.tree.map(lambda x: jax.device_get(whole(x)), tree)
        return jax.device_get(tree)

    def gather(self, params: PyTree) -> PyTree:
        """Inside a step: brings divided parameters together for use."""
        if self.fsdp == 1:
            return params
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, P()), params)

    def divide(self, tree: PyTree) -> PyTree:
        """Inside a step: divides large leaves again, gradients for example."""
        if self.fsdp == 1:
            return tree
        return jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x, self._layout(x).spec), tree
        )

    @property
    def replicated(self) -> NamedSharding:
        """The layout that `replicate` gives, for `jax.jit(out_shardings=...)`.

        Under `jax.pmap`, the arrays of a process know of its own devices only.
        """
        own = self.parallel == "pmap" and self.share.processes > 1
        devices = self._local if own else self.all
        if self.parallel == "jit":
            return NamedSharding(self.mesh, P())
        return NamedSharding(Mesh(np.asarray(devices), (self.axis_name,)), P())

    @property
    def mesh(self) -> Mesh:
        """All devices, [groups, fsdp] or, where nothing is divided, [groups]."""
        devices = np.asarray(self.all)
        if self.fsdp == 1:
            return Mesh(devices, (self.axis_name,))
        return Mesh(devices.reshape(self.groups, self.fsdp), (self.axis_name, "fsdp"))

    @property
    def _local(self) -> list[jax.Device]:
        return [d for d in self.all if d.process_index == jax.process_index()]

    @property
    def _blocks(self) -> int:
        """Groups, whole or in part, of this process."""
        return max(len(self._local) // self.fsdp, 1)

    def _layout(self, x: Any) -> NamedSharding:
        """Where a leaf of the state lies, by its shape: along its longest axis that can be divided.

        Arrays of one dimension, which all parameters of norm layers are, are on every device.
        """
        shape = np.shape(x)
        if self.fsdp == 1:
            return NamedSharding(self.mesh, P())
        fits = [n if n % self.fsdp == 0 else 0 for n in shape]
        if len(shape) < _DIVIDED_DIMENSIONS or np.prod(shape) < _DIVIDED_ELEMENTS or not any(fits):
            return NamedSharding(self.mesh, P())
        axis = int(np.argmax(fits))
        return NamedSharding(self.mesh, P(*[None] * axis, "fsdp"))


class _Jitted:
    """A program under `jax.jit`, whose step is mapped over the groups by `jax.shard_map`."""

    def __init__(self, devices: Devices, step: Callable[..., PyTree], rows_axis: int) -> None:
        axis, mesh = devices.axis_name, devices.mesh

        def of_a_group(same: PyTree, own: PyTree) -> PyTree:
            return step(same, jax.tree.map(lambda x: x.squeeze(0), own))

        # Without checks of what varies, as in jax.pmap: both then compute the same to the bit.
        mapped = jax.shard_map(
            of_a_group,
            mesh=mesh,
            in_specs=(P(), P(axis)),
            out_specs=P(),
            axis_names={axis},
            check_vma=False,
        )

        def program(same: PyTree, own: PyTree) -> PyTree:
            result = mapped(same, own)
            if devices.fsdp == 1:
                return result
            return jax.tree.map(
                lambda x: jax.lax.with_sharding_constraint(x, devices._layout(x)), result
            )

        self._devices, self._rows_axis, self._program = devices, rows_axis, jax.jit(program)
        between = [None] * (rows_axis - 1)
        self._spec = P(axis) if devices.fsdp == 1 else P(axis, *between, "fsdp")

    def __call__(self, same: PyTree, own: PyTree) -> PyTree:
        layout = NamedSharding(self._devices.mesh, self._spec)
        put = functools.partial(jax.make_array_from_process_local_data, layout)
        return self._program(same, jax.tree.map(lambda x: put(x, self._global_shape(x)), own))

    def lower(self, same: PyTree, own: PyTree) -> Any:
        """The program as XLA gets it, for arguments or their shapes."""
        layout = NamedSharding(self._devices.mesh, self._spec)

        def shape(x: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(self._global_shape(x), x.dtype, sharding=layout)

        return self._program.lower(same, jax.tree.map(shape, own))

    def _global_shape(self, x: Any) -> tuple[int, ...]:
        shape, devices = list(np.shape(x)), self._devices
        processes_of_group = max(devices.fsdp // max(len(devices._local), 1), 1)
        shape[0] = devices.groups
        if devices.fsdp > 1:
            shape[self._rows_axis] *= processes_of_group
        return tuple(shape)


class _Pmapped:
    """A program of `jax.pmap` over several processes, whose own `lower` takes no shapes."""

    def __init__(self, devices: Devices, step: Callable[..., PyTree], program: Any) -> None:
        self._program = program
        self._lowers = _Jitted(dataclasses.replace(devices, parallel="jit"), step, 1)

    def __call__(self, same: PyTree, own: PyTree) -> PyTree:
        return self._program(same, own)

    def lower(self, same: PyTree, own: PyTree) -> Any:
        """As of the other kind of program."""
        return self._lowers.lower(same, own)


@functools.lru_cache(maxsize=16)
def _to(layout: NamedSharding) -> Callable[[PyTree], PyTree]:
    """The program that lays arrays out anew; every process has to call it."""
    return jax.jit(lambda x: x, out_shardings=layout)


def _everywhere(x: Any, layout: NamedSharding) -> jax.Array:
    """An array of which every process has the whole, laid out over all processes."""
    if isinstance(x, jax.Array) and x.sharding == layout:
        return x
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, layout, lambda index: whole[index])


def take(num_devices: int, parallel: str = "pmap", fsdp: int = 1) -> Devices:
    """The first devices of each process.

    Args:
      num_devices: how many over all processes; 0 = all.
      parallel: "pmap" or "jit".
      fsdp: devices among which large parameters are divided.

    Raises:
      UserError: there are not so many, or they do not form such groups.
    """
    LAYOUT_FIELDS["parallel"].check("devices.parallel", parallel)
    LAYOUT_FIELDS["fsdp"].check("devices.fsdp", fsdp)
    available, processes = jax.local_device_count(), jax.process_count()
    if not 0 <= num_devices <= available * processes or num_devices % processes:
        allowed = f"0 (all) to {available * processes}"
        if processes > 1:
            allowed += f", a multiple of the {processes} processes"
        raise UserError(f"num_devices={num_devices} is not allowed; it must be {allowed}")
    each = num_devices // processes or available
    found = tuple(
        device
        for process in range(processes)
        for device in sorted(jax.local_devices(process), key=lambda d: d.id)[:each]
    )
    if fsdp > 1 and parallel != "jit":
        raise UserError(f"devices.fsdp={fsdp} is not allowed; it needs devices.parallel='jit'")
    if len(found) % fsdp or (each % fsdp and fsdp % each):
        raise UserError(
            f"devices.fsdp={fsdp} is not allowed; it must divide the {len(found)} devices, and "
            f"divide the {each} of a process or be a multiple of them"
        )
    return Devices(found, parallel=parallel, fsdp=fsdp)
