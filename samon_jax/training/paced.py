"""Programs of simulated devices, called no faster than XLA's threads allow."""

from typing import Any

import jax

PyTree = Any


class Paced:
    """A program of simulated devices, of which two calls are under way at most.

    Devices that wait for each other each hold a thread of XLA's pool. With many calls queued, those
    of a later call take what one of an earlier call needs, and all wait forever.
    """

    def __init__(self, program: Any) -> None:
        self._program, self.lower = program, program.lower
        self._before: Any = None

    def __call__(self, same: PyTree, own: PyTree) -> PyTree:
        """Calls the program and waits for the call before this one."""
        result = self._program(same, own)
        jax.block_until_ready(self._before)
        smallest = min(jax.tree.leaves(result), key=lambda x: x.size)
        self._before = None if isinstance(smallest, jax.core.Tracer) else smallest
        return result
