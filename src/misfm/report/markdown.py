"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from misfm.text import one_line


def markdown_table(headers: Sequence[object], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a table.

    Args:
        headers: of the columns; anything that ``str`` makes text of.
        rows: cells of each row, as many as there are headers.

    Raises:
        ValueError: a row with more or fewer cells.
    """
    lines = [markdown_row(headers), "|" + "---|" * len(headers)]
    for row in rows:
        if len(row) != len(headers):
            raise ValueError(f"expected {len(headers)} cells, got {list(row)}")
        lines.append(markdown_row(row))
    return lines


def markdown_row(cells: Sequence[object]) -> str:
    """Return one line of a table; a bar and an end of a line within a cell are escaped."""
    return f"| {' | '.join(one_line(str(cell)).replace('|', chr(92) + '|') for cell in cells)} |"
