"""Keeping libraries that print remarks of their own quiet while they read, and only then."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from types import TracebackType

Undo = Callable[[], None]


class Quiet(ContextDecorator):
    """A library is quiet within this context, and afterwards what it was before, also after errors.

    What matters of a library's remarks reaches the user as a DataError. The state of a library is that of the
    whole process: of readers in several threads the first makes it quiet and the last restores it.

    Args:
        silence: makes the library quiet and returns what undoes that.
    """

    def __init__(self, silence: Callable[[], Undo]) -> None:
        self._silence = silence
        self._lock = threading.Lock()
        self._inside = 0
        self._undo: Undo | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._undo = self._silence()
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._undo is not None:
                self._undo()


def quiet_logger(name: str) -> Quiet:
    """Keep the logger of a library, such as ``"nibabel"``, from telling anything below critical."""

    def silence() -> Undo:
        logger = logging.getLogger(name)
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        return lambda: logger.setLevel(level)

    return Quiet(silence)


def _silence_itk() -> Undo:
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    return lambda: sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _silence_decoders() -> Undo:
    itk = _silence_itk()
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)

    def undo() -> None:
        os.dup2(kept, 2)
        os.close(kept)
        itk()

    return undo


quiet_itk = Quiet(_silence_itk)
"""Keeps ITK from printing warnings."""
quiet_decoders = Quiet(_silence_decoders)
"""Keeps the decoders within GDCM from writing to standard error of every damaged image, past Python."""
