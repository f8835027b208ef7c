"""The page in a real browser: it loads, draws, goes from case to case, and survives what is missing."""

import numpy as np
import pytest
from viewer.chromium import PROGRAM
from viewer.conftest import served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no chromium on this machine: apt-get install chromium"),
]

READY = "['ready', 'fault'].includes(document.body.dataset.state)"


def text(browser, selector):
    return browser.run(f"document.querySelector('{selector}').innerText")


def open_page(browser, server, place=""):
    browser.said.clear()
    browser.requested.clear()
    browser.go("about:blank")
    browser.go(server.address + place)
    browser.wait(f"location.href.startsWith('http') && document.body && {READY}")


def go_on(browser, act):
    """Do what opens another case, and wait until it is shown."""
    before = text(browser, "#case")
    act()
    browser.wait(f"document.querySelector('#case').innerText !== {before!r} && {READY}")


def count(picture, colour, tolerance=45):
    """Pixels of about a colour."""
    return int((np.abs(picture.astype(int) - np.array(colour)) < tolerance).all(axis=-1).sum())


def is_grey(picture):
    return int((np.ptp(picture.astype(int), axis=-1) < 8).sum())


@pytest.fixture(scope="module")
def server(material):
    with served(material / "masks") as started:
        yield started


def test_it_loads_and_draws_scan_and_labels_and_asks_nobody_else(browser, server):
    open_page(browser, server)
    assert browser.run("document.body.dataset.state") == "ready"
    browser.click("[data-mode=none]")
    bare = browser.picture("#canvas")
    assert np.ptp(bare.mean(axis=-1)) > 120, "nothing is drawn"
    grey = bare[(np.ptp(bare.astype(int), axis=-1) < 8)].mean(axis=-1)
    assert ((grey > 100) & (grey < 160)).sum() > 3000, (
        "the body, 40 HU, is a middle grey in a soft tissue window"
    )
    browser.click("[data-mode=prediction]")
    labelled = browser.picture("#canvas")
    orange = (labelled[..., 0].astype(int) - labelled[..., 2] > 60).sum()
    assert orange > 1000, "the liver is orange"
    assert (np.abs(labelled.astype(int) - bare).max(axis=-1) > 20).sum() > 1000
    assert not browser.said
    elsewhere = [one for one in browser.requested if not one.startswith((server.address, "data:", "blob:"))]
    assert not elsewhere


def test_legend_names_labels_with_volumes_and_dice(browser, server):
    open_page(browser, server, "#1")
    rows = text(browser, "#labels tbody").splitlines()
    assert [one for one in rows if one.strip() in ("liver", "tumour")]
    assert "ref. ml" in text(browser, "#labels thead")
    assert text(browser, "#case").startswith("bert")
    assert "the scan is odd." in text(browser, "#notes")


def test_errors_have_colours_of_their_own_and_the_worst_slice_is_shown(browser, server):
    open_page(browser, server, "#2")
    assert "of 16" in text(browser, "#worst-text")
    at_worst = text(browser, "#place")
    assert "reference:" in at_worst
    browser.press("ArrowUp")
    browser.press("ArrowUp")
    assert text(browser, "#place") != at_worst
    browser.press("4")
    assert (
        browser.run("document.querySelector('[data-mode=difference]').getAttribute('aria-checked')") == "true"
    )
    assert [name for name in ("missed", "too much") if name in text(browser, "#labels tbody")]
    browser.press("w")
    assert text(browser, "#place") == at_worst
    browser.run("document.querySelector('#opacity').value = 1; document.querySelector('#opacity').oninput()")
    picture = browser.picture("#canvas")
    assert count(picture, (0x56, 0xB4, 0xE9)) > 100, "what was missed is blue"
    assert count(picture, (0xE6, 0x9F, 0x00)) > 100, "what is too much is orange"


