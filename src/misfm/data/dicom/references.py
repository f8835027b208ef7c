"""Which series of DICOM a label object, SEG or RTSTRUCT, belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from misfm.data.checks import readable
from misfm.data.dicom.files import quietly, read_header
from misfm.data.dicom.series import DicomSeries
from misfm.errors import DataError


@dataclass(frozen=True)
class Reference:
    """What a label object says it belongs to; empty where it says nothing.

    Attributes:
        series_uids: SeriesInstanceUID of the images.
        study_uid: StudyInstanceUID.
        patient_id: PatientID.
        frame_of_reference: FrameOfReferenceUID.
    """

    series_uids: frozenset[str]
    study_uid: str
    patient_id: str
    frame_of_reference: str

    def fits(self, series: DicomSeries) -> bool:
        """Whether a series may be what is meant: that named, else one in the same frame of reference."""
        if (self.patient_id, self.study_uid) != (series.patient_id, series.study_uid):
            return False
        if self.series_uids:
            return series.uid in self.series_uids
        return bool(self.frame_of_reference) and self.frame_of_reference == series.frame_of_reference


@quietly
def reference_of(path: Path) -> Reference:
    """Return what a SEG or RTSTRUCT says it belongs to.

    Raises:
        DataError: it is damaged.
    """
    header = read_header(path)
    with readable(path):
        uids = [one.get("SeriesInstanceUID") for one in header.get("ReferencedSeriesSequence") or ()]
        spaces = [header.get("FrameOfReferenceUID")]
        for frame in header.get("ReferencedFrameOfReferenceSequence") or ():
            spaces.append(frame.get("FrameOfReferenceUID"))
            for study in frame.get("RTReferencedStudySequence") or ():
                for series in study.get("RTReferencedSeriesSequence") or ():
                    uids.append(series.get("SeriesInstanceUID"))
        return Reference(
            series_uids=frozenset(str(uid) for uid in uids if uid),
            study_uid=str(header.get("StudyInstanceUID") or ""),
            patient_id=str(header.get("PatientID") or ""),
            frame_of_reference=next((str(space) for space in spaces if space), ""),
        )


def pair(files: Iterable[Path], series: Sequence[DicomSeries]) -> tuple[dict[Path, DicomSeries], list[Path]]:
    """Find the series that each label object refers to.

    Returns:
        The series of each file, and the files that fit none, or several, or cannot be read.
    """
    found: dict[Path, DicomSeries] = {}
    alone = []
    for file in files:
        try:
            reference = reference_of(file)
        except DataError:
            alone.append(file)
            continue
        fitting = [one for one in series if reference.fits(one)]
        if len(fitting) == 1:
            found[file] = fitting[0]
        else:
            alone.append(file)
    return found, alone
