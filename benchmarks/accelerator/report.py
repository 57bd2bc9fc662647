"""Writes every result when it is there, and the page that shows all there are."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from samon_jax.errors import UserError

Result = dict[str, Any]


class Report:
    """The results in a folder: results.jsonl, one object a line, and report.md.

    Args:
      out: folder; made if it is not there.
      title: device and versions.
      sections: kind of a result to the function that shows all of that kind as Markdown, in the
        order of the page.
      draw: `draw(results, out)`; called where matplotlib is installed.

    Attributes:
      out: the folder.

    Raises:
      UserError: the folder cannot be made or written, or holds a damaged results.jsonl.
    """

    def __init__(
        self,
        out: Path,
        title: str,
        sections: Mapping[str, Callable[[list[Result]], str]],
        draw: Callable[[list[Result], Path], None],
    ) -> None:
        self.out, self._title, self._sections = out, title, sections
        self._draw = draw if importlib.util.find_spec("matplotlib") else None
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / "report.md").touch()
        except OSError as error:
            raise UserError(f"--out={out} cannot be written: {error.strerror}") from None
        self.results = self._read()
        if self._draw is None:
            self.say("matplotlib is not installed: tables only, no pictures")

    def _read(self) -> list[Result]:
        path = self.out / "results.jsonl"
        try:
            lines = path.read_text().splitlines() if path.exists() else []
            found = [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError):
            found = [None]
        if not all(isinstance(r, dict) and {"kind", "key", "device"} <= set(r) for r in found):
            raise UserError(f"{path} holds something else; move it away")
        return found

    def find(self, key: str) -> Result | None:
        """What was measured of this on a device with these versions, now or in an earlier call."""
        found = (r for r in self.results if (r["key"], r["device"]) == (key, self._title))
        return next(found, None)

    def add(self, kind: str, key: str, **values: Any) -> None:
        """Writes a result, replaces the page and prints what is new."""
        result = {"kind": kind, "key": key, "device": self._title, **values}
        self.results = [r for r in self.results if (r["key"], r["device"]) != (key, self._title)]
        self.results.append(result)
        lines = "".join(json.dumps(r) + "\n" for r in self.results)
        _replace(self.out / "results.jsonl", lines)
        _replace(self.out / "report.md", self.page())
        self.say(f"\n{self._sections[kind]([result])}\n")
        if self._draw is not None:
            self._draw(self.results, self.out)

    def page(self) -> str:
        """All results as Markdown, by device."""
        pages = []
        for device in dict.fromkeys(r["device"] for r in self.results):
            own = [r for r in self.results if r["device"] == device]
            parts = [f"# {device}"]
            for kind, show in self._sections.items():
                if found := [r for r in own if r["kind"] == kind]:
                    parts.append(show(found))
            pages.append("\n\n".join(parts))
        return "\n\n".join(pages) + "\n"

    def say(self, text: str) -> None:
        """Prints at once."""
        print(text, flush=True)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def number(value: float | None, form: str) -> str:
    """A number, or – where there is none."""
    return "–" if value is None else format(value, form)
