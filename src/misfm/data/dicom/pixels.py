"""The pixels of DICOM images, with no more memory taken than images of their size need."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import (
    JPEG2000,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from misfm.data.checks import compact, readable
from misfm.data.dicom.files import read_header
from misfm.data.dicom.frames import Frame
from misfm.data.quiet import quiet_decoders
from misfm.errors import DataError

_BY_GDCM = {
    *(JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1),
    *(JPEGLSLossless, JPEGLSNearLossless, JPEG2000Lossless, JPEG2000),
}
"""What GDCM, within SimpleITK, decodes; the rest is left to pydicom and what decoders it finds."""
_DENSEST = 5000
"""Pixels that a byte of compressed ones stands for at the most; slices of one value are packed densest."""
_ALWAYS = 1 << 20
"""Pixels that any slice may have."""
_WRAPPING = 256
"""Bytes within which the JPEG 2000 in a file of its own begins."""
_MARKERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
"""Of the sizes in JPEG and JPEG-LS."""
_MOST_OPEN = 2
"""Files whose pixels are kept while their images are read one by one."""
_LAYOUT = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")


class Pixels:
    """Reads images one by one; files with many of them are opened once."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[Any, list[bytes]]] = {}

    def read(self, frame: Frame, *, invert: bool = False) -> NDArray[Any]:
        """Pixels (H, W) of one image after rescaling; whole numbers stay integers.

        Args:
            frame: which one.
            invert: turn stored values round, so that the darkest is the lowest.

        Raises:
            DataError: they are damaged, fewer than the header promises, or packed in an unknown way.
        """
        with readable(frame.file), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header, packed = self._opened(frame)
            stored = _stored(header, packed, frame)
            if invert:
                highest = (1 << int(header.BitsStored)) - 1 if stored.dtype.kind == "u" else -1
                stored = highest - stored.astype(np.int64)
            if header.get("ModalityLUTSequence"):
                return compact(apply_modality_lut(stored, header))
            return _rescaled(stored, *frame.rescale)

    def _opened(self, frame: Frame) -> tuple[Any, list[bytes]]:
        if frame.file not in self._open:
            while len(self._open) >= _MOST_OPEN:
                self._open.pop(next(iter(self._open)))
            header = read_header(frame.file)
            count = int(header.get("NumberOfFrames") or 1)
            content = header.get("PixelData", b"")
            is_packed = header.file_meta.TransferSyntaxUID.is_encapsulated
            packed = list(generate_frames(content, number_of_frames=count)) if is_packed else []
            self._open[frame.file] = header, packed
        opened = self._open[frame.file]
        if int(opened[0].get("NumberOfFrames") or 1) == 1:
            self._open.pop(frame.file)
        return opened


