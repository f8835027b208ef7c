"""Where :func:`safe_flip_axes` was before :mod:`misfm.augment`, for scripts that still look here."""

from misfm.augment.mirrors import safe_flip_axes

__all__ = ["safe_flip_axes"]
