"""Raw data in the publishers' form become the data sets of the studies."""

from __future__ import annotations

import http.server
import io
import json
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import data  # noqa: E402
import data_sources  # noqa: E402

SPLITS = {"train": ["kbp_001"], "val": ["kbp_201"], "test": ["kbp_241"], "unlabelled": ["kbp_002"], "few": {}}


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


class TestSplits:
    @pytest.fixture(scope="class")
    def splits(self) -> dict[str, data.Splits]:
        return json.loads(data.SPLITS.read_text(encoding="utf-8"))

    @pytest.mark.parametrize(
        ("name", "sizes"), [("hippocampus", (41, 21, 41, 116)), ("head-neck", (24, 8, 24, 185))]
    )
    def test_parts_share_no_case(self, splits: dict[str, data.Splits], name: str, sizes: tuple[int]) -> None:
        parts = [set(splits[name][part]) for part in ("train", "val", "test", "unlabelled")]
        assert tuple(map(len, parts)) == sizes
        assert len(set().union(*parts)) == sum(sizes)

    @pytest.mark.parametrize("name", ["hippocampus", "head-neck"])
    def test_few_cases_are_nested_in_train(self, splits: dict[str, data.Splits], name: str) -> None:
        lists = [set(splits[name]["few"][number]) for number in sorted(splits[name]["few"], key=int)]
        lists.append(set(splits[name]["train"]))
        assert all(few < more for few, more in pairwise(lists))
        assert all(int(number) == len(few) for number, few in splits[name]["few"].items())


class TestHeadNeck:
    SPACING = (4.0, 3.5, 2.5)
    BODY = (slice(10, 20), slice(30, 50), slice(100, 128))

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        folder = tmp_path / "open-kbp"
        for name in ("kbp_001", "kbp_201", "kbp_241", "kbp_002"):
            patient = folder / data.open_kbp_folder(name)
            patient.mkdir(parents=True)
            lines = [",data"]
            for i in range(10, 20):
                for j in range(30, 50):
                    lines += [f"{(i * 128 + j) * 128 + k},{1000 + i}.0" for k in range(100, 128)]
            lines.append(f"{(19 * 128 + 49) * 128 + 127},20000.0")  # metal
            (patient / "ct.csv").write_text("\n".join(lines))
            (patient / "voxel_dimensions.csv").write_text("\n".join(map(str, self.SPACING)))
            for value, organ in enumerate(data.ORGANS):
                first = ((12 + value) * 128 + 40) * 128 + 110  # each overlaps with none but the last two
                indices = [first, first + 1] if organ != "Mandible" else [first - 128 * 128, first]
                (patient / f"{organ}.csv").write_text("\n".join([",data", *(f"{i}," for i in indices)]))
        return folder

    def convert(self, source: Path, out: Path) -> Path:
        data.convert_head_neck(data_sources.open_source(source), SPLITS, out)
        return out / "Dataset002_HeadNeckCT"

    def test_scan_is_hounsfield_units_around_the_body(self, source: Path, tmp_path: Path) -> None:
        scan = voxels(self.convert(source, tmp_path) / "imagesTr" / "kbp_001_0000.nii.gz")
        assert scan.shape == (10, 20, 28)
        assert scan.dtype == np.int16
        assert scan[0, 0, 0] == 1010 - 1024
        assert scan[9, 0, 0] == 1019 - 1024
        assert scan[-1, -1, -1] == 3071

    def test_centre_of_the_grid_is_the_origin(self, source: Path, tmp_path: Path) -> None:
        image = nib.load(self.convert(source, tmp_path) / "imagesTs" / "kbp_241_0000.nii.gz")
        centre = np.array([63.5, 63.5, 63.5]) - [10, 30, 100]
        np.testing.assert_allclose(image.affine @ [*centre, 1], [0, 0, 0, 1], atol=1e-5)
        assert nib.aff2axcodes(image.affine) == ("P", "L", "I")
        assert image.header.get_zooms() == self.SPACING

    def test_later_organs_stay_where_two_overlap(self, source: Path, tmp_path: Path) -> None:
        labels = voxels(self.convert(source, tmp_path) / "labelsTr" / "kbp_201.nii.gz")
        expected = np.zeros((10, 20, 28), np.uint8)
        for value in range(4):
            expected[2 + value, 10, 10:12] = value + 1
        expected[5:7, 10, 10] = 5  # the mandible took a voxel of the left parotid
        np.testing.assert_array_equal(labels, expected)

    def test_unlabelled_scans_have_no_labels(self, source: Path, tmp_path: Path) -> None:
        self.convert(source, tmp_path)
        assert [path.name for path in tmp_path.rglob("*kbp_002*")] == ["kbp_002.nii.gz"]

    def test_an_archive_is_as_good_as_a_folder(self, source: Path, tmp_path: Path) -> None:
        folder = self.convert(source, tmp_path / "a")
        archive = shutil.make_archive(str(tmp_path / "main"), "zip", source.parent, source.name)
        zipped = self.convert(Path(archive), tmp_path / "b")
        for path in folder.rglob("*.nii.gz"):
            np.testing.assert_array_equal(voxels(path), voxels(zipped / path.relative_to(folder)))


