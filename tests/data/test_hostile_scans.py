"""Files that promise more than they hold, never end, or lie: refused in a sentence, and in little memory."""

import gzip
import json
import os
import socket
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from misfm.data import checks
from misfm.data.ingest import ingest
from misfm.data.readers import read_volume
from misfm.data.record import IngestSettings
from misfm.data.scan import find_scans
from misfm.data.store import Store
from misfm.errors import DataError

SPL = np.diag([-1.0, -1.0, 1.0, 1.0])


def nifti(shape=(30, 32, 34), affine=SPL, dtype=np.int16):
    """Header (352 bytes) and voxels of noise, of at most a few thousand voxels of those in ``shape``."""
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_sform(affine, code=1)
    header["vox_offset"] = 352
    count = min(int(np.prod(shape)), 40_000)
    voxels = np.random.default_rng(0).integers(-1000, 1000, count).astype(dtype)
    return header.binaryblock + bytes(4) + voxels.tobytes()


def refused(path, reason, *, most=16 << 20):
    """Reading ``path`` raises one sentence with ``reason`` and takes no more memory than ``most``."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=reason) as error:
            read_volume(path)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert path.name in message
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_that_promises_more_than_the_file_holds(tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    content = nifti((600, 600, 500))[:452]
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    refused(path, "promises 360000000 bytes of voxels where the file holds at most")


def test_voxels_that_end_early_take_what_is_there(tmp_path):
    packed = gzip.compress(nifti((500, 500, 10)) + np.random.default_rng(0).bytes(100_000))
    (tmp_path / "scan.nii.gz").write_bytes(packed)
    refused(tmp_path / "scan.nii.gz", "holds at most 180000")


def test_a_bomb_behind_the_voxels_is_not_unpacked(tmp_path):
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(nifti() + bytes(40 << 20), 1))
    refused(tmp_path / "scan.nii.gz", "goes on behind its last voxel")


def test_more_than_fits_into_memory_is_said_before_it_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "available_bytes", lambda: 1 << 28)
    (tmp_path / "scan.nii.gz").write_bytes(gzip.compress(nifti((300, 300, 300)), 1))
    refused(
        tmp_path / "scan.nii.gz", r"300 x 300 x 300 voxels by its header, which need 0\.3 GiB .* 0\.2 GiB are"
    )


def test_a_scan_of_several_packed_parts_filled_up_with_zeros_is_read(tmp_path):
    content = nifti()
    (tmp_path / "whole.nii").write_bytes(content)
    packed = gzip.compress(content[:5000]) + gzip.compress(content[5000:]) + bytes(512)
    (tmp_path / "parts.nii.gz").write_bytes(packed)
    whole, parts = (read_volume(tmp_path / name) for name in ("whole.nii", "parts.nii.gz"))
    assert np.array_equal(whole.data, parts.data)


def test_want_of_memory_is_not_blamed_on_the_file(tmp_path, monkeypatch):
    (tmp_path / "scan.nii").write_bytes(nifti())

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr("misfm.data.readers.nifti.make_volume", no_memory)
    refused(tmp_path / "scan.nii", r"does not fit into memory \(.* GiB are free\); use a machine with more")


@pytest.mark.parametrize("spacing", [1e-30, 0.0007, 1e4, 3e38])
def test_a_spacing_that_no_scan_has(tmp_path, spacing):
    (tmp_path / "scan.nii").write_bytes(nifti(affine=np.diag([1, 1, spacing, 1])))
    refused(tmp_path / "scan.nii", "spacing of .* mm by its header, and scans have 0.01 to 100 mm|singular")


def test_a_scan_too_large_once_resampled_is_one_of_those_that_stand_aside(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "wrong.nii").write_bytes(nifti(affine=np.diag([99.0, 99, 99, 1])))
    (tmp_path / "scans" / "good.nii").write_bytes(nifti())
    report = ingest([tmp_path / "scans"], tmp_path / "s", IngestSettings(spacing=(0.5, 0.5, 0.5)))
    ((source, reason),) = report.quarantined
    assert (report.added, source) == (1, str(tmp_path / "scans" / "wrong.nii"))
    assert "wrong.nii: From 34 x 32 x 30 voxels of 99 x 99 x 99 mm it would become 6732 x" in reason
    assert "correct the spacing in its header, or choose a coarser one" in reason


def test_whatever_is_raised_about_one_scan_is_its_reason_and_says_where(tmp_path, monkeypatch):
    for name in ("a.nii", "b.nii"):
        (tmp_path / name).write_bytes(nifti())

    def fail(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("misfm.data.ingest.fingerprint", fail)
    report = ingest([tmp_path], tmp_path / "s", IngestSettings())
    place = f"test_hostile_scans.py:{fail.__code__.co_firstlineno + 1}"
    assert len(report.quarantined) == 2
    for source, reason in report.quarantined:
        assert reason.startswith(
            f"{source} was read and cannot be used (ZeroDivisionError: division by zero, "
        )
        assert f"raised in {place}); check its header, and report it if the scan is sound." in reason


def nrrd(path, line=""):
    """A scan, with a line more in its header."""
    sitk.WriteImage(sitk.GetImageFromArray(np.arange(1000, dtype=np.int16).reshape(10, 10, 10)), path)
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(b"\n".join([first, line.encode(), rest]) if line else first + b"\n" + rest)
    return path


@pytest.mark.parametrize("line", ["[" * 1000, "kinds: " + "x" * 1000, "x: " + "x:=" * 400])
def test_a_line_of_which_itk_could_not_complain_does_not_reach_it(tmp_path, line):
    refused(nrrd(tmp_path / "scan.nrrd", line), "a line of its header has more than 500 bytes")


def test_more_axes_than_itk_can_bear_do_not_reach_it(tmp_path):
    header = [
        "NRRD0004",
        "type: short",
        "dimension: 16",
        "sizes:" + " 1" * 16,
        "encoding: raw",
        "endian: little",
    ]
    (tmp_path / "scan.nrrd").write_text("\n".join(header) + "\n\nxx")
    refused(tmp_path / "scan.nrrd", "its dimension is missing, wrong or above 4")


@pytest.mark.parametrize("line", ["# " + "x" * 1000, "content: " + "x" * 1000, "tags:=" + "x: " * 400])
def test_long_lines_of_free_text_are_read(tmp_path, line):
    assert read_volume(nrrd(tmp_path / "scan.nrrd", line)).data.max() == 999


def test_a_path_of_which_itk_could_not_complain_does_not_reach_it(tmp_path):
    folder = tmp_path.joinpath(*["x" * 200] * 5)
    folder.mkdir(parents=True)
    refused(nrrd(folder / "scan.nrrd", "no field"), "a path of more than 800 bytes, with which NRRD is not")


@pytest.fixture
def endless(tmp_path):
    """A folder with a scan, and a pipe, a socket and a device, which would be waited for or never end."""
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "good.nii").write_bytes(nifti())
    for name in ("pipe", "pipe.nii.gz", "pipe.dcm"):
        os.mkfifo(folder / name)
    (folder / "zero.nii").symlink_to("/dev/zero")
    (folder / "loop").symlink_to(folder)
    (folder / "self.nii").symlink_to(folder / "self.nii")
    with socket.socket(socket.AF_UNIX) as unix:
        os.chdir(folder)
        unix.bind("socket.mha")
        yield folder


def test_pipes_sockets_devices_and_loops_in_a_tree_are_not_waited_for(endless, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report = ingest([endless], tmp_path / "s", IngestSettings())
    assert report.added == 1
    reasons = {source.rpartition("/")[2]: reason for source, reason in report.quarantined}
    assert sorted(reasons) == ["pipe.dcm", "pipe.nii.gz", "self.nii", "socket.mha", "zero.nii"]
    assert "self.nii does not exist" in reasons.pop("self.nii")
    assert all("is a pipe, socket or device, no file" in reason for reason in reasons.values())
    for name in ("pipe", "pipe.nii.gz", "zero.nii"):
        with pytest.raises(DataError, match="is a pipe, socket or device"):
            find_scans([endless / name])


@pytest.mark.parametrize("name", ["dataset.json", "pretrain_data.json"])
def test_a_list_that_is_a_pipe_is_not_waited_for(tmp_path, name):
    (tmp_path / "list" / "imagesTr").mkdir(parents=True)
    os.mkfifo(tmp_path / "list" / name)
    (tmp_path / "good.nii").write_bytes(nifti())
    report = ingest([tmp_path], tmp_path / "s", IngestSettings())
    assert report.added == 1
    assert [source.rpartition("/")[2] for source, _ in report.quarantined] == [name]


def test_names_that_are_no_text_are_ingested_and_known_again(tmp_path):
    (tmp_path / "scans").mkdir()
    path = tmp_path / "scans" / os.fsdecode(b"caf\xe9\x1b[2J.nii")
    path.write_bytes(nifti())
    (tmp_path / "scans" / os.fsdecode(b"bad\xff.nii.gz")).write_bytes(b"nothing")
    (tmp_path / "scans" / os.fsdecode(b"itk\xff.mha")).write_bytes(b"ElementDataFile = LOCAL\n")
    first, second = (ingest([tmp_path / "scans"], tmp_path / "s", IngestSettings()) for _ in range(2))
    assert (first.added, second.added, second.skipped) == (1, 0, 1)
    assert first.quarantined == second.quarantined
    assert all(source.startswith("file:///") and r"\xff." in reason for source, reason in first.quarantined)
    (record,) = Store.open(tmp_path / "s").records()
    assert record.case == r"caf\xe9\x1b[2J"
    assert record.source.endswith("/caf%E9%1B%5B2J.nii")


def test_a_list_may_name_what_is_no_text_and_no_path(tmp_path):
    (tmp_path / "good.nii").write_bytes(nifti())
    images = [{"name": f"{path}\ud800\n", "image_path": path} for path in ("good.nii", "\ud800.nii")]
    subjects = {"s": {"sessions": {"t": {"images": images}}}}
    content = {"collection_name": "/C", "datasets": {"d": {"subjects": subjects}}}
    (tmp_path / "pretrain_data.json").write_text(json.dumps(content))
    report = ingest([tmp_path], tmp_path / "s", IngestSettings())
    assert (report.added, len(report.quarantined)) == (1, 1)
    assert Store.open(tmp_path / "s").records()[0].case == r"/C__d__s__t__good.nii\ud800\n"


METAIMAGE = "ObjectType = Image\nNDims = 3\nDimSize = {}\nElementType = MET_SHORT\n{}ElementDataFile = {}\n"
NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: {}\nendian: little\n{}data file: {}\n"


@pytest.mark.parametrize(("suffix", "header"), [(".mhd", METAIMAGE), (".nhdr", NRRD)])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("/dev/zero", "takes its voxels from /dev/zero, outside of its folder"),
        ("../secret.raw", "outside of its folder"),
        ("pipe.raw", "pipe.raw is a pipe, socket or device|pipe.raw is a pipe"),
        ("zero.raw", "zero.raw is a pipe, socket or device"),
        ("gone.raw", "gone.raw does not exist"),
        ("LIST", "spreads its voxels over several files"),
        ("LIST 2", "spreads its voxels over several files"),
        ("slice%09999d%n.raw 1 9 1", "spreads its voxels over several files"),
        ("few.raw", "few.raw cannot be read: its header promises 250000000 bytes"),
    ],
)
def test_headers_that_take_voxels_from_elsewhere(tmp_path, suffix, header, data, reason, capfd):
    (tmp_path / "secret.raw").write_bytes(bytes(2000))
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "pipe.raw")
    (folder / "zero.raw").symlink_to("/dev/zero")
    (folder / "few.raw").write_bytes(bytes(1000))
    extra = "encoding: raw\n" if suffix == ".nhdr" else ""
    path = folder / f"scan{suffix}"
    path.write_text(header.format("500 500 500", extra, data))
    with pytest.raises(DataError, match=reason):
        read_volume(path)
    (scan,) = find_scans([path])
    assert scan.stamp
    assert capfd.readouterr() == ("", "")


def packed_metaimage(path):
    path.write_bytes(
        METAIMAGE.format("5 6 7", "CompressedData = True\n", "LOCAL").encode()
        + zlib.compress(np.random.default_rng(0).bytes(420))[:-40]
    )


def short_metaimage(path):
    path.write_bytes(METAIMAGE.format("500 500 500", "", "LOCAL").encode() + bytes(1000))


def packed_nrrd(path):
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 500 500 500\nendian: little\nencoding: gzip\n\n"
    path.write_bytes(header.encode() + gzip.compress(bytes(1000)))


def text_nrrd(path):
    path.write_bytes(b"NRRD0004\ntype: short\ndimension: 3\nsizes: 500 500 500\nencoding: ascii\n\n1 2 3\n")


def two_files(path):
    path.write_text(METAIMAGE.format("5 6 7", "ElementDataFile = a\n", "/dev/zero"))


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (packed_metaimage, "scan.mha", "ends before its packed content does"),
        (short_metaimage, "scan.mha", "promises 250000000 bytes"),
        (packed_nrrd, "scan.nrrd", "promises 250000000 bytes"),
        (text_nrrd, "scan.nrrd", "promises 125000000 voxels in a file of"),
        (two_files, "scan.mhd", "a does not exist"),
    ],
)
def test_damaged_files_of_itk_say_nothing_on_the_terminal(tmp_path, make, name, reason, capfd):
    make(tmp_path / name)
    with pytest.raises(DataError, match=reason):
        read_volume(tmp_path / name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("name", ["scan.nrrd", "scan.nhdr", "scan.mha", "scan.mhd"])
def test_itk_reads_the_same_voxels(tmp_path, name, dtype, compressed):
    voxels = np.abs(np.random.default_rng(0).integers(0, 200, (4, 5, 6))).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(tmp_path / name), useCompression=compressed)
    assert np.array_equal(read_volume(tmp_path / name).data[0], voxels)


@pytest.mark.parametrize("skip", ["line skip: 1\nbyte skip: 4\n", "byte skip: -1\n"])
def test_voxels_behind_what_a_header_skips(tmp_path, skip):
    voxels = np.arange(210, dtype="<i2").reshape(7, 6, 5)
    start = b"a line\n1234" if "line" in skip else b"anything"
    (tmp_path / "scan.raw").write_bytes(start + voxels.tobytes())
    (tmp_path / "scan.nhdr").write_text(NRRD.format("5 6 7", f"encoding: raw\n{skip}", "scan.raw"))
    assert np.array_equal(read_volume(tmp_path / "scan.nhdr").data[0], voxels)
