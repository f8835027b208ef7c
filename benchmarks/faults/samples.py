"""Good files of every kind that misfm reads of users, how each is spoilt, and how often."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import yaml
from mutations import (
    any_bytes,
    any_json,
    any_json_line,
    any_text,
    dicom_element,
    header_text,
    nifti_field,
    one_of,
    safetensors_header,
    within_gzip,
)
from targets import FOREIGN, Readers, Target, dicom_slice, torch_bytes

from misfm.data.dataset import Dataset
from misfm.data.dataset_fingerprint import FILE, DatasetFingerprint
from misfm.evaluation.evaluate import evaluate_folders
from misfm.training.checkpoint import Checkpoint, save_checkpoint
from misfm.weights.formats import unpickle

SETTINGS_TEXTS = (
    "network={name: unet, options: {channels: [4, 8]}}",
    "training.optimizer.lr=0.001",
    "augmentation.p_noise=0.5",
    "patch_size=[16, 16, 16]",
    "pretext={name: mae, options: {mask_ratio: 0.6}}",
    "training.schedule={name: sawtooth}",
    "batch_size=2",
    "training.num_workers=2",
    "licence=CC0",
    "unlabelled={store: s}",
)
PLANS = {
    "dataset_name": "Dataset007_X",
    "plans_name": "nnUNetPlans",
    "original_median_spacing_after_transp": [3.0, 1.0, 1.0],
    "original_median_shape_after_transp": [20, 32, 32],
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
    "image_reader_writer": "SimpleITKIO",
    "experiment_planner_used": "ExperimentPlanner",
    "label_manager": "LabelManager",
    "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0, "std": 1.0, "min": 0.0, "max": 2.0}},
    "configurations": {
        "3d_fullres": {
            "patch_size": [16, 32, 32],
            "spacing": [3.0, 1.0, 1.0],
            "batch_size": 2,
            "normalization_schemes": ["CTNormalization"],
        }
    },
}
"""What nnU-Net plans for a dataset, as far as an export reads it."""
ADAPTATION = {
    "trainer_name": "BaseEvaMAETrainer",
    "pretrain_plan": {"configurations": {"onemmiso": {"patch_size": [32, 32, 32], "spacing": [1, 1, 1]}}},
    "architecture_plans": {"arch_class_name": "PrimusM", "arch_kwargs": {"embed_dim": 48}},
    "pretrain_num_input_channels": 1,
    "pretrain_patch_size": [32, 32, 32],
}
IMAGE = {"name": "a.nii.gz", "modality": "CT", "image_path": "scan.nii.gz"}
LISTED = {
    "collection_name": "Collection",
    "datasets": {"Dataset001": {"subjects": {"sub-1": {"sessions": {"ses-1": {"images": [IMAGE]}}}}}},
}
LISTED_TRAINING = {
    "modality": {"0": "CT"},
    "labels": {"0": "background", **{str(value): f"label {value}" for value in range(1, 9)}},
    "training": [{"image": "./images/scan.nii.gz", "label": "./labels/scan.nii.gz"}],
    "test": [],
}
DECATHLON = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver"}, "file_ending": ".nii.gz"}


def all_targets(folder: Path) -> list[Target]:
    """Every kind of file that misfm reads of users, with good files in ``folder``."""
    made = Readers(folder)
    return [
        *scan_targets(made, folder),
        *dataset_targets(made),
        *run_targets(made, folder),
        *other_targets(made),
    ]


def scan_targets(made: Readers, folder: Path) -> list[Target]:
    """Scans, and lists of them."""
    packed = (made.scans / "scan_0000.nii.gz").read_bytes()
    plain, nifti = gzip.decompress(packed), one_of(nifti_field, nifti_field, any_bytes)
    nrrd, meta = itk_bytes(folder, ".nrrd"), itk_bytes(folder, ".mha")

    def scan(name: str) -> Callable[[Path, bytes], int]:
        return lambda path, content: made.scan(path, name, content)

    return [
        Target("NIfTI", (plain,), nifti, scan("scan.nii"), 6),
        Target("NIfTI, gzip", (packed,), within_gzip(nifti), scan("scan.nii.gz"), 6),
        Target("NIfTI, predict", (plain,), nifti, made.prediction, 3),
        Target("NRRD", (nrrd,), one_of(header_text, any_bytes), scan("scan.nrrd"), 6),
        Target("MetaImage", (meta,), one_of(header_text, any_bytes), scan("scan.mha"), 6),
        Target("MetaImage, detached", (itk_bytes(folder, ".mhd"),), any_text, made.meta_header, 4),
        Target("DICOM", (dicom_slice(2),), one_of(dicom_element, any_bytes), made.series, 6),
        *dicom_targets(made),
        Target("pretrain_data.json", json_of(LISTED), any_json, made.list_of_scans, 5),
    ]


def dicom_targets(made: Readers) -> list[Target]:
    """Files of many images, packed images, and label objects."""
    edit = one_of(dicom_element, dicom_element, any_bytes)

    def file(name: str) -> tuple[bytes, ...]:
        return ((made.dicom / name).read_bytes(),)

    return [
        Target("DICOM, enhanced", file("enhanced.dcm"), edit, made.enhanced, 4),
        Target("DICOM, JPEG 2000", file("packed.dcm"), edit, made.packed, 4),
        Target("DICOM SEG", file("seg.dcm"), edit, made.label_object, 4),
        Target("RTSTRUCT", file("rtstruct.dcm"), edit, made.label_object, 4),
    ]


def dataset_targets(made: Readers) -> list[Target]:
    """Labelled datasets, label maps and predictions."""
    packed = within_gzip(one_of(nifti_field, nifti_field, any_bytes))
    noted = json.loads((made.dataset / "dataset.json").read_text())
    noted["subjects"] = {"phantom_tr_000": "A", "phantom_tr_001": "B"}
    noted["annotated_labels"] = {"phantom_ts_000": list(noted["labels"])}
    splits, names = made.dataset / "splits_final.json", made.maps / "labels.json"
    label = next((made.dataset / "labelsTs").iterdir()).read_bytes()
    return [
        Target("dataset.json", json_of(noted, DECATHLON), any_json, made.dataset_json, 5),
        Target("dataset.json, convert", json_of(LISTED_TRAINING), any_json, made.converted, 3),
        Target("splits", (splits.read_bytes(),), any_json, made.splits, 5),
        Target("labels.json", (names.read_bytes(),), any_json, made.names, 4),
        Target("label maps", ((made.maps / "head_0.nii.gz").read_bytes(),), packed, made.label_map, 4),
        Target("predictions", (label,), packed, made.evaluated, 4),
    ]


def run_targets(made: Readers, folder: Path) -> list[Target]:
    """Settings, and what a run folder holds."""
    images = DatasetFingerprint(Dataset.open(made.dataset))
    images.add(images.dataset.cases())
    images.save(folder)
    state = Checkpoint(4, made.model.state_dict(), made.optimizer.state_dict(), None, None)
    save_checkpoint(folder / "last.pt", state)
    scores = evaluate_folders(made.dataset / "labelsTs", made.dataset / "labelsTs")
    rows = [{"step": step, "loss": 1 / step, "validation_dice": 0.1 * step} for step in range(1, 8)]
    metrics = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    settings, texts = made.settings.model_dump(mode="json"), [line.encode() for line in SETTINGS_TEXTS]
    return [
        Target("settings, YAML", tuple(settings_files(settings)), any_text, made.config, 8),
        Target("settings, --set", tuple(texts), any_text, made.assignment, 8),
        Target("options", (b"1,2,3", b"ct:-200,600", b"owner/repo@main/file.pt"), any_text, made.options, 6),
        Target("config.yaml", (settings_file(settings),), any_text, made.run_settings, 5),
        Target("metrics.jsonl", (metrics,), any_json_line, made.metrics, 5),
        Target("scores", json_of(scores), any_json, made.scores, 4),
        Target("dataset_fingerprint.json", ((folder / FILE).read_bytes(),), any_json, made.fingerprint, 4),
        Target("last.pt", ((folder / "last.pt").read_bytes(),), any_bytes, made.checkpoint, 6),
    ]


def other_targets(made: Readers) -> list[Target]:
    """Weights, and plans of other projects."""
    own, described = made.weights.read_bytes(), one_of(any_bytes, safetensors_header)
    checkpoints = (FOREIGN.read_bytes(), torch_bytes(unpickle(FOREIGN), legacy=True))
    return [
        Target("weights", (own,), described, made.own_weights, 8),
        Target("checkpoints, torch", checkpoints, any_bytes, made.torch_weights, 5),
        Target("adaptation_plan.json", json_of(ADAPTATION), any_json, made.adaptation_plan, 4),
        Target("nnUNetPlans.json", json_of(PLANS), any_json, made.plans, 4),
    ]


def json_of(*contents: Any) -> tuple[bytes, ...]:
    """Files of JSON."""
    return tuple(json.dumps(content, indent=1).encode() for content in contents)


def itk_bytes(folder: Path, ending: str) -> bytes:
    """A small scan in a format that SimpleITK writes; of a detached header the header alone."""
    draw = np.random.default_rng(0)
    image = sitk.GetImageFromArray(draw.integers(-1000, 1000, (16, 18, 20)).astype(np.int16))
    image.SetSpacing((18.0, 19.0, 20.0))
    sitk.WriteImage(image, str(folder / f"scan{ending}"), useCompression=False)
    return (folder / f"scan{ending}").read_bytes()


def settings_file(settings: Any) -> bytes:
    """Settings as ``config.yaml`` has them."""
    return yaml.safe_dump(settings, sort_keys=False).encode()


def settings_files(settings: Any) -> list[bytes]:
    """Files of settings: all of a run's, and a few."""
    few = {"extends": "small", "batch_size": 2, "training": {"steps": 4, "optimizer": {"lr": 1e-3}}}
    task = {"pretext": {"name": "mae", "options": {"mask_ratio": 0.6}}, "licence": "CC0", "generated": 2}
    return [settings_file(content) for content in (settings, few, task)]