def _rescaled(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    reach = abs(slope) * (1 << 17) + abs(intercept)
    if slope.is_integer() and intercept.is_integer() and stored.itemsize <= 2 and reach < 1 << 31:
        return compact(stored.astype("i4") * int(slope) + int(intercept))
    return (stored * slope + intercept).astype("f4")


def _stored(header: Any, packed: list[bytes], frame: Frame) -> NDArray[Any]:
    """Stored values (H, W) of an image."""
    syntax = header.file_meta.TransferSyntaxUID
    content = packed[frame.index] if syntax.is_encapsulated else header.get("PixelData", b"")
    _check_size(header, content, frame)
    if not syntax.is_encapsulated or syntax == RLELossless:
        return _plain(header, frame)
    if syntax in _BY_GDCM:
        return _significant(_decoded(header, content), header)
    try:
        is_known = get_decoder(syntax).is_available
    except NotImplementedError:
        is_known = False
    if not is_known:
        raise DataError(
            f"{frame.file} is packed as {syntax.name}, which cannot be unpacked here; unpack it first, for "
            "example with gdcmconv --raw."
        )
    return _plain(header, frame)


def _plain(header: Any, frame: Frame) -> NDArray[Any]:
    if int(header.BitsAllocated) == 1 and not header.file_meta.TransferSyntaxUID.is_encapsulated:
        return _bits(header.PixelData, frame)
    pixels: NDArray[Any] = pixel_array(header, index=frame.index)
    return pixels


def _bits(content: bytes, frame: Frame) -> NDArray[np.uint8]:
    """An image of one bit a pixel; it begins within a byte where those before it end there."""
    size = frame.shape[0] * frame.shape[1]
    start, skipped = divmod(frame.index * size, 8)
    packed = np.frombuffer(content[start : start + (skipped + size + 7) // 8], np.uint8)
    bits = np.unpackbits(packed, bitorder="little")[skipped : skipped + size]
    return bits.reshape(frame.shape)


@quiet_decoders
def _decoded(header: Any, content: bytes) -> NDArray[Any]:
    """Let GDCM decode one packed image, from a file that holds nothing else."""
    only = Dataset()
    only.file_meta = FileMetaDataset()
    only.file_meta.TransferSyntaxUID = header.file_meta.TransferSyntaxUID
    only.SOPClassUID = only.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    only.SOPInstanceUID = only.file_meta.MediaStorageSOPInstanceUID = "2.25.1"
    for tag in _LAYOUT:
        setattr(only, tag, int(header[tag].value))
    only.SamplesPerPixel, only.PhotometricInterpretation = 1, "MONOCHROME2"
    only.PixelData = encapsulate([content])
    only["PixelData"].VR = "OB"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "image.dcm"
        only.save_as(file, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(file))
        pixels: NDArray[Any] = sitk.GetArrayFromImage(reader.Execute())
    return pixels.reshape(int(header.Rows), int(header.Columns))


def _significant(pixels: NDArray[Any], header: Any) -> NDArray[Any]:
    """Keep the bits that are stored, with their sign; others may hold overlays or anything."""
    bits = int(header.BitsStored)
    kind = np.int64 if int(header.PixelRepresentation) else np.uint64
    unused = kind(64 - bits)
    values = (pixels.astype(np.int64).view(kind) << unused) >> unused
    return values.astype(f"{'i' if kind is np.int64 else 'u'}{1 if bits <= 8 else 2 if bits <= 16 else 4}")


def _check_size(header: Any, content: bytes, frame: Frame) -> None:
    """Compare the size of an image with the bytes that its pixels take, and with what those bytes say."""
    rows, columns, bits = (int(header[tag].value) for tag in ("Rows", "Columns", "BitsAllocated"))
    size = rows, columns
    syntax = header.file_meta.TransferSyntaxUID
    if syntax in _BY_GDCM:
        coded = _coded(content)
        if coded is None or coded[2:] != (1, min(coded[3], bits)):
            raise DataError(
                f"{frame.file} cannot be read: its pixels are not packed as {syntax.name} with one value of "
                f"up to {bits} bits a pixel; copy or export it again."
            )
        size = coded[:2]
    if syntax.is_encapsulated:
        is_right = size == (rows, columns) and rows * columns <= _ALWAYS + _DENSEST * len(content)
    else:
        is_right = (frame.index + 1) * rows * columns * bits <= 8 * len(content)
    if not is_right:
        raise DataError(
            f"{frame.file} cannot be read: its header promises {rows} x {columns} pixels where "
            f"{len(content)} bytes hold those of {size[0]} x {size[1]}; copy or export it again."
        )


def _coded(frame: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, values a pixel and their bits, as JPEG 2000, JPEG and JPEG-LS tell them at their start.

    Decoders take memory for them, and some crash where bits or values are beyond what they expect.

    Returns:
        None where the start is of another coding.
    """

    def number(start: int, length: int) -> int:
        return int.from_bytes(frame[start : start + length], "big")

    start = frame.find(b"\xff\x4f\xff\x51", 0, _WRAPPING)
    if start >= 0 and len(frame) > start + 45:  # the grid of JPEG 2000, and where the image begins in it
        ends, origin = (start + 8, start + 12), (start + 16, start + 20)
        width, height = (number(a, 4) - number(b, 4) for a, b in zip(ends, origin, strict=True))
        is_whole = frame[start + 43 : start + 45] == b"\1\1"  # no subsampling
        return height, width, number(start + 40, 2) if is_whole else 0, (frame[start + 42] & 0x7F) + 1
    place = 2
    while frame[:2] == b"\xff\xd8" and place + 9 < len(frame) and frame[place] == 0xFF:
        if frame[place + 1] in _MARKERS:
            return number(place + 5, 2), number(place + 7, 2), frame[place + 9], frame[place + 4]
        place += 2 + number(place + 2, 2) if frame[place + 1] != 0xFF else 1
    return None
