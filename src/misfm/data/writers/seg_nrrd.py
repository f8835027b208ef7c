"""Segmentations of 3D Slicer (``.seg.nrrd``): voxels with names, colours and codes of the segments."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from misfm.data.checks import LPS_TO_RAS, REVERSED
from misfm.data.writers.base import WRITERS, LabelledScan, Labels, MaskWriter, label_voxels, numbered
from misfm.data.writers.coding import coding_of
from misfm.data.writers.names import colour_of
from misfm.files import write_bytes
from misfm.text import one_line
from misfm.volume import Affine, bounding_box

_TERMINOLOGY, _ANATOMY = (
    "Segmentation category and type - DICOM master list",
    "Anatomic codes - DICOM master list",
)
"""Slicer's names of the lists that codes are from."""


@dataclass(frozen=True)
class _Segment:
    """One label: the layer of the file that it lies in, and its value there."""

    name: str
    layer: int
    value: int


@WRITERS.register("nrrd")
class SegNrrdWriter(MaskWriter):
    """Writes ``CASE.seg.nrrd``, which Slicer opens as a segmentation and others as a label map.

    Regions that overlap lie in several layers, the file then having an axis more.
    """

    suffix = ".seg.nrrd"

    def values(self, labels: Labels) -> dict[str, int | list[int]]:
        """The values of the label map; numbers where a label has several, for a segment has one."""
        return super().values(labels) if _is_plain(labels) else numbered(labels)

    def write(self, path: Path, labelled: LabelledScan) -> None:
        """Write the segmentation of one scan."""
        voxels = label_voxels(path, labelled.label_map)
        segments = _segments(labelled.labels)
        layers = [voxels] if _is_plain(labelled.labels) else _layers(voxels, segments, labelled.labels)
        fields = {
            **_header(layers, labelled.label_map.affine),
            **_described(segments, layers),
        }
        lines = [f"{key}{value}" for key, value in fields.items()]
        header = "\n".join(["NRRD0005", *lines, "", ""]).encode()
        interleaved = layers[0] if len(layers) == 1 else np.stack(layers, axis=-1)
        # A fixed time stamp: the same label map is the same file.
        write_bytes(path, header + gzip.compress(interleaved.tobytes(), compresslevel=6, mtime=0))


def _is_plain(labels: Labels) -> bool:
    """Whether each label is one value."""
    return all(len(values) == 1 for values in labels.values())


def _segments(labels: Labels) -> list[_Segment]:
    """The layer of each label, the first in which it overlaps no other, and its value."""
    if _is_plain(labels):
        return [_Segment(name, 0, values[0]) for name, values in labels.items()]
    taken: list[set[int]] = []
    segments = []
    for number, (name, values) in enumerate(labels.items(), 1):
        layer = next((place for place, one in enumerate(taken) if not one & set(values)), len(taken))
        if layer == len(taken):
            taken.append(set())
        taken[layer] |= set(values)
        segments.append(_Segment(name, layer, number))
    return segments


def _layers(voxels: NDArray[Any], segments: list[_Segment], labels: Labels) -> list[NDArray[Any]]:
    dtype = np.uint8 if len(segments) < 256 else np.int16
    layers = [np.zeros(voxels.shape, dtype) for _ in range(1 + max(one.layer for one in segments))]
    for one in segments:
        layers[one.layer][np.isin(voxels, labels[one.name])] = one.value
    return layers


def _header(layers: list[NDArray[Any]], affine: Affine) -> Mapping[str, str]:
    """Fields of NRRD, by what stands before their values; axes fastest first."""
    place = (LPS_TO_RAS @ affine)[:3, REVERSED]
    d, h, w = layers[0].shape
    several = len(layers) > 1
    directions = [_vector(place[:, axis]) for axis in range(3)]
    return {
        "type: ": "uint8" if layers[0].dtype == np.uint8 else "int16",
        "dimension: ": "4" if several else "3",
        "space: ": "left-posterior-superior",
        "sizes: ": " ".join(map(str, (*([len(layers)] if several else []), w, h, d))),
        "space directions: ": " ".join([*(["none"] if several else []), *directions]),
        "kinds: ": " ".join([*(["list"] if several else []), "domain", "domain", "domain"]),
        "endian: ": "little",
        "encoding: ": "gzip",
        "space origin: ": _vector(place[:, 3]),
    }


def _vector(values: NDArray[np.float64]) -> str:
    return f"({','.join(repr(float(value) + 0.0) for value in values)})"


def _described(segments: list[_Segment], layers: list[NDArray[Any]]) -> Mapping[str, str]:
    """Pairs of key and value by which Slicer knows its segments."""
    fields = {
        "Segmentation_ContainedRepresentationNames:=": "Binary labelmap|",
        "Segmentation_MasterRepresentation:=": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=": "0 0 0",
    }
    for number, one in enumerate(segments):
        box = bounding_box(layers[one.layer] == one.value)
        ends = (
            [(0, -1)] * 3 if box is None else [(a, b - 1) for a, b in zip(box.start, box.stop, strict=True)]
        )
        for key, value in {
            "Color": " ".join(f"{part / 255:.6g}" for part in colour_of(number)),
            "Extent": " ".join(f"{first} {last}" for first, last in reversed(ends)),
            "ID": f"Segment_{number + 1}",
            "LabelValue": str(one.value),
            "Layer": str(one.layer),
            "Name": one_line(one.name),
            "Tags": f"TerminologyEntry:{_terminology(one.name)}|",
        }.items():
            fields[f"Segment{number}_{key}:="] = value
    return fields


def _terminology(name: str) -> str:
    """Codes of a label in Slicer's notation."""
    coding = coding_of(name)
    triples = [
        "^^" if code is None else f"{code.scheme_designator}^{code.value}^{_plain(code.meaning)}"
        for code in (coding.category, coding.type, coding.side)
    ]
    return "~".join([_TERMINOLOGY, *triples, _ANATOMY, "^^", "^^"])


def _plain(text: str) -> str:
    """A text without what separates the parts of Slicer's notation."""
    return "".join(" " if character in "~^|:" else character for character in one_line(text))