HIPPOCAMPI = {
    "train": ["hippocampus_001"],
    "val": [],
    "test": ["hippocampus_003"],
    "unlabelled": ["hippocampus_004"],
    "few": {"1": ["hippocampus_001"]},
}


class TestHippocampus:
    @pytest.fixture
    def archive(self, tmp_path: Path) -> Path:
        path = tmp_path / "Task04_Hippocampus.tar"
        with tarfile.open(path, "w") as tar:
            for folder in ("imagesTr", "labelsTr"):
                for name in ("hippocampus_001", "hippocampus_003", "hippocampus_004", "._hippocampus_001"):
                    content = f"{folder} {name}".encode()
                    member = tarfile.TarInfo(f"Task04_Hippocampus/{folder}/{name}.nii.gz")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        return path

    def test_files_are_copied_to_their_parts(self, archive: Path, tmp_path: Path) -> None:
        data.convert_hippocampus(data_sources.open_source(archive), HIPPOCAMPI, tmp_path)
        dataset = tmp_path / "Dataset001_Hippocampus"
        found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.nii.gz")}
        assert found == {
            "Dataset001_Hippocampus/imagesTr/hippocampus_001_0000.nii.gz": "imagesTr hippocampus_001",
            "Dataset001_Hippocampus/labelsTr/hippocampus_001.nii.gz": "labelsTr hippocampus_001",
            "Dataset001_Hippocampus/imagesTs/hippocampus_003_0000.nii.gz": "imagesTr hippocampus_003",
            "Dataset001_Hippocampus/labelsTs/hippocampus_003.nii.gz": "labelsTr hippocampus_003",
            "unlabelled/hippocampus/hippocampus_004.nii.gz": "imagesTr hippocampus_004",
        }
        assert json.loads((dataset / "fewshot.json").read_text()) == {"1": ["hippocampus_001"]}
        assert json.loads((dataset / "dataset.json").read_text())["numTraining"] == 1

    def test_a_missing_file_is_named(self, archive: Path, tmp_path: Path) -> None:
        splits = {**HIPPOCAMPI, "test": ["hippocampus_002"]}
        with pytest.raises(SystemExit, match=r"Task04_Hippocampus\.tar lacks imagesTr/hippocampus_002"):
            data.convert_hippocampus(data_sources.open_source(archive), splits, tmp_path)
        assert not (tmp_path / "Dataset001_Hippocampus" / "dataset.json").exists()


