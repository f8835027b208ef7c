import base64
from html.parser import HTMLParser

import numpy as np
import pytest

from misfm.errors import DataError
from misfm.evaluation.arms import Arm
from misfm.report.html import Picture, ReportData, Table, Verdict, render_report
from misfm.report.twins import NOTHING_TO_COMPARE, twin_report

EVIL = "<script>alert('x')</script>\"&"


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed."""

    VOID = frozenset({"meta", "img", "link", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data


def arms(gain: float, *, cases: int = 12, seeds: int = 1) -> list[Arm]:
    generator = np.random.default_rng(0)
    hardness = generator.random(cases) / 2
    return [
        Arm(
            name,
            [(1, 0.1), (2, 0.4)],
            {f"case{i}": {"liver": float(h + extra)} for i, h in enumerate(hardness)},
            s,
        )
        for name, extra in (("scratch", 0.0), ("pretrained", gain))
        for s in range(seeds)
    ]


def rendered(report: ReportData, tmp_path) -> str:
    path = tmp_path / "out" / "report.html"
    render_report(report, path)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(tmp_path):
    text = rendered(twin_report("Twins", arms(0.05), settings={"network": "unet"}), tmp_path)
    page = Page(text)
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert not {"link", "script", "iframe"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 2
    for source in sources:
        kind, encoded = source.split(",")
        assert kind == "data:image/png;base64"
        assert len(base64.b64decode(encoded, validate=True)) > 5000
    assert ("name", "viewport") in page.attributes


def test_every_text_is_escaped(tmp_path):
    report = ReportData(
        title=EVIL,
        verdicts=(Verdict(EVIL, EVIL),),
        figures=(Picture(EVIL, b"png", wide=True),),
        tables=(Table(EVIL, (EVIL, EVIL), ((EVIL, EVIL),)), Table(EVIL, (EVIL,), ((EVIL,),), folded=True)),
        notes=(EVIL,),
        settings={EVIL: EVIL},
    )
    page = Page(rendered(report, tmp_path))
    assert "script" not in page.tags
    # title 2, verdict 2, caption 1, tables 5 and 3, note 1, setting 2
    assert page.text.count(EVIL) == 16
    assert ("alt", EVIL) in page.attributes


def test_hostile_names_survive_from_arm_to_page(tmp_path):
    runs = [Arm(name, [(1, 0.2)], {EVIL: {"$a_{": 0.5}}) for name in ("scratch", EVIL)]
    page = Page(rendered(twin_report("t", runs), tmp_path))
    assert "script" not in page.tags
    assert EVIL in page.text


@pytest.mark.parametrize(("gain", "tone", "word"), [(0.05, "ahead", "Ahead"), (-0.05, "behind", "Behind")])
def test_the_verdict_says_what_came_out(gain, tone, word):
    (verdict,) = twin_report("t", arms(gain)).verdicts
    assert verdict.tone == tone
    assert f"difference {gain:+.3f}" in verdict.headline
    assert verdict.detail.startswith(word)


def test_an_interval_around_zero_is_no_clear_difference():
    runs = arms(0.0)
    (verdict,) = twin_report("t", runs).verdicts
    assert verdict.tone == "level"
    assert "No clear difference" in verdict.detail


def test_a_single_case_is_no_evidence(tmp_path):
    report = twin_report("t", arms(0.2, cases=1))
    (verdict,) = report.verdicts
    assert verdict.tone == "level"
    assert verdict.headline.endswith("difference +0.200")
    assert verdict.detail.startswith("Too few cases to judge")
    assert any("no intervals" in note for note in report.notes)
    assert "[" not in report.tables[0].rows[0][1]
    Page(rendered(report, tmp_path))


def test_labels_absent_everywhere_leave_nothing_to_compare(tmp_path):
    runs = [Arm(name, [(1, 0.2)], {"a": {"x": None}, "b": {"x": None}}) for name in ("scratch", "pretrained")]
    report = twin_report("t", runs)
    assert report.verdicts == (NOTHING_TO_COMPARE,)
    assert len(report.figures) == 1
    assert [table.headers for table in report.tables] == [("case", "scratch", "pretrained")]
    Page(rendered(report, tmp_path))


def test_three_arms_get_a_verdict_and_a_column_each():
    runs = arms(0.05)
    report = twin_report("t", [*runs, Arm("builtin", cases=runs[0].cases)])
    assert [v.headline.split()[0] for v in report.verdicts] == ["pretrained", "builtin"]
    by_label, differences, by_case = report.tables
    assert by_label.headers == ("label", "scratch", "pretrained", "builtin")
    assert differences.headers == ("label", "pretrained", "builtin")
    assert by_case.headers == ("case", "scratch", "pretrained", "builtin")
    assert len(by_case.rows) == 12
    assert by_case.folded


def test_a_single_arm_is_reported_without_a_comparison(tmp_path):
    report = twin_report("t", arms(0)[:1])
    assert "mean Dice" in report.verdicts[0].headline
    assert len(report.figures) == 1
    Page(rendered(report, tmp_path))


def test_weak_evidence_is_named():
    assert any("one seed" in note for note in twin_report("t", arms(0.1)).notes)
    assert any("4 test cases" in note for note in twin_report("t", arms(0.1, cases=4, seeds=2)).notes)
    assert not any("one seed" in note for note in twin_report("t", arms(0.1, seeds=2)).notes)


def test_an_unwritable_report_is_one_sentence_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(DataError, match="Cannot write"):
        render_report(ReportData("t"), tmp_path / "file" / "report.html")
    with pytest.raises(DataError, match="Cannot write"):
        render_report(ReportData("t"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
