"""Fields of a config: a default and a check that says what is allowed, each range once.

A function that is configured by a field calls the same check for its argument, so that the range of
a value stands where the thing is built and nowhere else.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from samon_jax.errors import UserError

Check = Callable[[str, Any], None]


class Field(NamedTuple):
    """One field.

    Attributes:
      default: value where nothing is said; of the field's type. It never changes: a run is
        identified by the fields that differ from it.
      check: `check(name, value)` raises a UserError, which names both, unless the value is allowed.
      doc: what it is, with unit and source.
    """

    default: Any
    check: Check
    doc: str


def refuse(name: str, value: Any, allowed: str) -> UserError:
    """The error for a value that is not allowed, in one line.

    Example:
      >>> str(refuse("m", 0, "an integer >= 1"))
      'm=0 is not allowed; it must be an integer >= 1'
    """
    text = repr(value) if isinstance(value, str) else " ".join(str(value).split())
    return UserError(f"{name}={text[:200]} is not allowed; it must be {allowed}")


def integer(low: int, high: int | None = None) -> Check:
    """Allows integers, NumPy's too, of at least `low` and at most `high`.

    Example:
      >>> integer(1)("every", 5)
    """
    high = 2**31 - 1 if high is None else high
    unbounded = high == 2**31 - 1
    allowed = f"an integer >= {low}" if unbounded else f"an integer, {low} <= value <= {high}"

    def check(name: str, value: Any) -> None:
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if whole and value > high and unbounded:
            raise refuse(name, value, f"{allowed} and < 2**31")
        if not whole or not low <= value <= high:
            raise refuse(name, value, allowed)

    return check


def number(
    low: float = 0.0, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Check:
    """Allows real numbers from `low` to `high`; they must be finite.

    Args:
      low: smallest value.
      high: largest value; infinity allows every float32.
      above: the value must be larger than `low`.
      below: the value must be smaller than `high`.

    Returns:
      A check. A JAX array that is traced has no value yet and is refused.

    Example:
      >>> number(0, 1, above=True)("gamma", 0.5)
    """
    if high == math.inf:
        allowed = f"a finite number {'>' if above else '>='} {low:g}"
    else:
        allowed = (
            f"a number, {low:g} {'<' if above else '<='} value {'<' if below else '<='} {high:g}"
        )

    def check(name: str, value: Any) -> None:
        real = to_float(value)
        inside = (low < real if above else low <= real) and (real < high if below else real <= high)
        if not inside or not math.isfinite(real):
            raise refuse(name, value, allowed)
        if abs(real) > 3.4028234e38:
            raise refuse(name, value, f"{allowed} that float32 can hold")

    return check


def to_float(value: Any) -> float:
    """The value of a number, NaN for anything else (text, truth values, vectors, traced arrays)."""
    vector = getattr(value, "ndim", 0) != 0
    if vector or isinstance(value, bool | np.bool_ | str | bytes) or value is None:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):  # JAX's error for tracers is a TypeError
        return math.nan


def one_of(*names: str) -> Check:
    """Allows some words.

    Example:
      >>> one_of("sgd", "adamw")("optimizer.name", "sgd")
    """

    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in names:
            raise refuse(name, value, f"one of {', '.join(names)}")

    return check


def boolean(name: str, value: Any) -> None:
    """Allows True and False."""
    if not isinstance(value, bool):
        raise refuse(name, value, "True or False")


def text(name: str, value: Any) -> None:
    """Allows any text."""
    if not isinstance(value, str):
        raise refuse(name, value, "text")


def optional(check: Check) -> Check:
    """Allows None besides."""

    def check_unless_none(name: str, value: Any) -> None:
        if value is not None:
            check(name, value)

    return check_unless_none
