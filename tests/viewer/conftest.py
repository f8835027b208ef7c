"""A small dataset with predictions, served by the viewer, and a browser that looks at it."""

import shutil
from contextlib import contextmanager
from threading import Thread

import nibabel as nib
import numpy as np
import pytest
from viewer.chromium import PROGRAM, Browser

from misfm.commands.view import collection_of
from misfm.files import write_json
from misfm.viewer import Session, ViewerServer

AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])
SHAPE = (30, 28, 16)
"""(W, H, D), as nibabel has it."""
NAMES = {"background": 0, "liver": 1, "tumour": 2}


def save(path, voxels):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)


def scan_of(number):
    voxels = np.full(SHAPE, -1000, np.int16)
    voxels[4:26, 4:24, 1:15] = 40 + number
    voxels[10:20, 10:18, 4:12] = 120
    return voxels


def label_map_of(shift):
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[10 + shift : 20 + shift, 10:18, 4:12] = 1
    voxels[12 : 15 + shift, 12:15, 6:9] = 2
    return voxels


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """A dataset of three cases, and predictions of its images that get worse from case to case."""
    folder = tmp_path_factory.mktemp("viewer")
    dataset, masks = folder / "Dataset001", folder / "masks"
    cases = {}
    for number, name in enumerate(("anna", "bert", "carl")):
        image, mask = dataset / "imagesTr" / f"{name}_0000.nii.gz", masks / f"{name}.nii.gz"
        save(image, scan_of(number))
        save(dataset / "labelsTr" / f"{name}.nii.gz", label_map_of(0))
        save(mask, label_map_of(number))
        cases[name] = {
            "source": str(image),
            "path": str(image),
            "mask": mask.name,
            "labels": {"liver": 1, "tumour": 2},
            "warnings": ["the scan is odd."] if name == "bert" else [],
        }
    labels = {"channel_names": {"0": "CT"}, "labels": NAMES, "numTraining": 3, "file_ending": ".nii.gz"}
    write_json(dataset / "dataset.json", labels)
    from misfm.inference.predictions import Predictions

    predictions = Predictions(masks, {"weights": "0" * 64}, {})
    predictions._write({**predictions._head, "cases": cases, "failed": {}})
    return folder


@pytest.fixture
def copied(material, tmp_path):
    """The same, to be spoilt; predictions still name the scans of the first."""
    shutil.copytree(material, tmp_path / "copy")
    return tmp_path / "copy"


@contextmanager
def served(path, references=None):
    """Serve a path, and yield the server."""
    with ViewerServer(Session(collection_of(path, references))) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """A browser, one for all tests."""
    if PROGRAM is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    opened = Browser(tmp_path_factory.mktemp("chromium"))
    yield opened
    opened.close()
