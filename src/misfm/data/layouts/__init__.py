"""How labelled scans lie on disks: one file a layout; :mod:`misfm.data.layouts.base` has their contract."""

from misfm.data.layouts.base import LAYOUTS, Arrangement, FoundCase, Piece, recognise

__all__ = ["LAYOUTS", "Arrangement", "FoundCase", "Piece", "recognise"]
