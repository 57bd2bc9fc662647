"""The command line; every mistake in it becomes one line."""

import dataclasses
import re
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from samon_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command line asks for.

    Attributes:
      mode: "train" or "eval".
      workdir: work directory.
      config: complete config; an empty one in mode "eval".
      checkpoint: "best" or "newest", for mode "eval".
    """

    mode: str
    workdir: str
    config: ConfigDict
    checkpoint: str


def parse(argv: Sequence[str], usage: str | None = None) -> Arguments:
    """Reads the command line.

    Args:
      argv: arguments, the program's name first.
      usage: text that --help shows above the flags.

    Returns:
      The arguments, with the config file loaded and its overrides applied.

    Raises:
      UserError: a flag, the config file or an override is wrong.
      SystemExit: after --help.
    """
    values = _define(argv)
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(f"{usage or ''}\n{values.main_module_help()}{values.get_help()}")
        sys.exit(0)
    try:
        rest = values(list(argv))
        config = values.config if values["config"].present else None
        if config is not None and not isinstance(config, ConfigDict):
            raise UserError(f"--config={_given(argv, 'config')}: get_config returned no ConfigDict")
    except UserError:
        raise
    except Exception as error:  # absl, ml_collections and the config file each raise their own
        raise UserError(_one_line(error, argv)) from None
    if len(rest) > 1:
        raise UserError(f"argument {rest[1]!r} is not allowed; flags start with --")
    if values.mode == "train" and config is None:
        raise UserError("--config is missing, for example --config=configs/digits.py")
    if not values.workdir:
        raise UserError("--workdir is missing; it names the folder that receives the results")
    return Arguments(values.mode, values.workdir, config or ConfigDict(), values.checkpoint)


def _define(argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config",
        help_string="Config file, with options after a colon.",
        flag_values=values,
        sys_argv=list(argv),  # of the overrides --config.<field>
    )
    flags.DEFINE_string("workdir", None, "Folder of the results.", flag_values=values)
    flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.", flag_values=values)
    flags.DEFINE_enum(
        "checkpoint", "newest", ["best", "newest"], "Which one eval reads.", flag_values=values
    )
    return values


def _one_line(error: Exception, argv: Sequence[str]) -> str:
    path = _given(argv, "config")
    if isinstance(error, AttributeError | KeyError) and path is not None:
        return _unknown_field(path, argv) or f"--config={path}: {error}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    if len(lines) == 1:
        return lines[0]
    if isinstance(error, OSError):
        return f"--config={path} cannot be loaded: {lines[-1]}"
    # The config file raised; ml_collections quotes its traceback.
    return re.sub(r"^samon_jax\.errors\.UserError: ", "", lines[-1])


def _unknown_field(path: str, argv: Sequence[str]) -> str | None:
    """Names the override that does not exist, and the fields beside it."""
    only_config = [argv[0], f"--config={path}"]
    values = _define(only_config)
    values(only_config)
    for argument in argv[1:]:
        match = re.match(r"--?config\.([\w.]+)", argument)
        node = values.config
        for name in match.group(1).split(".") if match else ():
            if not isinstance(node, ConfigDict) or name not in node:
                allowed = ", ".join(sorted(node)) if isinstance(node, ConfigDict) else "none"
                return f"{argument}: unknown field {name!r}; the fields there are {allowed}"
            node = node[name]
    return None


def _given(argv: Sequence[str], flag: str) -> str | None:
    for position, argument in enumerate(argv):
        if re.fullmatch(rf"--?{flag}", argument) and position + 1 < len(argv):
            return argv[position + 1]
        if match := re.match(rf"--?{flag}=(.*)", argument):
            return match.group(1)
    return None
