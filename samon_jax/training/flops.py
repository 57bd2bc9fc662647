"""How much work a training step is, by XLA's count."""

from typing import Any

import numpy as np

from samon_jax.training.setup import Run


def flops_per_step(run: Run, *, perturb: bool = True) -> float | None:
    """Floating-point operations of one training step over all devices.

    XLA counts them in the program as it is handed over, before it is compiled; multiply and add
    count as two.

    Args:
      run: from `set_up`.
      perturb: False for the plain gradient instead of the configured step.

    Returns:
      The count, or None where the backend does not say; for LookSAM, the mean over its steps.
    """
    if perturb and run.programs.look is not None:
        plain, sharp = (_flops(run, program) for program in run.programs.look)
        every = run.config.sam.look_every
        return None if plain is None or sharp is None else ((every - 1) * plain + sharp) / every
    return _flops(run, run.programs.train if perturb else run.programs.train_plain)


def _flops(run: Run, program: Any) -> float | None:
    state = run.template()
    rows = np.zeros((len(run.devices), 1, run.config.batch_size // len(run.devices)), np.int32)
    lowered = program.lower((state, run.train_set), rows)
    cost = lowered.cost_analysis()
    if not cost or "flops" not in cost:
        return None
    return len(run.devices) * float(cost["flops"])  # XLA counts the program of one device
