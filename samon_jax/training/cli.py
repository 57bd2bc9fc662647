"""The command line; every mistake in it becomes one line."""

import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from samon_jax.errors import UserError
from samon_jax.processes.cluster import ALONE, Given, complete
from samon_jax.training.config import EVAL_FIELDS, TRANSLATE_FIELDS, check_fields, default_config

# A line each: the mode that uses a flag, its kind, its name, what --help says. None has a default.
_FLAGS = """
  all       string  config   Config file, with options after a colon; --config.<field>=<value>.
  all       strings workdir  Folder of the results; analyze takes several.
  all       boolean debug    Show the traceback of an unexpected error.
  analyze   string  out      Folder of the report; by default `analysis` in the first --workdir.
  eval      string  data     Other sets with ImageNet's classes, as imagenet_v2,objectnet.
  eval      string  split    Which examples, test (the default), val or another that the data have.
  translate string  input    A file with a sentence a line; by default standard input.
  reproduce string  table    A table or figure, as 1, table1 or figure3, or all of them: all.
  reproduce string  rows     Only these rows, separated by commas.
  reproduce string  columns  Only these columns, separated by commas.
  reproduce integer seeds    Runs of each cell; by default as in the paper.
  reproduce integer epochs   Length of the runs; by default as in the paper.
  reproduce boolean search   Where rho is not known, try what the papers tried.
  reproduce boolean list     Show tables, cells and costs, and train nothing.
  train     boolean distributed          One process of several; by default, where it is seen.
  train     string  coordinator_address  host:port of process 0, where the cluster does not say.
  train     integer num_processes        How many processes there are, likewise.
  train     integer process_id           Which of them this is, from 0, likewise.
  train     integer coordinator_timeout  Seconds to wait for the other processes; by default 120.
"""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What the command line asks for.

    Attributes:
      mode: "train", "eval", "translate", "analyze" or "reproduce".
      workdirs: work directories; one, but for mode "analyze", and none for a list of tables.
      config: complete config; but in mode "train", the default one with the overrides.
      overrides: the fields given as `--config.<field>`, for mode "eval".
      checkpoint: "best" or "newest", but for mode "train".
      shifts: other data sets that mode "eval" evaluates on.
      out: folder of the report of mode "analyze", or None.
      reproduce: what mode "reproduce" re-runs: the arguments of `samon_jax.paper.reproduce.Request`
        that were given, and "list".
      cluster: what is said about the other processes.
      split: what mode "eval" evaluates on.
      input: file whose lines mode "translate" translates, or None for standard input.
      debug: show the traceback of an exception that nobody foresaw.
    """

    mode: str
    workdirs: tuple[str, ...]
    config: ConfigDict
    overrides: Mapping[str, Any]
    checkpoint: str
    out: str | None
    reproduce: Mapping[str, Any]
    cluster: Given = ALONE
    split: str = "test"
    input: str | None = None
    debug: bool = False
    shifts: tuple[str, ...] = ()


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
    values = _define()
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(f"{usage or ''}\n{values.main_module_help()}{values.get_help()}")
        sys.exit(0)
    try:
        # What is left are the overrides, whose fields only the config file tells.
        _, *rest = values(list(argv), known_only=True)
    except flags.Error as error:
        raise UserError(_one_line(error)) from None
    workdirs = tuple(os.path.expanduser(folder) for folder in values.workdir or ())
    for name, given in (("config", values.config), *(("workdir", folder) for folder in workdirs)):
        if (given or "").startswith("-"):
            raise UserError(f"--{name} is missing its value; {given!r} is a flag")
    if values.mode != "train":
        config = default_config()
    elif values.config:
        config = load_config(values.config)
    else:
        raise UserError("--config is missing, for example --config=configs/digits.py")
    overrides = override(config, rest)
    if values.mode != "train":
        _check_reading(values.mode, values.config, overrides)
    _check_used(values)
    reproduce, of_cluster = _reproduce(values), _cluster(values)
    if (not all(workdirs) or not workdirs) and not reproduce.get("list"):
        raise UserError("--workdir is missing; it names the folder that receives the results")
    if len(workdirs) > 1 and values.mode != "analyze":
        raise UserError(
            f"--workdir={workdirs[1]} is one too many; only --mode=analyze takes several"
        )
    return Arguments(
        values.mode,
        workdirs,
        config,
        overrides,
        values.checkpoint,
        values.out,
        reproduce,
        of_cluster,
        values.split or "test",
        values.input,
        bool(values.debug),
        _shifts(values.data),
    )


def _shifts(given: str | None) -> tuple[str, ...]:
    """The sets of --data."""
    names = tuple(name for part in (given or "").split(",") if (name := part.strip()))
    if given is not None and not names:
        raise UserError("--data is empty; it names data sets, as imagenet_v2,imagenet_r")
    return names


def _check_used(values: flags.FlagValues) -> None:
    """Refuses flags that the mode would ignore."""
    modes: dict[str, tuple[str, ...]]
    modes = {name: (mode,) for mode, _, name, _ in _flags() if mode != "all"}
    modes |= {"checkpoint": ("eval", "translate", "analyze"), "scale": ("reproduce",)}
    for name, allowed in modes.items():
        if values[name].present and values.mode not in allowed:
            raise UserError(
                f"--{name}={values[name].value} has no effect with --mode={values.mode}; it is "
                f"for {' and '.join(f'--mode={mode}' for mode in allowed)}"
            )
    if values.data is not None and values.split is not None:
        raise UserError(f"--split={values.split} has no effect with --data, whose sets have one")


def load_config(argument: str) -> ConfigDict:
    """Runs a config file.

    Args:
      argument: its path and, after a colon, options for its `get_config`.

    Returns:
      The config, locked.

    Raises:
      UserError: there is no such file, or whatever it raised, in one line.
    """
    path, colon, options = argument.partition(":")
    if not os.path.isfile(path):  # also where the name is too long to be asked for
        raise UserError(f"--config={argument}: there is no file {path!r}")
    try:
        loader = SourceFileLoader("_samon_jax_config", path)
        module = module_from_spec(spec_from_loader(loader.name, loader))  # type: ignore[arg-type]
        sys.modules[loader.name] = module  # dataclasses look their module up there
        loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError("it defines no get_config()")
        config = module.get_config(options) if colon else module.get_config()
        if not isinstance(config, ConfigDict):
            raise UserError(f"get_config returned a {type(config).__name__}, not a ConfigDict")
        check_fields(config)
    except UserError as error:
        raise UserError(f"--config={argument}: {error}") from None
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # anything can happen there
        text = " ".join(str(error).split())
        raise UserError(f"--config={argument}: {type(error).__name__}: {text}") from None
    return config.lock()


def _flags() -> list[list[str]]:
    return [line.split(maxsplit=3) for line in _FLAGS.strip().splitlines()]


def _define() -> flags.FlagValues:
    values = flags.FlagValues()
    values.set_gnu_getopt()  # flags may come after anything
    define: dict[str, Any] = {
        "string": flags.DEFINE_string,
        "strings": flags.DEFINE_multi_string,
        "integer": flags.DEFINE_integer,
        "boolean": flags.DEFINE_boolean,
    }
    for mode, kind, name, text in _flags():
        text = text if mode == "all" else f"{mode}: {text}"
        define[kind](name, None, text, flag_values=values)
    for name, default, allowed, text in (
        ("mode", "train", ["train", "eval", "translate", "analyze", "reproduce"], "What to do."),
        ("checkpoint", "newest", ["best", "newest"], "Which one eval, translate and analyze read."),
        ("scale", None, ["full", "smoke"], "reproduce: smoke only proves that it runs."),
    ):
        flags.DEFINE_enum(name, default, allowed, text, flag_values=values)
    return values


def _cluster(values: flags.FlagValues) -> Given:
    """What the flags say about the other processes, completed by the environment."""
    given = Given(
        values.distributed,
        values.coordinator_address,
        values.num_processes,
        values.process_id,
        Given().timeout if values.coordinator_timeout is None else values.coordinator_timeout,
    )
    return complete(given) if values.mode == "train" else ALONE


def _reproduce(values: flags.FlagValues) -> dict[str, Any]:
    """The flags of mode "reproduce" that were given, checked."""
    names = [name for mode, _, name, _ in _flags() if mode == "reproduce"] + ["scale"]
    given: dict[str, Any] = {n: values[n].value for n in names if values[n].value is not None}
    if values.mode != "reproduce":
        return {}
    for name in ("seeds", "epochs"):
        if given.get(name, 1) < 1:
            raise UserError(f"--{name}={given[name]} is not allowed; it must be an integer >= 1")
    if "table" not in given and not given.get("list"):
        raise UserError(
            "--table is missing, for example --table=1 or --table=figure3; --list shows all"
        )
    if given.get("scale") == "smoke":
        for name in ("seeds", "epochs", "search"):
            if name in given:
                raise UserError(f"--{name}={given[name]} has no effect with --scale=smoke")
    for name in ("rows", "columns"):
        if name in given:
            given[name] = tuple(part for text in given[name].split(",") if (part := text.strip()))
    return given


def override(config: ConfigDict, arguments: Sequence[str]) -> dict[str, Any]:
    """Applies overrides to a config.

    Args:
      config: is changed.
      arguments: `--config.<field>=<value>` each.

    Returns:
      The values by field.

    Raises:
      UserError: a field does not exist, or a value is not of its type.

    Example:
      >>> config = default_config()
      >>> override(config, ["--config.sam.rho=1"])
      {'sam.rho': 1.0}
    """
    for argument in arguments:
        _check_field_exists(config, argument)
    values, argv = flags.FlagValues(), ["", *arguments]
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(_one_line(error)) from None
    if len(rest) > 1:
        raise UserError(f"argument {rest[1]!r} is not allowed; flags start with --")
    return config_flags.get_override_values(values["config"])


def _check_field_exists(config: ConfigDict, argument: str) -> None:
    """Names the override that does not exist, and the fields beside it."""
    match = re.match(r"--?(?:no)?config\.([\w.]+)", argument)
    node: Any = config
    for name in match.group(1).split(".") if match else ():
        if not isinstance(node, ConfigDict) or name not in node:
            allowed = ", ".join(sorted(node)) if isinstance(node, ConfigDict) else "none"
            raise UserError(f"{argument}: unknown field {name!r}; the fields there are {allowed}")
        node = node[name]


def _check_reading(mode: str, config: str | None, overrides: Mapping[str, Any]) -> None:
    """Refuses what a mode that has its configs from elsewhere would ignore."""
    allowed = {"eval": EVAL_FIELDS, "translate": TRANSLATE_FIELDS}.get(mode, ())
    refused = [f"--config={config}"] if config else []
    refused += [f"--config.{field}" for field in overrides if field not in allowed]
    if refused:
        fields = " and ".join(f"--config.{field}" for field in allowed)
        source = (
            "has the configs of the papers"
            if mode == "reproduce"
            else "reads the config of the run from its --workdir"
        )
        raise UserError(
            f"{refused[0]} is not allowed with --mode={mode}, which {source}"
            + (f"; only {fields} can be given" if fields else "")
        )


def _one_line(error: Exception) -> str:
    """What absl says, in the words of the other messages."""
    kinds = {
        "Non-boolean argument": "true or false",
        "invalid literal for int": "an integer",
        "could not convert string to float": "a number",
    }
    text = " ".join(str(error).split())
    if match := re.match(r"flag (--.*?=.*?): (.*)", text):
        given, reason = match.groups()
        for start, kind in kinds.items():
            if start in reason:
                return f"{given} is not allowed; it must be {kind}"
        return f"{given} is not allowed; {reason}"
    return text
