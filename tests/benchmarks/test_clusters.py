"""Bytes that collectives move, as counted in compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from benchmarks.clusters import programs


@pytest.mark.parametrize(
    ("collective", "out", "kind", "operands", "sent"),
    [
        # 4 devices; each has 8 x 6 floats, 192 bytes, and sends what goes around a ring.
        (lambda x: jax.lax.psum(x, "a"), P(), "all-reduce", 192, 2 * 192 * 3 / 4),
        (lambda x: jax.lax.all_gather(x, "a"), P(None, "a"), "all-gather", 192, 4 * 192 * 3 / 4),
        (
            lambda x: jax.lax.psum_scatter(x, "a", tiled=True),
            P("a"),
            "reduce-scatter",
            192,
            192 * 3 / 4,
        ),
        (
            lambda x: jax.lax.psum(x, "a", axis_index_groups=[[0, 1], [2, 3]]),
            P("a"),
            "all-reduce",
            192,
            2 * 192 / 2,
        ),
    ],
)
def test_bytes_of_collectives(collective, out, kind, operands, sent):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("a",))
    mapped = jax.shard_map(collective, mesh=mesh, in_specs=P("a"), out_specs=out, check_vma=False)
    text = jax.jit(mapped).lower(jnp.zeros((32, 6))).compile().as_text()
    assert programs.moved(text) == {kind: (operands, sent)}
