"""Trains and evaluates; everything that varies is in the config.

    python main.py --config=configs/digits.py --workdir=runs/digits
    python main.py --mode=eval --workdir=runs/digits --checkpoint=best
    python main.py --mode=translate --workdir=runs/multi30k < german.txt
    python main.py --mode=analyze --workdir=runs/digits --workdir=runs/sgd
    python main.py --mode=reproduce --table=1 --workdir=runs/table1

An interrupted run continues when it is started again with the same arguments.
"""

# ruff: noqa: E402
# What comes before the imports must be said before JAX is imported.

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

# Before JAX is imported: XLA's notices would drown the progress lines. Errors are still shown.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _stop_early(number: int, frame: object) -> None:
    """Ends the program while it is still importing, where there is nothing to save."""
    os.write(2, f"{signal.Signals(number).name}: stopped before it began\n".encode())
    os._exit(128 + number)


if __name__ == "__main__":
    for _number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(_number, _stop_early)

from samon_jax.errors import UserError
from samon_jax.processes import cluster, failure, signals
from samon_jax.training import cli


def run(arguments: cli.Arguments) -> None:
    """Does what the command line says.

    Raises:
      UserError: something is wrong that the user can change.
    """
    workdirs = [Path(folder) for folder in arguments.workdirs]

    from samon_jax.processes import environment
    from samon_jax.training.compare import compare
    from samon_jax.training.loop import train
    from samon_jax.training.reading import evaluate_checkpoint, read_lines, translate

    environment.use_compilation_cache()
    environment.quiet_libraries()
    environment.print_anything()
    environment.check_platform()
    if arguments.shifts:
        from samon_jax.training.shifts import evaluate_shifts

        evaluate_shifts(workdirs[0], arguments.shifts, arguments.checkpoint, arguments.overrides)
    elif arguments.mode == "eval":
        evaluate_checkpoint(workdirs[0], arguments.checkpoint, arguments.overrides, arguments.split)
    elif arguments.mode == "translate":
        lines = read_lines(arguments.input)
        said = translate(workdirs[0], lines, arguments.checkpoint, arguments.overrides)
        for line in said:
            print(line)
    elif arguments.mode == "analyze":
        from samon_jax.analysis.report import analyze
        from samon_jax.paper.printed import of_run

        out = Path(arguments.out) if arguments.out else None
        analyze(workdirs, out, which=arguments.checkpoint, printed=of_run)
    elif arguments.mode == "reproduce":
        from samon_jax.paper.reproduce import run_command

        run_command(arguments.reproduce, workdirs)
    elif arguments.config.compare.seeds:
        compare(arguments.config, workdirs[0])
    else:
        train(arguments.config, workdirs[0])


def main(argv: Sequence[str]) -> int:
    """Runs the command line; whatever goes wrong becomes one line on stderr and a status."""
    arguments = None
    lost = False
    try:
        with signals.raise_on_signals():
            arguments = cli.parse(argv, usage=__doc__)
            with cluster.joined(arguments.cluster):
                run(arguments)
        return 0
    except UserError as error:
        line, status = str(error), 2
        print(f"error: {cluster.name()}{line}", file=sys.stderr)
    except signals.Stopped as stopped:
        line, status = str(stopped), 128 + stopped.number
        print(stopped, file=sys.stderr)
    except Exception as error:
        if arguments and arguments.debug and not cluster.name():
            raise
        folder = Path(arguments.workdirs[0]) if arguments and arguments.workdirs else None
        # In the other modes, the config is that of the work directory, if any.
        config = arguments.config if arguments and arguments.mode == "train" else None
        line, status, lost = failure.one_line(error, config), 1, cluster.is_lost(error)
        if not lost:
            failure.explain(error, argv, folder, config, cluster.name())
    cluster.fail(line, status, lost=lost)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv))
