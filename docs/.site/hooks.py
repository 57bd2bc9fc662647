"""What mkdocs cannot be told in its configuration: the home page, the order of pages, the fields.

The home page is the README. Guides are the files of docs/ in the order below, others behind them;
their names are their headings. The table of all fields of a config is made from the fields.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ["library", "methods", "training", "imagenet", "translation", "tables", "study"]
GUIDES += ["analysis", "accelerators", "clusters", "reliability", "where"]
REFERENCE = ["library", "methods", "models", "tasks", "data", "training", "fields", "analysis"]
EXAMPLES = ["cifar100.md", "digits-analysis/report.md"]
_FIELDS = "<!-- fields -->"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Makes the navigation from the files that are there."""
    docs = Path(config.docs_dir)
    config.nav = [
        {"Home": "index.md"},
        {"Guides": [page for page in _in_order(docs, GUIDES, "") if page not in EXAMPLES]},
        {"Examples": EXAMPLES},
        {"Reference": _in_order(docs, REFERENCE, "reference/")},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the README as the home page."""
    files.append(File.generated(config, "index.md", content=home((ROOT / "README.md").read_text())))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fills in the table of fields."""
    if _FIELDS not in markdown:
        return markdown
    return markdown.replace(_FIELDS, fields())


def home(readme: str) -> str:
    """The README with its links as seen from docs/; files that are not there lose theirs."""
    readme = re.sub(r"\]\(docs/", "](", readme)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)(?![^)]*\.(?:md|png)\b)[^)]*\)", r"\1", readme)


def fields() -> str:
    """A Markdown table for each section of a config."""
    from samon_jax.training.config import sections

    parts = []
    for section, declared in sections().items():
        rows = [
            f"| `{name}` | `{_shown(field.default)}` | {field.doc.replace('|', chr(92) + '|')} |"
            for name, field in declared.items()
        ]
        title = f"`config.{section}`" if section else "`config`"
        parts.append(
            "\n".join([f"## {title}\n", "| field | default | what |", "|---|---|---|", *rows])
        )
    return "\n\n".join(parts)


def _shown(default: Any) -> str:
    return "{}" if hasattr(default, "to_json") else repr(default)


def _in_order(docs: Path, order: list[str], folder: str) -> list[Any]:
    there = {path.stem for path in (docs / folder).glob("*.md")} - {"index"}
    names = [name for name in order if name in there]
    return [f"{folder}{name}.md" for name in [*names, *sorted(there - set(names))]]
