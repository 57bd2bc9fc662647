"""Tables and figures by the names under which one asks for them."""

import functools
import re

from samon_jax.errors import UserError
from samon_jax.paper.figures import figures
from samon_jax.paper.grid import Table
from samon_jax.paper.tables import tables

_ALIASES = {"figure4left": "figure4"}


@functools.cache
def catalog() -> dict[str, Table]:
    """All tables and figures by name, in the order of the paper, tables first."""
    return {table.name: table for table in (*tables(), *figures())}


def find(name: str) -> tuple[Table, ...]:
    """The table or figure of that name, or "all" of them.

    Args:
      name: "1" or "table1", "figure3" or "fig3", "figure4right", "all".

    Raises:
      UserError: there is none; the message lists those there are.

    Example:
      >>> [table.name for table in find("fig4")]
      ['figure4']
    """
    known = catalog()
    plain = re.sub(r"[\s._-]", "", name.lower())
    if plain == "all":
        return tuple(known.values())
    match = re.fullmatch(r"(table|tab|figure|fig|)(\d+\w*)", plain)
    if match:
        kind = "figure" if match.group(1).startswith("fig") else "table"
        full = f"{kind}{match.group(2)}"
        full = _ALIASES.get(full, full)
        if full in known:
            return (known[full],)
    raise UserError(
        f"--table={name} is not here; choose one of {', '.join(known)}, or all of them with all"
    )
