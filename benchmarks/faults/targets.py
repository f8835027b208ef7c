"""What misfm reads of users, each with good files to spoil and the functions that read them.

A reader gets the folder of one try, which holds nothing but what it puts there, and returns the bytes
that what it has read honestly takes.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from common import ROOT
from material import FINETUNING, make_dataset, make_dicom, make_label_maps, make_scans, make_weights
from mutations import Editor
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from misfm.cli.options import case_choice, integers, names, numbers
from misfm.commands.arm import read_arm
from misfm.commands.convert import convert_source
from misfm.commands.export import export
from misfm.commands.info import describe_path
from misfm.commands.predict import predict_files
from misfm.config import CompleteSettings, FinetuneSettings, PretrainSettings
from misfm.data.dataset import Dataset
from misfm.data.dataset_fingerprint import DatasetFingerprint
from misfm.data.dicom import read_labels, series_at
from misfm.data.ingest import ingest
from misfm.data.intensity_text import parse_intensity
from misfm.data.label_maps import ingest_label_maps, read_table
from misfm.data.record import IngestSettings
from misfm.data.scan import find_scans
from misfm.data.splits import read_split
from misfm.data.store import Store
from misfm.errors import DataError, MisfmError
from misfm.evaluation.arms import learning_curve
from misfm.evaluation.evaluate import evaluate_folders
from misfm.evaluation.outlook import outlook
from misfm.planning.fill_defaults import recall
from misfm.planning.splits import split_of_run
from misfm.resolve import resolve
from misfm.training.checkpoint import load_checkpoint, restore
from misfm.training.logging import MetricsLog
from misfm.training.optim import OptimizerSettings, build_optimizer
from misfm.training.run import RunFolder, steps_taken
from misfm.weights import describe, from_pretrained, hub, open_source
from misfm.weights.formats import unpickle

GRID = IngestSettings(spacing=(19.0, 19.0, 19.0), intensity="auto")
FOREIGN = ROOT / "tests" / "golden" / "ckpt_nnssl_primusm_voco.pth"
LABEL_GRID = IngestSettings(intensity="ct")


@dataclass(frozen=True)
class Target:
    """One kind of file of users.

    Attributes:
        name: of the kind.
        seeds: good files.
        editor: how they are spoilt.
        read: reads one; returns the bytes that this honestly takes.
        weight: how often it is tried, compared with others.
    """

    name: str
    seeds: tuple[bytes, ...]
    editor: Editor
    read: Callable[[Path, bytes], int]
    weight: int = 1


class Readers:
    """The readers, on good files made once in a folder."""

    def __init__(self, folder: Path) -> None:
        self.scans = make_scans(folder / "scans", 2)
        self.dataset = make_dataset(folder / "dataset", 3, 1)
        self.dicom = make_dicom(folder / "dicom")
        self.maps = make_label_maps(folder / "maps")
        self.weights = make_weights(folder / "weights.safetensors")
        self.resenc = make_weights(folder / "resenc.safetensors", "resenc", 3, (16, 32, 32))
        self.network = open_source(self.weights)
        self.without_plan = torch_bytes({"network_weights": unpickle(FOREIGN)["network_weights"]})
        self.model = from_pretrained(self.weights)
        self.optimizer = build_optimizer(self.model, OptimizerSettings())
        options: dict[str, Any] = {"dataset": str(self.dataset), "weights": "none"}
        given = resolve(FinetuneSettings, recipe="small", options=options, assignments=FINETUNING)
        full = {**given.model_dump(mode="json"), "spacing": [19.0] * 3, "intensity": "ct"}
        self.settings = CompleteSettings.model_validate(full)
        self.run = folder / "run"
        RunFolder(self.run).begin(self.settings, resume=False)

    # Scans

    def scan(self, folder: Path, name: str, content: bytes) -> int:
        """Ingest one file, and read what the store then holds."""
        (folder / name).write_bytes(content)
        return self.ingested(folder, folder / name)

    def ingested(self, folder: Path, source: Path) -> int:
        """Ingest a file or folder; what was added can be read."""
        report = ingest([source], folder / "store", GRID)
        if report.quarantined and not report.added:
            raise DataError(report.quarantined[0][1])
        store = Store.open(folder / "store")
        return sum(
            store.read(record).data.nbytes * 4 + len(store.anchors(record)) for record in store.records()
        )

    def prediction(self, folder: Path, content: bytes) -> int:
        """Label one scan."""
        (folder / "case.nii").write_bytes(content)
        found = predict_files(self.network, [folder / "case.nii"], folder / "masks")
        return sum(_voxels(path) * 4 * 8 for path in found.written.values())

    def meta_header(self, folder: Path, content: bytes) -> int:
        """Ingest a header with its voxels in a file beside it."""
        (folder / "scan.raw").write_bytes(bytes(np.arange(16 * 18 * 20, dtype=np.int16).data))
        return self.scan(folder, "scan.mhd", content)

    def series(self, folder: Path, content: bytes) -> int:
        """Ingest a DICOM series of which one slice is spoilt."""
        (folder / "series").mkdir()
        for number in range(5):
            (folder / "series" / f"{number}.dcm").write_bytes(dicom_slice(number))
        (folder / "series" / "2.dcm").write_bytes(content)
        return self.ingested(folder, folder / "series")

    def enhanced(self, folder: Path, content: bytes) -> int:
        """Ingest an enhanced multi-frame file."""
        (folder / "series").mkdir()
        (folder / "series" / "ct.dcm").write_bytes(content)
        return self.ingested(folder, folder / "series")

    def packed(self, folder: Path, content: bytes) -> int:
        """Ingest a series of packed slices of which one is spoilt."""
        shutil.copytree(self.dicom / "packed", folder / "series")
        max((folder / "series").iterdir()).write_bytes(content)
        return self.ingested(folder, folder / "series")

    def label_object(self, folder: Path, content: bytes) -> int:
        """Read a SEG or RTSTRUCT as a label map of its series."""
        (folder / "labels.dcm").write_bytes(content)
        labels, _ = read_labels(folder / "labels.dcm", series_at(self.dicom / "ct"))
        return labels.data.nbytes * 4

    def list_of_scans(self, folder: Path, content: bytes) -> int:
        """Ingest what a list names, and label it."""
        path = folder / "lists" / "pretrain_data.json"
        path.parent.mkdir()
        shutil.copy(self.scans / "scan_0000.nii.gz", path.parent / "scan.nii.gz")
        path.write_bytes(content)
        size = self.ingested(folder, path)
        predict_files(self.network, [path], folder / "masks")
        return size

    # Datasets

    def _dataset(self, folder: Path, file: str, content: bytes) -> Path:
        own = folder / "dataset"
        own.mkdir()
        for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (own / part).symlink_to(self.dataset / part)
        for name in ("dataset.json", "splits_final.json"):
            shutil.copy(self.dataset / name, own / name)
        (own / file).write_bytes(content)
        return own

    def dataset_json(self, folder: Path, content: bytes) -> int:
        """Open a dataset, find its scans, read a case, score with its labels."""
        own = self._dataset(folder, "dataset.json", content)
        evaluate_folders(own / "labelsTs", own / "labelsTs")
        find_scans([own])
        dataset = Dataset.open(own)
        dataset.cases("Ts")
        dataset.splits()
        describe_path(own)
        image, label = dataset.read_case(dataset.cases()[0])
        return image.data.nbytes * 4 + (0 if label is None else label.data.nbytes)

    def converted(self, folder: Path, content: bytes) -> int:
        """Bring a dataset of the Decathlon into nnU-Net's layout."""
        own, out = folder / "task", folder / "converted"
        for kind in ("images", "labels"):
            (own / kind).mkdir(parents=True)
            file = next((self.dataset / f"{kind}Ts").iterdir())
            shutil.copy(file, own / kind / "scan.nii.gz")
        (own / "dataset.json").write_bytes(content)
        convert_source(own, out)
        return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())

    def splits(self, folder: Path, content: bytes) -> int:
        """Read a split, as the dataset's own and as one that was given."""
        own = self._dataset(folder, "splits_final.json", content)
        read_split(own / "splits_final.json")
        Dataset.open(own).splits()
        shutil.copy(own / "splits_final.json", folder / "split.json")
        split_of_run(Dataset.open(self.dataset), self.settings, folder)
        return 0

    def names(self, folder: Path, content: bytes) -> int:
        """Bring label maps into a store under these names."""
        return self._label_maps(folder, "labels.json", content)

    def label_map(self, folder: Path, content: bytes) -> int:
        """Bring label maps into a store, one of which is spoilt."""
        return self._label_maps(folder, "head_0.nii.gz", content)

    def _label_maps(self, folder: Path, file: str, content: bytes) -> int:
        maps = shutil.copytree(self.maps, folder / "maps")
        (maps / file).write_bytes(content)
        store = Store.create(folder / "store", LABEL_GRID)
        ingest_label_maps(maps, store)
        read_table(store)
        return sum(store.read(record).data.nbytes * 4 for record in store.records())

    def evaluated(self, folder: Path, content: bytes) -> int:
        """Score a prediction."""
        (folder / "predictions").mkdir()
        file = next((self.dataset / "labelsTs").iterdir())
        (folder / "predictions" / file.name).write_bytes(content)
        evaluate_folders(folder / "predictions", self.dataset / "labelsTs")
        return _voxels(file) * 40

    def fingerprint(self, folder: Path, content: bytes) -> int:
        """Open what is known of a dataset, and plan with it."""
        (folder / "dataset_fingerprint.json").write_bytes(content)
        images = DatasetFingerprint.open(Dataset.open(self.dataset), folder)
        images.add(images.dataset.cases(), skip_damaged=True)
        images.shape(images.spacing)
        return 4 << 20

    # Settings and what a run folder holds

    def config(self, folder: Path, content: bytes) -> int:
        """Resolve settings with a file of them."""
        (folder / "config.yaml").write_bytes(content)
        self._resolve(folder / "config.yaml", [])
        return 0

    def assignment(self, folder: Path, content: bytes) -> int:
        """Resolve settings with ``--set``."""
        self._resolve(None, [content.replace(b"\0", b"").decode("utf-8", "surrogateescape")])
        return 0

    def _resolve(self, config: Path | None, assignments: list[str]) -> None:
        options: dict[str, Any] = {"dataset": str(self.dataset)}
        if b"pretext" in (config.read_bytes() if config else "".join(assignments).encode("utf-8", "replace")):
            options = {"store": "s"}
            resolve(
                PretrainSettings, recipe="small", config=config, options=options, assignments=assignments
            ).pretext.build()
        else:
            resolve(FinetuneSettings, recipe="small", config=config, options=options, assignments=assignments)

    def run_settings(self, folder: Path, content: bytes) -> int:
        """Go on with a run that was begun with these settings."""
        run = self._run(folder)
        run.config.write_bytes(content)
        describe_path(run.path)
        given = resolve(FinetuneSettings, recipe="small", options={"dataset": str(self.dataset)})
        recall(given, run)
        run.check(self.settings, resume=True)
        return 0

    def _run(self, folder: Path) -> RunFolder:
        return RunFolder(shutil.copytree(self.run, folder / "run"))

    def metrics(self, folder: Path, content: bytes) -> int:
        """Go on with the log of a run."""
        run = self._run(folder)
        run.metrics.write_bytes(content)
        describe_path(run.path)
        steps_taken(run)
        outlook(learning_curve(run.path))
        with MetricsLog(run, 10, 4) as log:
            log.write(5, {"loss": 1.0})
        return 0

    def scores(self, folder: Path, content: bytes) -> int:
        """Read the scores of an arm."""
        (folder / "test.json").write_bytes(content)
        read_arm("arm", folder, 0)
        return 0

    def checkpoint(self, folder: Path, content: bytes) -> int:
        """Load a checkpoint into the network it is said to be of."""
        (folder / "last.pt").write_bytes(content)
        found = load_checkpoint(folder / "last.pt")
        restore(found, folder / "last.pt", self.model, self.optimizer, None)
        return len(content) * 4

    # Weights

    def own_weights(self, folder: Path, content: bytes) -> int:
        """Describe and load weights, and transfer them."""
        return self._weights(folder, "w.safetensors", content)

    def torch_weights(self, folder: Path, content: bytes) -> int:
        """Describe a checkpoint of another project."""
        return self._weights(folder, "w.pth", content)

    def _weights(self, folder: Path, name: str, content: bytes) -> int:
        (folder / name).write_bytes(content)
        describe_path(folder / name)
        from_pretrained(folder / name, num_classes=2)
        return len(content) * 6

    def adaptation_plan(self, folder: Path, content: bytes) -> int:
        """Describe a checkpoint beside which lies its plan."""
        (folder / "adaptation_plan.json").write_bytes(content)
        (folder / "w.pth").write_bytes(self.without_plan)
        describe(folder / "w.pth")
        return len(self.without_plan) * 6

    def plans(self, folder: Path, content: bytes) -> int:
        """Export for nnU-Net with the plans of a dataset."""
        (folder / "plans").mkdir()
        (folder / "plans" / "nnUNetPlans.json").write_bytes(content)
        export(self.resenc, "nnunet", folder / "out", dataset=folder / "plans")
        return 4 << 20

    def options(self, folder: Path, content: bytes) -> int:
        """Parse a text as each kind of option, and as an address on the hub."""
        text = content.replace(b"\0", b"").decode("utf-8", "surrogateescape")
        parsers: list[Callable[[], Any]] = [
            *(lambda: numbers(text, float, "--spacing"), lambda: numbers(text, int, "--patch-size")),
            *(lambda: integers(text, "--seeds"), lambda: case_choice(text), lambda: names(text)),
            *(lambda: parse_intensity(text), lambda: hub.parse_address(f"hf://{text}")),
        ]
        refused: list[MisfmError] = []
        for parse in parsers:
            try:
                parse()
            except MisfmError as error:
                refused.append(error)
        if refused:
            raise refused[0]
        return 0


def dicom_slice(number: int) -> bytes:
    """One slice of a series, as a file."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    one = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    one.SeriesInstanceUID, one.StudyInstanceUID, one.Modality = "1.2.3", "1.2", "CT"
    one.PatientName, one.PatientID, one.InstanceNumber = "A^B", "7", number
    one.Rows, one.Columns, one.SamplesPerPixel = 16, 18, 1
    one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, 10.0 * number], [1, 0, 0, 0, 1, 0]
    one.PixelSpacing, one.PhotometricInterpretation = [10, 12], "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 0
    one.RescaleSlope, one.RescaleIntercept = 1, -1024
    one.PixelData = np.random.default_rng(number).integers(0, 3000, (16, 18)).astype("<u2").tobytes()
    buffer = io.BytesIO()
    one.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def torch_bytes(content: Any, *, legacy: bool = False) -> bytes:
    """What torch writes, as a zip archive or as the bare pickle of earlier versions."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _voxels(path: Path) -> int:
    return int(np.prod(nib.load(path).shape))
