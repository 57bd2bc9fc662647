"""Runs a `value_and_grad` on several devices, as `pmap` or as `shard_map`."""

import jax
from jax.sharding import PartitionSpec as P


def over_devices(fn, how, params, state, x, y, *, devices, axis_name):
    """Divides the examples among the devices.

    Args:
      fn: to (value, grads, state); averages over `axis_name`.
      how: "pmap", "shard_map", or anything else for `shard_map` without checks of what varies.
      params: the same on every device, like `state`.
      state: of the ascent.
      x: examples [n, ...], like `y`.
      y: labels.
      devices: how many; they divide n.
      axis_name: of the devices.

    Returns:
      The value of every device [devices], and the gradient and the state, which all share.
    """
    if how == "pmap":
        run = jax.pmap(fn, axis_name, in_axes=(None, None, 0, 0), out_axes=(0, None, None))
        x, y = (a.reshape(devices, -1, *a.shape[1:]) for a in (x, y))
        return run(params, state, x, y)
    mesh = jax.make_mesh((devices,), (axis_name,), axis_types=(jax.sharding.AxisType.Auto,))

    def local(*args):
        value, grads, state = fn(*args)
        return value[None], grads, state

    split = P(axis_name)
    run = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P(), split, split),
        out_specs=(split, P(), P()),
        check_vma=how == "shard_map",
    )
    return jax.jit(run)(params, state, x, y)
