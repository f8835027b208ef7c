"""What benchmarks share: whose turn it is, what is printed, and what is kept."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import measure  # type: ignore[import-not-found]

    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    yield measure
    del sys.modules["measure"]


def test_those_that_are_timed_take_turns_and_warm_up(measure: ModuleType) -> None:
    calls: list[tuple[str, int]] = []
    times = measure.alternate({name: lambda turn, name=name: calls.append((name, turn)) for name in "ab"}, 2)
    assert calls == [("b", -1), ("a", -1), ("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert {name: len(measured.wall) for name, measured in times.items()} == {"a": 2, "b": 2}


def test_seconds_are_of_one_of_many(measure: ModuleType) -> None:
    times = measure.alternate({"sleeps": lambda _: time.sleep(0.02)}, 1, warm_up=0, count=10)
    assert 0.002 <= times["sleeps"].wall[0] < 0.02


def test_seconds_of_other_processes_count(measure: ModuleType) -> None:
    before = measure.cpu_seconds()
    spent = measure.in_process([sys.executable, "-c", "sum(range(10**6))"])
    assert 0 < spent["cpu_s"] <= measure.cpu_seconds() - before
    assert spent["wall_s"] > 0


def test_a_report_is_one_line_and_a_file(measure: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    times = {"misfm": measure.Times([1.0, 2.0, 3.0], [1.0] * 3), "peer": measure.Times([4.0] * 3, [3.0] * 3)}
    measure.report("some", times, per="scan", floor=measure.Floor("copying", 0.5), size=7)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == measure.result("some")
    assert json.loads(line)["times_as_long"] == {"peer": {"wall": 2.0, "cpu": 3.0}}
    assert json.loads(line)["floor"] == {"what": "copying", "seconds": 0.5}
    assert json.loads(line)["size"] == 7


def test_what_is_skipped_says_why_and_keeps_what_was_measured(
    measure: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    measure.report("gpu", {})
    capsys.readouterr()
    measure.skipped("gpu")
    assert json.loads(capsys.readouterr().out) == {"benchmark": "gpu", "skipped": "no GPU here"}
    assert "skipped" not in measure.result("gpu")
