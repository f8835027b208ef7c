"""One self-contained page: pictures embedded, nothing fetched, every name escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jinja2 import Environment, StrictUndefined

from misfm.files import write_text

_TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Verdict:
    """A line at the top that says what came out.

    Attributes:
        headline: the numbers.
        detail: how sure they are.
        tone: ``"ahead"`` or ``"behind"`` where the interval excludes zero, otherwise ``"level"``.
    """

    headline: str
    detail: str = ""
    tone: Literal["ahead", "behind", "level"] = "level"


@dataclass(frozen=True)
class Table:
    """Rows of text under headers; the first column names the row, the others are set as numbers.

    Attributes:
        caption: what the table shows.
        headers: one for each column.
        rows: cells, as many as headers.
        folded: show only the caption until it is opened.
    """

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    folded: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG image.

    Attributes:
        caption: what it shows, in a sentence that also serves readers who cannot see it.
        png: the image.
        wide: use the whole width of the page.
    """

    caption: str
    png: bytes
    wide: bool = False


@dataclass(frozen=True)
class ReportData:
    """What a report shows, from top to bottom.

    Attributes:
        title: of the page.
        verdicts: what came out.
        figures: pictures.
        tables: numbers.
        notes: what a fair reader should know before believing the verdict.
        settings: settings and versions, name to value.
    """

    title: str
    verdicts: tuple[Verdict, ...] = ()
    figures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)


def render_report(report: ReportData, path: Path | str) -> None:
    """Write a report as one HTML file.

    Args:
        report: what to show.
        path: the file to write; it appears whole or not at all.

    Raises:
        DataError: the file cannot be written.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = _data_uri
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    write_text(Path(path), template.render(report=report))


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
