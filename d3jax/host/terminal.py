"""Text for a terminal: names that were meant, and lists in two columns."""

import difflib
import shutil
import textwrap
from collections.abc import Iterable, Mapping


def meant(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the nearest known name, empty where none is near."""
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


def columns() -> int:
    """How wide a text may be: as the terminal, but for what is hard to read."""
    return min(shutil.get_terminal_size().columns, 100) - 1


def listed(texts: Mapping[str, str]) -> str:
    """A line of each name and its text, which goes on below itself, as wide as the terminal."""
    column = max(map(len, texts)) + 4
    return "\n".join(
        textwrap.fill(
            text,
            max(columns(), column + 20),
            initial_indent=f"  {name}".ljust(column),
            subsequent_indent=" " * column,
        )
        for name, text in texts.items()
    )
