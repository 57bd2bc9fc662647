"""What a run shows: a progress bar or lines, and TensorBoard."""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from tqdm import tqdm

from samon_jax.training.workdir import writing


def say(text: str) -> None:
    """Prints one line; if nobody can read it any more, as after `| head`, work goes on silently."""
    try:
        print(text, flush=True)
    except OSError:
        _silence()


def _silence() -> None:
    # The descriptor too: Python writes what it still holds when it exits.
    null = open(os.devnull, "w")  # noqa: SIM115
    with contextlib.suppress(OSError, ValueError):  # a stdout without descriptor
        os.dup2(null.fileno(), sys.stdout.fileno())
    sys.stdout = null


class Reporter:
    """Prints progress to stdout and writes TensorBoard events.

    A terminal gets a bar with loss, accuracy, examples per second and the time left; anything else
    gets one line per epoch, and one every `config.log.every_seconds` while an epoch lasts.

    Args:
      directory: work directory.
      config: complete config.
      step: steps done already; TensorBoard drops what it has after it.
      total_steps: steps of the whole run.
      name: begins every line, where several runs are shown at once.
      bar: False if a terminal shows the bar of another run.
    """

    def __init__(
        self,
        directory: Path,
        config: ConfigDict,
        step: int,
        total_steps: int,
        *,
        name: str = "",
        bar: bool = True,
    ) -> None:
        self._config = config
        self._name = name
        self._total = total_steps
        self._last_line = time.monotonic()
        self._speed_from = (time.monotonic(), step)
        self._terminal = sys.stdout is not None and sys.stdout.isatty()
        self._bar = (
            tqdm(
                total=total_steps,
                initial=step,
                unit="step",
                file=sys.stdout,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} steps, "
                "{remaining} left{postfix}",
            )
            if self._terminal and bar
            else None
        )
        self._events: Any = None
        if config.log.tensorboard:
            from tensorboardX import SummaryWriter

            with writing(directory / "tensorboard"):
                self._events = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def say(self, text: str) -> None:
        """Prints one line, above the bar if there is one."""
        if self._terminal:
            tqdm.write(self._name + text, file=sys.stdout)
        else:
            say(self._name + text)

    def progress(self, step: int, loss: float, accuracy: float) -> None:
        """Shows the newest step that has been computed."""
        now = time.monotonic()
        since, first = self._speed_from
        speed = (step - first) * self._config.batch_size / max(now - since, 1e-9)
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"{self._name}loss {loss:.3f}, accuracy {100 * accuracy:.1f} %, "
                f"{speed:.0f} examples/s",
                refresh=False,
            )
            self._bar.update(step - self._bar.n)
        elif not self._terminal and now - self._last_line >= self._config.log.every_seconds > 0:
            self._last_line = now
            left = (self._total - step) * self._config.batch_size / max(speed, 1e-9)
            self.say(
                f"step {step}/{self._total}: loss {loss:.4f}, accuracy {100 * accuracy:.2f} %, "
                f"{speed:.0f} examples/s, {left:.0f} s left"
            )

    def epoch(self, record: dict[str, Any]) -> None:
        """Reports the end of an epoch; see `loop.train` for the record."""
        # The first steps include compilation: measure the speed from here.
        self._speed_from = (time.monotonic(), record["step"])
        self._last_line = time.monotonic()
        self.say(
            f"epoch {record['epoch']}/{self._config.epochs}: train loss "
            f"{record['train_loss']:.4f}, accuracy {100 * record['train_accuracy']:.2f} %; "
            f"test loss {record['test_loss']:.4f}, accuracy {100 * record['test_accuracy']:.2f} %; "
            f"{record['examples_per_second']:.0f} examples/s"
        )
        if self._events is not None:
            for name, value in record.items():
                if name not in ("epoch", "step"):
                    self._events.add_scalar(name, value, record["step"])
            self._events.flush()

    def close(self) -> None:
        """Closes the bar and the events file."""
        if self._bar is not None:
            self._bar.close()
        if self._events is not None:
            self._events.close()
