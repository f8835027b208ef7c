"""Generates DICOM series that are odd in one way each, reads them, and writes what each gave into a table.

    python benchmarks/odd_dicom.py

writes ``benchmarks/results/odd_dicom.md``. ``odd_dicom_frames.json`` holds the slices of
:func:`stored_values` as imagecodecs packed them: JPEG 2000, JPEG-LS, lossless JPEG.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from odd_dicom_files import (
    ORIGIN,
    object_of,
    pixels_of,
    write_enhanced,
    write_packed,
    write_rtstruct,
    write_seg,
    write_series,
    write_slice,
)
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)

from misfm.data.scan import find_scans
from misfm.errors import DataError

HERE = Path(__file__).parent
SECONDARY = "1.2.840.10008.5.1.4.1.1.7"
REPORT = "1.2.840.10008.5.1.4.1.1.88.67"
DOSE = "1.2.840.10008.5.1.4.1.1.481.2"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"

Stored = NDArray[np.uint16]


def stored_values() -> Stored:
    """(6, 12, 10) stored values of 12 bits, HU being 1024 less."""
    d, h, w = np.indices((6, 12, 10))
    return ((300 * d + 37 * h * h + 91 * w * (d + 1)) % 4096).astype(np.uint16)


@dataclass(frozen=True)
class Odd:
    """A kind of series.

    Attributes:
        title: for the table.
        write: writes it into a folder.
        voxels: "equal" to what was written, "evened out", or nothing where it is refused.
        scans: how many there are.
        said: part of what is said of it, or nothing.
    """

    title: str
    write: Callable[[Path, Stored], object]
    voxels: str = "equal"
    scans: int = 1
    said: str = ""


@dataclass(frozen=True)
class Given:
    """What reading a kind of series gave; see :class:`Odd`."""

    voxels: str
    scans: int
    said: tuple[str, ...]


def give(odd: Odd, folder: Path, told: list[str]) -> Given:
    """Write a kind of series into an empty folder and read it.

    Args:
        odd: the kind.
        folder: for it.
        told: what the package logs is added to it, by whoever listens.
    """
    stored = stored_values()
    odd.write(folder, stored)
    try:
        scans = find_scans([folder])
    except DataError as error:
        return Given("", 0, (str(error),))
    equal, said = [], []
    for scan in scans:
        try:
            data = scan.read().data[0]
        except DataError as error:
            said.append(str(error))
            continue
        equal.append(np.array_equal(data, stored.astype(int) - 1024))
        said += scan.notes
    voxels = "" if not equal else "equal" if all(equal) else "evened out"
    return Given(voxels, len(equal), (*told, *said))


def at(depth: float) -> tuple[float, float, float]:
    """The place of a slice at a depth, mm."""
    return ORIGIN[0], ORIGIN[1], ORIGIN[2] + depth


def rewrite(folder: Path, change: Callable[[pydicom.FileDataset], object]) -> None:
    for file in folder.iterdir():
        one = pydicom.dcmread(file)
        change(one)
        one.save_as(file, enforce_file_format=True)


def transcoded(syntax: str) -> Callable[[Path, Stored], None]:
    def write(folder: Path, stored: Stored) -> None:
        def change(one: pydicom.FileDataset) -> None:
            if syntax == RLELossless:
                one.compress(RLELossless)
            one.file_meta.TransferSyntaxUID = syntax

        write_series(folder, stored)
        if syntax != ExplicitVRBigEndian:
            rewrite(folder, change)
            return
        for file in folder.iterdir():
            one = pydicom.dcmread(file)
            one.PixelData = np.frombuffer(one.PixelData, "<u2").astype(">u2").tobytes()
            one.file_meta.TransferSyntaxUID = syntax
            pydicom.dcmwrite(file, one, implicit_vr=False, little_endian=False, enforce_file_format=True)

    return write


def packed(syntax: str) -> Callable[[Path, Stored], object]:
    frames = [
        base64.b64decode(text) for text in json.loads((HERE / "odd_dicom_frames.json").read_text())[syntax]
    ]
    return lambda folder, stored: write_packed(folder, frames, stored.shape[1:], syntax, BitsStored=12)


def film(folder: Path, stored: Stored) -> None:
    write_packed(folder, [bytes(64)] * len(stored), (12, 10), "1.2.840.10008.1.2.4.102")


def bare(folder: Path, stored: Stored) -> None:
    write_series(folder, stored)
    for number, file in enumerate(list(folder.iterdir())):
        one = pydicom.dcmread(file)
        one.preamble = None
        del one.file_meta
        file.unlink()
        pydicom.dcmwrite(folder / f"IM{number}", one, implicit_vr=True, little_endian=True)


def overlay(folder: Path, stored: Stored) -> None:
    write_series(folder, stored | (stored % 2 << 12), BitsStored=12)


def inverted(folder: Path, stored: Stored) -> None:
    tags = {"SOPClassUID": MRImageStorage, "Modality": "MR", "PhotometricInterpretation": "MONOCHROME1"}
    write_series(folder, 4095 - stored, BitsStored=12, **tags)


def inverted_ct(folder: Path, stored: Stored) -> None:
    write_series(folder, stored, PhotometricInterpretation="MONOCHROME1", BitsStored=12)


def rescaled(folder: Path, stored: Stored) -> None:
    for number, pixels in enumerate(stored):
        slope = number + 1
        where = at(3 * number)
        rest = pixels.astype(int) - pixels % slope
        write_slice(
            folder / str(number),
            (rest // slope).astype(np.uint16),
            where,
            RescaleSlope=slope,
            RescaleIntercept=-1024,
        )
    stored[:] = [pixels - pixels % (number + 1) for number, pixels in enumerate(stored)]


def copies(folder: Path, stored: Stored) -> None:
    write_series(folder, stored)
    for file in list(folder.iterdir())[:3]:
        shutil.copy(file, folder / f"copy of {file.name}")


def exported_again(folder: Path, stored: Stored) -> None:
    write_series(folder, stored)
    for number in (1, 4):
        write_slice(folder / f"again{number}", stored[number], at(3 * number))


def missing(folder: Path, stored: Stored) -> None:
    write_series(folder, np.delete(stored, 3, axis=0), depths=[0, 3, 6, 12, 15])


def tilted(folder: Path, stored: Stored) -> None:
    write_series(folder, stored, tilt=0.3)


def tilted_and_uneven(folder: Path, stored: Stored) -> None:
    write_series(folder, stored, tilt=-0.2, depths=[0, 3, 6, 9, 13.5, 18])


def scout_in_series(folder: Path, stored: Stored) -> None:
    write_series(folder, stored)
    write_slice(folder / "scout", np.zeros((40, 10), np.uint16), ORIGIN, orientation=(0, 1, 0, 0, 0, -1))


def study(folder: Path, stored: Stored) -> None:
    """A scout, a localizer in three planes, a screenshot, a dose report and a picture beside a scan."""
    write_series(folder / "CT", stored)
    side = (0, 1, 0, 0, 0, -1)
    write_slice(folder / "SCOUT/1", stored[0], ORIGIN, orientation=side, SeriesInstanceUID="1.9.1")
    for number, plane in enumerate(((1, 0, 0, 0, 1, 0), side, (1, 0, 0, 0, 0, -1))):
        kind = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        name = folder / f"LOC/{number}"
        write_slice(name, stored[0], ORIGIN, orientation=plane, SeriesInstanceUID="1.9.2", ImageType=kind)
    screenshot = object_of(SECONDARY, SeriesInstanceUID="1.9.3", Modality="OT")
    pixels_of(screenshot, stored[0])
    screenshot.save_as(folder / "SCOUT/screen", enforce_file_format=True)
    report = object_of(REPORT, SeriesInstanceUID="1.9.4", Modality="SR")
    report.save_as(folder / "SCOUT/report", enforce_file_format=True)
    colour = object_of(SECONDARY, SeriesInstanceUID="1.9.5", Modality="OT")
    pixels_of(colour, np.repeat(stored[0], 3, axis=1))
    colour.SamplesPerPixel, colour.PhotometricInterpretation, colour.PlanarConfiguration = 3, "RGB", 0
    colour.Columns = 10
    colour.save_as(folder / "SCOUT/colour", enforce_file_format=True)


def with_labels(folder: Path, stored: Stored) -> None:
    """SEG, RTSTRUCT and a dose distribution beside the scan that they belong to."""
    write_series(folder / "CT", stored)
    write_seg(folder / "RT/seg.dcm", folder / "CT", (stored > 2000).astype(np.uint8), {1: "bright"})
    square = np.array([[11, 22, 33], [13, 22, 33], [13, 26, 33], [11, 26, 33]], float)
    write_rtstruct(folder / "RT/rs.dcm", {"square": [square]})
    dose = object_of(DOSE, SeriesInstanceUID="1.9.6", Modality="RTDOSE", NumberOfFrames=6)
    pixels_of(dose, stored)
    dose.save_as(folder / "RT/dose.dcm", enforce_file_format=True)


def enhanced(folder: Path, stored: Stored) -> None:
    write_enhanced(folder / "ct.dcm", stored)


def enhanced_uneven(folder: Path, stored: Stored) -> None:
    write_enhanced(folder / "ct.dcm", stored, depths=[0, 3, 6, 9, 14, 19])


def enhanced_rescaled(folder: Path, stored: Stored) -> None:
    halves = [(2.0 if number % 2 else 1.0, -1024.0) for number in range(len(stored))]
    stored[1::2] -= stored[1::2] % 2
    values = np.array([pixels // int(slope) for pixels, (slope, _) in zip(stored, halves, strict=True)])
    write_enhanced(folder / "pet.dcm", values.astype(np.uint16), rescale=halves)


def enhanced_times(folder: Path, stored: Stored) -> None:
    write_enhanced(
        folder / "mr.dcm", np.concatenate([stored, stored]), times=2, SOPClassUID=ENHANCED_MR, Modality="MR"
    )


def enhanced_without_places(folder: Path, stored: Stored) -> None:
    write_enhanced(folder / "ct.dcm", stored)
    rewrite(folder, lambda one: one.pop("PerFrameFunctionalGroupsSequence"))


def times(folder: Path, stored: Stored) -> None:
    for time in range(2):
        write_series(folder / str(time), stored, TemporalPositionIdentifier=time + 1)
    for file in (folder / "1").iterdir():  # all in one folder
        file.rename(folder / f"0/later {file.name}")


def times_unmarked(folder: Path, stored: Stored) -> None:
    for time in range(2):
        for number, pixels in enumerate(stored):
            where = at(3 * number)
            write_slice(folder / f"{time}-{number}", pixels + time, where)


def two_patients(folder: Path, stored: Stored) -> None:
    for patient in range(2):
        write_series(folder / f"P{patient}", stored, PatientID=f"P{patient}")


def two_patients_unnamed(folder: Path, stored: Stored) -> None:
    for patient in range(2):
        write_series(folder / f"P{patient}", stored, PatientID="ANON", PatientName="")


def spread(folder: Path, stored: Stored) -> None:
    write_series(folder / "all", stored)
    for number, file in enumerate(sorted((folder / "all").iterdir())):
        (folder / str(number % 3)).mkdir(exist_ok=True)
        file.rename(folder / str(number % 3) / file.name)


def sizes(folder: Path, stored: Stored) -> None:
    write_series(folder, stored)
    write_slice(folder / "large", np.zeros((24, 20), np.uint16), at(18))


def damaged(folder: Path, stored: Stored) -> None:
    write_series(folder, stored)
    file = sorted(folder.iterdir())[2]
    file.write_bytes(file.read_bytes()[:-40])


ODD = [
    Odd("classic, file names against the order of slices", write_series),
    Odd("written without preamble and mark, names without ending", bare),
    Odd("implicit VR", transcoded(ImplicitVRLittleEndian)),
    Odd("big-endian", transcoded(ExplicitVRBigEndian)),
    Odd("deflated", transcoded(DeflatedExplicitVRLittleEndian)),
    Odd("RLE", transcoded(RLELossless)),
    Odd("JPEG 2000, lossless", packed("1.2.840.10008.1.2.4.90")),
    Odd("JPEG-LS, lossless", packed("1.2.840.10008.1.2.4.80")),
    Odd("JPEG, lossless (process 14)", packed("1.2.840.10008.1.2.4.70")),
    Odd("a video codec (MPEG-4)", film, "", 0, "unpack it first"),
    Odd("12 bits, and an overlay in the thirteenth", overlay),
    Odd("MONOCHROME1, MR", inverted, said="turned round"),
    Odd("MONOCHROME1, CT in HU", inverted_ct),
    Odd("slope of its own in each slice", rescaled),
    Odd("some files twice", copies, said="3 slices were there twice"),
    Odd(
        "some slices exported twice, with other identifiers", exported_again, said="2 slices were there twice"
    ),
    Odd("a slice missing", missing, "", 0, "6.00 mm apart where 3.00 mm is usual"),
    Odd(
        "gaps of 3 and 4.5 mm, gantry tilted by 11 degrees",
        tilted_and_uneven,
        "evened out",
        said="uneven gaps between slices, 3.00 to 4.50 mm",
    ),
    Odd("gantry tilted by 17 degrees", tilted, "evened out", said="tilted by 16.7 degrees"),
    Odd("a scout numbered into the series", scout_in_series, said="1 x 2D image that stands alone"),
    Odd(
        "a study with scout, localizer, screenshot, dose report, picture",
        study,
        said="3 x image of a localizer",
    ),
    Odd("a study with SEG, RTSTRUCT and dose", with_labels, said="2 x label object (SEG, RTSTRUCT)"),
    Odd("enhanced multi-frame", enhanced),
    Odd("enhanced, uneven gaps", enhanced_uneven, "evened out", said="3.00 to 5.00 mm"),
    Odd("enhanced, slope of its own in each frame", enhanced_rescaled),
    Odd("enhanced, two times in one file", enhanced_times, scans=2),
    Odd(
        "multi-frame without the place of each frame",
        enhanced_without_places,
        "",
        0,
        "multi-frame DICOM file",
    ),
    Odd("two times in one series, numbered", times, scans=2),
    Odd("two times in one series, not numbered", times_unmarked, "", 0, "lie in the same place"),
    Odd("two patients with one series identifier", two_patients, scans=2),
    Odd("the same, patients' names removed, a folder each", two_patients_unnamed, scans=2),
    Odd("one series spread over three folders", spread),
    Odd("a slice of another size", sizes, "", 0, "differs in size"),
    Odd("a slice cut short", damaged, "", 0, "cannot be read"),
]


def main() -> None:
    import logging

    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("misfm").addHandler(handler)
    rows = []
    for odd in ODD:
        told.clear()
        with tempfile.TemporaryDirectory() as name:
            given = give(odd, Path(name), told)
            said = "; ".join(given.said).replace(f"{name}/", "").replace("|", "/")
        if (given.voxels, given.scans) != (odd.voxels, odd.scans) or odd.said not in said:
            sys.exit(f"{odd.title}: gave {given}, and {odd} is right")
        rows.append(f"| {odd.title} | {given.scans} | {given.voxels or 'refused'} | {said} |")
    text = "\n".join(
        [
            "# Odd DICOM series, and what each gave",
            "",
            "Made by `python benchmarks/odd_dicom.py`: generated series of six slices, found and read as",
            "`misfm ingest` does. *equal*: the voxels in HU are those that were written; *evened out*: they",
            "were interpolated onto an even and upright grid.",
            "",
            "| series | scans | voxels | what is said |",
            "|---|---|---|---|",
            *rows,
            "",
        ]
    )
    (HERE / "results" / "odd_dicom.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
