"""Pseudonyms: stable, random, kept in one private file outside the store, and no reason says more."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from misfm.data.pseudonyms import give_pseudonyms, read_keys, without_names
from misfm.data.scan import ScanSource
from misfm.errors import ConfigError, DataError

STORE = Path("/nowhere/store")


def scans(*names):
    return [ScanSource(Path(f"/scans/{name}/ct.nii.gz"), name) for name in names]


def test_a_pseudonym_stays_and_the_key_file_says_whose_it_is(tmp_path):
    keys = tmp_path / "private" / "keys.csv"
    first = give_pseudonyms(scans("Doe, John", 'Mary "M"'), keys, STORE)
    assert len({scan.source for scan in first}) == 2
    assert all(scan.source == scan.case == scan.pseudonym for scan in first)
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    second = give_pseudonyms(scans('Mary "M"', "new"), keys, STORE)
    assert second[0].pseudonym == first[1].pseudonym
    assert read_keys(keys) == {
        "/scans/Doe, John/ct.nii.gz": (first[0].pseudonym, "Doe, John"),
        '/scans/Mary "M"/ct.nii.gz': (first[1].pseudonym, 'Mary "M"'),
        "/scans/new/ct.nii.gz": (second[1].pseudonym, "new"),
    }


def test_the_order_of_names_does_not_show(tmp_path):
    names = [f"{i:03d}" for i in range(100)]
    given = [scan.pseudonym for scan in give_pseudonyms(scans(*names), tmp_path / "keys.csv", STORE)]
    assert given != sorted(given)


def test_nothing_is_written_when_all_are_known_and_modes_are_kept(tmp_path):
    keys = tmp_path / "keys.csv"
    give_pseudonyms(scans("one"), keys, STORE)
    keys.chmod(0o640)
    before = keys.stat().st_mtime_ns
    give_pseudonyms(scans("one"), keys, STORE)
    assert keys.stat().st_mtime_ns == before
    give_pseudonyms(scans("two"), keys, STORE)
    assert stat.S_IMODE(keys.stat().st_mode) == 0o640


def test_several_at_once_lose_nothing(tmp_path):
    keys = tmp_path / "keys.csv"
    names = [f"case{i}" for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda name: give_pseudonyms(scans(name, "shared"), keys, STORE), names))
    assert len(read_keys(keys)) == 9
    assert len({shared.pseudonym for _, shared in given}) == 1


def test_a_key_file_in_the_store_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="lies in the store, which must not hold names"):
        give_pseudonyms(scans("one"), tmp_path / "store" / "sub" / ".." / "keys.csv", tmp_path / "store")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a,b\n1,2\n",
        b"pseudonym,source,case\nscan-1,/a,a\nscan-1,/b,b\n",
        b"pseudonym,source,case\nscan-1,/a,a\nscan-2,/a,b\n",
        b"pseudonym,source,case\nscan-1,/a\n",
        b"\x1f\x8b\xff",
        b'pseudonym,source,case\n"open,',
    ],
)
def test_another_file_is_never_overwritten(tmp_path, content):
    keys = tmp_path / "keys.csv"
    keys.write_bytes(content)
    with pytest.raises(DataError, match=r"keys\.csv .*give another file"):
        give_pseudonyms(scans("one"), keys, STORE)
    assert keys.read_bytes() == content


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        (
            "/ward/Doe_John.nii.gz cannot be read (no 'Doe^John' (1970)); copy or export the file again.",
            "scan-1 cannot be read; copy or export the file again.",
        ),
        (
            "/ward/Doe_John.nii.gz has a spacing of 1e+04 mm, and ward has 30 x 41 voxels, 2.5 mm apart.",
            "scan-1 has a spacing of 1e+04 mm, and … has 30 x 41 voxels, 2.5 mm apart.",
        ),
        (
            "/ward/Doe_John.nii.gz takes its voxels from Doe_John.raw, of Doe or john: give NaN to Mary.",
            "scan-1 takes its voxels from …, of … or …: give NaN to ….",
        ),
    ],
)
def test_reasons_lose_whatever_may_be_a_name(reason, kept):
    scan = ScanSource(Path("/ward/Doe_John.nii.gz"), "scan-1", pseudonym="scan-1")
    assert without_names(reason, scan) == kept
