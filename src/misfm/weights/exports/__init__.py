"""Weights in the form of other tools: one file a format; :mod:`misfm.weights.exports.base` says how."""

from misfm.weights.exports.base import EXPORTS, ExportedModel, ExportFormat

__all__ = ["EXPORTS", "ExportFormat", "ExportedModel"]
