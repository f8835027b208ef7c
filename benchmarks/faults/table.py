"""Write the last results of the fault campaigns into docs/guarantees.md.

    python benchmarks/faults/table.py

A test compares the page with the files that the campaigns have left in benchmarks/results.
"""

from __future__ import annotations

import json
import re
from typing import Any

from common import GOOD, RESULTS, ROOT

from misfm.files import write_text
from misfm.report.markdown import markdown_table

PAGE = ROOT / "docs" / "guarantees.md"
CAMPAIGNS = {
    "kills": "kills of commands",
    "flips": "damaged files of misfm",
    "inputs": "spoilt files of users",
}
SECTION = re.compile(r"(<!-- (\w+): made by benchmarks/faults/table.py -->\n).*?(<!-- end -->)", re.S)


def read_results() -> dict[str, dict[str, Any]]:
    """What the campaigns that were run have left, by name."""
    files = {name: RESULTS / f"faults_{name}.json" for name in CAMPAIGNS}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.exists()}


def summary(results: dict[str, dict[str, Any]]) -> list[str]:
    """One row a campaign: faults, findings, when, on which commit."""
    rows = []
    for name, title in CAMPAIGNS.items():
        result = results.get(name)
        if result is None:
            rows.append([title, "not run yet", "", "", f"`python benchmarks/faults/{name}.py`"])
            continue
        faults = sum(sum(row.values()) for row in result["counts"].values())
        failed = sum(finding["times"] for finding in result["findings"])
        when = f"{result['date']}, `{result['commit']}`"
        rows.append([title, f"{faults:,}", f"{failed:,}", when, f"`python benchmarks/faults/{name}.py`"])
    return markdown_table(["campaign", "faults tried", "promises broken", "last run", "again"], rows)


def counts(result: dict[str, Any] | None) -> list[str]:
    """What was hit and what came of it."""
    if result is None:
        return ["Not run yet."]
    found = {outcome for row in result["counts"].values() for outcome in row}
    order = sorted(found, key=lambda outcome: (outcome not in GOOD, outcome))
    rows = [
        [kind, *(f"{row.get(outcome, 0):,}" for outcome in order), f"{sum(row.values()):,}"]
        for kind, row in result["counts"].items()
    ]
    return markdown_table(["hit", *order, "tried"], rows)


def make(page: str) -> str:
    """The page with its tables made anew."""
    results = read_results()
    tables = {"summary": summary(results), **{name: counts(results.get(name)) for name in CAMPAIGNS}}
    return SECTION.sub(lambda found: f"{found[1]}{chr(10).join(tables[found[2]])}\n{found[3]}", page)


def main() -> None:
    """Write the page."""
    write_text(PAGE, make(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