def test_left_atrium_by_published_lists(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    names = [f"N{number:02d}" for number in range(13)]
    source = tmp_path / "UA-MT" / "data"
    for number, name in enumerate(names):
        folder = source / "2018LA_Seg_Training Set" / name
        folder.mkdir(parents=True)
        with h5py.File(folder / "mri_norm2.h5", "w") as file:
            image = np.full((4, 5, 6), number / 10)
            image[1, 2, 3] += 2.5
            file["image"], file["label"] = image, (image > 2).astype(np.uint8)
    (source / "train.list").write_text("\n".join(names[:12]))
    (source / "test.list").write_text(names[12])
    data.convert_left_atrium(data_sources.open_source(source.parent), tmp_path)

    dataset = tmp_path / "Dataset003_LeftAtrium"
    scan = voxels(dataset / "imagesTs" / "la_N12_0000.nii.gz")
    assert scan[1, 2, 3] == 500
    assert scan.sum() == 500
    assert voxels(dataset / "labelsTs" / "la_N12.nii.gz").sum() == 1
    (split,) = json.loads((dataset / "splits_final.json").read_text())
    assert split == {"train": ["la_N00", "la_N01"], "val": [f"la_{name}" for name in names[2:12]]}


class TestDigest:
    @pytest.fixture
    def made(self, tmp_path: Path) -> Path:
        dataset = tmp_path / "Dataset003_LeftAtrium"
        data.write_nifti(dataset / "imagesTr" / "a.nii.gz", np.ones((2, 3, 4), np.int16), np.eye(4))
        data.write_description(
            dataset,
            {"train": ["a"], "val": [], "few": {}},
            channel="MR",
            labels=("background",),
            licence="",
            reference="",
        )
        return tmp_path

    def test_packing_does_not_matter(self, made: Path) -> None:
        before = data.digest("left-atrium", made)
        path = made / "Dataset003_LeftAtrium" / "imagesTr" / "a.nii.gz"
        image = nib.load(path)
        nib.Nifti1Image(np.asarray(image.dataobj), image.affine + 1e-6).to_filename(path)
        assert data.digest("left-atrium", made) == before

    @pytest.mark.parametrize(("value", "shift"), [(2, 0.0), (1, 0.5)])
    def test_voxels_and_places_do(self, made: Path, value: int, shift: float) -> None:
        before = data.digest("left-atrium", made)
        path = made / "Dataset003_LeftAtrium" / "imagesTr" / "a.nii.gz"
        data.write_nifti(path, np.full((2, 3, 4), value, np.int16), np.eye(4) + shift)
        assert data.digest("left-atrium", made) != before


CONTENT = bytes(range(256)) * 100


ASKED: list[str | None] = []
"""Ranges that the server was asked for."""


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        ASKED.append(wanted)
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if self.path != "/file":
            self.send_error(404)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(CONTENT) - first))
        self.end_headers()
        self.wfile.write(CONTENT[first:])

    def log_message(self, *_: object) -> None:
        pass


class TestDownload:
    @pytest.fixture
    def address(self) -> Iterator[str]:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
        ASKED.clear()
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.server_close()

    def test_goes_on_where_it_stopped(self, address: str, tmp_path: Path) -> None:
        (tmp_path / "file.part").write_bytes(CONTENT[:1000])
        data_sources.download(f"{address}/file", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == CONTENT
        assert ASKED == ["bytes=1000-"]

    def test_what_is_there_is_not_fetched_again(self, address: str, tmp_path: Path) -> None:
        read = data_sources.from_address(address, tmp_path)
        assert read("file") == read("file") == CONTENT
        assert ASKED == [None]

    def test_another_checksum_is_refused(self, address: str, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="another MD5"):
            data_sources.download(f"{address}/file", tmp_path / "file", md5="0" * 32)
        assert list(tmp_path.iterdir()) == []

    def test_a_missing_address_is_named(self, address: str, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="gone: 404"):
            data_sources.download(f"{address}/gone", tmp_path / "gone")