def test_keys_go_from_case_to_case_and_worst_come_first(browser, server, material):
    with served(material / "masks") as scored:
        scored.session.score_in_background()
        open_page(browser, scored)
        browser.wait("document.querySelectorAll('#cases .dice').length === 3")
        names = [
            one.split("\n")[0]
            for one in browser.run("[...document.querySelectorAll('#cases li')].map(o => o.innerText)")
        ]
        assert names == ["carl", "bert", "anna"]
        browser.run("document.querySelector('#cases button').click()")
        browser.wait(f"document.querySelector('#case').innerText.startsWith('carl') && {READY}")
        first = browser.picture("#canvas")
        go_on(browser, lambda: browser.press("n"))
        assert text(browser, "#case").startswith("bert")
        go_on(browser, lambda: browser.press("ArrowRight"))
        assert text(browser, "#case").startswith("anna")
        assert (browser.picture("#canvas") != first).any()
        go_on(browser, lambda: browser.press("p"))
        assert text(browser, "#case").startswith("bert")


def test_brightness_and_views_change_the_picture(browser, server):
    open_page(browser, server)
    browser.press("5")
    soft = browser.picture("#canvas")
    browser.run("(() => { const w = document.querySelector('#window'); w.value = 1; w.onchange() })()")
    assert browser.run("document.querySelector('#high').value") == "80"
    brain = browser.picture("#canvas")
    assert (np.abs(soft.astype(int) - brain).max(axis=-1) > 10).sum() > 1000
    browser.press("s")
    axial = browser.picture("#canvas")
    assert (np.abs(axial.astype(int) - brain).max(axis=-1) > 10).sum() > 1000
    browser.press("g")
    browser.press("2")
    assert (np.ptp(browser.picture("#canvas").astype(int), axis=-1) > 60).sum() > 500, "labels in 3D"
    browser.press("a")
    assert not browser.said


def test_labels_can_be_hidden(browser, server):
    open_page(browser, server)
    browser.press("2")
    both = browser.picture("#canvas")
    browser.click("#labels .swatch")
    without = browser.picture("#canvas")
    orange = [(one[..., 0].astype(int) - one[..., 2] > 60).sum() for one in (both, without)]
    assert orange[1] < orange[0] / 5


def test_missing_files_are_said_and_the_next_case_is_shown(browser, copied):
    dataset = copied / "Dataset001"
    with served(dataset) as server:
        (dataset / "imagesTr" / "anna_0000.nii.gz").unlink()
        (dataset / "labelsTr" / "bert.nii.gz").unlink()
        open_page(browser, server)
        assert browser.run("document.body.dataset.state") == "fault"
        assert "anna_0000.nii.gz is missing" in text(browser, "#fault")
        go_on(browser, lambda: browser.press("n"))
        assert browser.run("document.body.dataset.state") == "ready"
        assert "bert.nii.gz" in text(browser, "#notes")
        assert np.ptp(browser.picture("#canvas").mean(axis=-1)) > 120
        assert browser.run("document.querySelector('#fault').hidden")
        go_on(browser, lambda: browser.press("n"))
        assert "liver" in text(browser, "#labels")


def test_a_wrong_token_shows_nothing(browser, server):
    browser.go("about:blank")
    browser.go(server.address.replace(server.token, "A" * len(server.token)))
    browser.wait("location.href.startsWith('http') && document.body.innerText.includes('Wrong token')")
    assert browser.run("document.querySelector('canvas')") is None


def test_a_name_with_markup_is_text(browser, tmp_path, material):
    name = "<img src=x onerror=alert(1)>"
    folder = tmp_path / "scans"
    folder.mkdir()
    source = material / "Dataset001" / "imagesTr" / "anna_0000.nii.gz"
    (folder / f"{name}.nii.gz").write_bytes(source.read_bytes())
    (folder / "b.nii.gz").write_bytes(source.read_bytes())
    with served(folder) as server:
        open_page(browser, server)
        assert browser.run("document.querySelectorAll('#cases img').length") == 0
        assert name in text(browser, "#cases")
