"""DICOM: files to series, a series to a Volume, label objects to label maps of the series they refer to."""

from misfm.data.dicom.files import is_dicom
from misfm.data.dicom.labels import label_names, read_labels
from misfm.data.dicom.references import pair
from misfm.data.dicom.series import DicomSeries, list_series, series_at

__all__ = ["DicomSeries", "is_dicom", "label_names", "list_series", "pair", "read_labels", "series_at"]
