"""Quarantine: evidence of what stood aside, and the way back for what only looked odd."""

import numpy as np
import pytest

from misfm.data.ingest import ingest
from misfm.data.record import IngestSettings
from misfm.data.store import Store
from misfm.errors import ConfigError, DataError
from tests.data.test_ingest import ct, save

NATIVE = IngestSettings()


def blocks(seed):
    """A scan that was enlarged, so that most neighbours are equal, as in label maps."""
    return np.repeat(ct(seed), 5, axis=0)


@pytest.fixture
def odd(tmp_path):
    """A scan, a file that looks like a label map, and one that is cut short."""
    save(tmp_path / "scans" / "case0.nii.gz", ct())
    save(tmp_path / "scans" / "blocks.nii.gz", blocks(1))
    cut = save(tmp_path / "scans" / "cut.nii.gz", ct(2))
    cut.write_bytes(cut.read_bytes()[:-100])
    return tmp_path / "scans"


def test_what_is_known_of_a_scan_is_kept_with_the_reason(odd, tmp_path):
    ingest([odd], tmp_path / "s", NATIVE)
    evidence = Store.open(tmp_path / "s").evidence()
    enlarged, cut = evidence[str(odd / "blocks.nii.gz")], evidence[str(odd / "cut.nii.gz")]
    assert enlarged.is_judgement
    assert enlarged.shape == (34, 32, 150)
    assert enlarged.spacing == (1, 1, 1)
    assert enlarged.intensities == (-1010, 199)
    assert f"1 files, {(odd / 'blocks.nii.gz').stat().st_size} bytes" in enlarged.stamp
    assert enlarged.when.endswith("+00:00")
    assert not cut.is_judgement
    assert cut.shape is None


def test_a_released_scan_is_taken_by_the_next_ingest(odd, tmp_path):
    ingest([odd], tmp_path / "s", NATIVE)
    release = Store.open(tmp_path / "s").release("blocks.nii.gz")
    assert "looks like a label map" in release.reason
    report = ingest([odd], tmp_path / "s", NATIVE)
    assert (report.added, report.skipped, len(report.quarantined)) == (1, 1, 1)
    store = Store.open(tmp_path / "s")
    assert [record.case for record in store.records()] == ["blocks", "case0"]
    assert store.released() == [release]
    assert list(store.evidence()) == [str(odd / "cut.nii.gz")]


def test_a_release_is_for_the_file_that_was_looked_at(odd, tmp_path):
    ingest([odd], tmp_path / "s", NATIVE)
    Store.open(tmp_path / "s").release(str(odd / "blocks.nii.gz"))
    save(odd / "blocks.nii.gz", blocks(3))
    assert len(ingest([odd], tmp_path / "s", NATIVE).quarantined) == 2


def test_what_cannot_be_released(odd, tmp_path):
    ingest([odd], tmp_path / "s", NATIVE)
    store = Store.open(tmp_path / "s")
    with pytest.raises(
        DataError, match=r"cut\.nii\.gz cannot be released, for nobody can judge otherwise: .*cannot be read"
    ):
        store.release("cut.nii.gz")
    with pytest.raises(ConfigError, match=r"case0\.nii\.gz names 0 of the 2 quarantined scans"):
        store.release("case0.nii.gz")
    save(odd / "sub" / "blocks.nii.gz", blocks(3))
    ingest([odd], tmp_path / "s", NATIVE)
    with pytest.raises(ConfigError, match="names 2 of the 3 quarantined scans"):
        store.release("blocks.nii.gz")
    assert store.release(str(odd / "sub" / "blocks.nii.gz"))
