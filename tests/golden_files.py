"""Inputs, weights and outputs of the published networks, which ours are compared with.

A few of them are in ``tests/golden``, cut down (its README says how); all of them, whole, may be in
``shared/golden`` beside the repository.
"""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

HERE = Path(__file__).parent / "golden"
BESIDE = Path(__file__).parents[2] / "shared" / "golden"


def golden_file(name):
    """The file of this name: ours, else the one beside the repository, whether it is there or not."""
    return HERE / name if (HERE / name).exists() else BESIDE / name


def needs(*paths):
    """Skip a test, or a parameter, where one of these files is missing."""
    missing = [path.name for path in paths if not path.exists()]
    return pytest.mark.skipif(bool(missing), reason=f"golden files that are not here: {', '.join(missing)}")


def load_golden(path):
    """Tensors of a file; those that it holds once for several names, under each of them."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        same = json.loads((file.metadata() or {}).get("same", "{}"))
    return tensors | {name: tensors[held] for name, held in same.items()}


def kept(output, expected):
    """The voxels of an output that the file keeps: all of them, or every other one."""
    return output if output.shape == expected.shape else output[..., ::2, ::2, ::2]
