"""Our own weights file: safetensors with a description that suffices to rebuild the network."""

from __future__ import annotations

import importlib.metadata
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from torch import Tensor, nn

from misfm.augment.mirrors import AxisName
from misfm.data.appearance import ScanRanges
from misfm.data.intensity import IntensityRule
from misfm.data.label_scheme import LabelScheme, Value
from misfm.documents import parse_json
from misfm.errors import WeightsError
from misfm.files import atomic_write
from misfm.models.limits import MOST, check_options
from misfm.settings import PositiveShape, Settings, Spacing
from misfm.weights.quality import QualityScale
from misfm.weights.reading import check_plain, check_room, reading
from misfm.weights.seal import METADATA_KEY, check, metadata_of, sealed, split

FORMAT_VERSION = 2
"""The newest that is read and written."""
SINCE_2 = {"channel_names", "label_values", "quality", "regions_class_order", "scan_ranges", "whole_scans"}
"""Fields of a description that came with format 2."""
KINDS_OF_1 = {"ct", "mr"}
"""Kinds of channels that readers of format 1 know; they know one rule for all channels, too."""
FILE_NAME = "weights.safetensors"
"""What the weights of a run folder are called."""


class NetworkInfo(Settings):
    """What :func:`misfm.models.create` needs besides sizes."""

    name: str
    """Registered name of the network."""
    options: dict[str, Any] = Field(default={})
    """Its own options, as given to create."""

    @field_validator("options")
    @classmethod
    def _are_of_a_network(cls, options: dict[str, Any]) -> dict[str, Any]:
        check_options(options)
        return options


class DataInfo(Settings):
    """What the weights were trained on."""

    count: Annotated[int, Field(ge=0)]
    """Volumes or cases."""
    fingerprint: str
    """Hash over the content of all of them."""
    scans: tuple[str, ...] = ()
    """Short content fingerprint of every scan seen, also by the weights it started from; sorted."""


def installed_versions() -> dict[str, str]:
    """Versions of what computes the weights."""
    return {name: importlib.metadata.version(name) for name in ("misfm", "torch")}


class WeightsInfo(Settings):
    """The description inside a weights file; it suffices for prediction and for transfer.

    Fields without a default may be None where a foreign file does not say.
    """

    format_version: int = 1
    """2 where there is a field of :data:`SINCE_2` or a rule that readers of 1 would misunderstand."""
    network: NetworkInfo
    """What rebuilds the network."""
    in_channels: Annotated[int, Field(ge=1, le=MOST)]
    """Channels of the image."""
    num_classes: Annotated[int, Field(ge=1, le=MOST)]
    """Outputs of the head: classes, background included, or regions."""
    label_names: tuple[str, ...] = ()
    """Name of each class, background first, or of each region."""
    label_values: tuple[tuple[Value, ...], ...] = ()
    """Values in label maps of each of them; empty: 0, 1, 2, …"""
    regions_class_order: tuple[Value, ...] = ()
    """Value in a mask of each region, later ones painted over earlier ones; empty: no regions."""
    patch_size: PositiveShape | None
    """Voxels along (D, H, W) of the patches it was trained on."""
    spacing: Spacing | None
    """mm per voxel along (D, H, W) the scans were resampled to; null: their own."""
    intensity: dict[str, Any] | tuple[dict[str, Any], ...] = Field(default={})
    """The intensity rule of all channels, or that of each where they differ; see ``rules``."""
    channel_names: tuple[str, ...] = ()
    """Of each channel, where there are several and they have names."""
    mirror_axes: tuple[AxisName, ...] = ()
    """Axes mirrored while training on label maps; prediction may mirror them too."""
    whole_scans: bool = False
    """Whether prediction looks outside of the box around the patient, too: where labels lay in training."""
    scan_ranges: ScanRanges | None = None
    """What the scans of the training with label maps were like; null where nothing is known of that."""
    kept: Literal["last", "best"] | None = None
    """Which weights of their run these are, chosen on its validation cases; null: nothing was chosen."""
    largest_part: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Values of the labels of which prediction keeps the largest connected part only."""
    quality: QualityScale | None = None
    """How good label maps of the validation cases were expected to be; null: there were none."""
    pretext: str | None = None
    """Pretext task; null: trained on label maps."""
    recipe: str | None = None
    """Recipe it was trained with."""
    steps: Annotated[int, Field(ge=0)] | None
    """Optimiser steps taken."""
    data: DataInfo | None
    """What it was trained on."""
    licence: str = "unknown"
    """SPDX identifier or sentence."""
    versions: dict[str, str] = Field(default_factory=installed_versions)
    """Versions of what computed the weights."""

    @field_validator("intensity")
    @classmethod
    def _are_rules(
        cls, intensity: dict[str, Any] | tuple[dict[str, Any], ...], known: ValidationInfo
    ) -> dict[str, Any] | tuple[dict[str, Any], ...]:
        rules = parse_rules(intensity)
        if not isinstance(intensity, dict) and len(rules) != known.data.get("in_channels"):
            raise ValueError("its intensity has another number of rules than there are channels")
        return intensity

    @model_validator(mode="after")
    def _labels_fit(self) -> WeightsInfo:
        values, order = self.label_values, self.regions_class_order
        if (values or order) and len(values) != self.num_classes:
            raise ValueError("its label_values are not those of its classes")
        if order and not (len(order) == len(values) and all(map(operator.contains, values, order))):
            raise ValueError("its regions_class_order does not fit its regions")
        if values and not order and (values[0] != (0,) or any(len(own) != 1 for own in values)):
            raise ValueError("its label_values are neither single ones nor regions with an order")
        return self

    @property
    def scheme(self) -> LabelScheme:
        """Labels and their values; those without a name are called by their number."""
        names = dict(
            enumerate(self.label_names if len(set(self.label_names)) == len(self.label_names) else ())
        )
        values = self.label_values or tuple((value,) for value in range(self.num_classes))
        named = {names.get(place, str(place)): own for place, own in enumerate(values)}
        if self.regions_class_order:
            return LabelScheme(values=named, order=self.regions_class_order)
        return LabelScheme(values=dict(list(named.items())[1:]), background=names.get(0, "background"))

    @property
    def labels(self) -> dict[str, tuple[int, ...]]:
        """Values that each label has in a label map, by its name or, where it has none, its number.

        The background is left out; empty for weights without labels.
        """
        return {} if self.pretext is not None else self.scheme.values

    @property
    def rules(self) -> tuple[IntensityRule, ...]:
        """The intensity rule of each channel; empty where the weights do not say."""
        rules = parse_rules(self.intensity)
        return rules * self.in_channels if len(rules) == 1 else rules

    @property
    def largest_part_names(self) -> list[str]:
        """Names of the labels of which the largest part is kept, or their values where they have none."""
        names = self.scheme.names
        return [names.get(label, str(label)) for label in self.largest_part]

    def as_json(self) -> str:
        """Return the description as files hold it: with nothing that older readers do not know, if it can."""
        unused = {name for name in SINCE_2 if not getattr(self, name)}
        new_rules = not isinstance(self.intensity, dict) or any(r.kind not in KINDS_OF_1 for r in self.rules)
        newer = self.model_copy(update={"format_version": 2 if new_rules or unused < SINCE_2 else 1})
        return newer.model_dump_json(exclude=unused)


def parse_rules(intensity: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> tuple[IntensityRule, ...]:
    """Return the rules that a description holds: none, one for all channels, or one for each."""
    if isinstance(intensity, Mapping):
        return (IntensityRule.model_validate(intensity),) if intensity else ()
    return tuple(IntensityRule.model_validate(rule) for rule in intensity)


def rules_to_keep(rules: Sequence[IntensityRule]) -> dict[str, Any] | tuple[dict[str, Any], ...]:
    """Return the rules of channels as a description holds them; one where all are alike."""
    each = tuple(rule.model_dump(mode="json") for rule in rules)
    if len(set(rules)) > 1:
        return each
    return each[0] if each else {}


def save(
    path: str | os.PathLike[str], model: nn.Module, info: WeightsInfo, *, dtype: torch.dtype = torch.float32
) -> None:
    """Write the state of ``model`` and its description, whole or not at all.

    Args:
        path: file to write; its folder is made where missing.
        model: what :func:`misfm.models.create` built, or any module with a ``backbone``.
        info: the description.
        dtype: ``torch.float16`` halves the file. It applies to kernels and matrices whose values fit; norms,
            biases and running statistics are small and stay exact.

    Raises:
        DataError: the file cannot be written.
    """
    write(path, model.state_dict(), info, dtype=dtype)


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    info: WeightsInfo,
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write named tensors as :func:`save` does: all of a model, or those that are known."""
    stored = {name: _stored(tensor, dtype) for name, tensor in tensors.items()}
    parts = sealed(safetensors.torch.save(stored), info.as_json())
    with atomic_write(Path(path)) as temporary, temporary.open("wb") as out:
        for part in parts:
            out.write(part)


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy on the CPU that shares memory with nothing, narrowed where its values fit."""
    narrowed = tensor.to(dtype) if tensor.is_floating_point() and tensor.dim() >= 2 else tensor
    kept = narrowed if narrowed.isfinite().all() else tensor
    return kept.detach().to("cpu", copy=True).contiguous()


def read(path: Path) -> tuple[dict[str, Tensor], WeightsInfo]:
    """Tensors and description of one of our files.

    Raises:
        WeightsError: truncated, written by another program, or by a newer version of this one.
    """
    with reading(path, "cannot be read", "copy or train it again"):
        check_room(path)
        content = path.read_bytes()
    return parse(path, content)


def parse(path: Path, content: bytes) -> tuple[dict[str, Tensor], WeightsInfo]:
    """As :func:`read`, of what has been read from ``path``."""
    with reading(path, "is damaged or cut short", "copy or train it again"):
        tensors = safetensors.torch.load(content)
        header, values = split(content)
        for name, tensor in tensors.items():
            check_plain(name, tensor)
    check(path, header, values)
    metadata = metadata_of(header)
    if METADATA_KEY not in metadata:
        raise WeightsError(
            f"{path} is a safetensors file without misfm's description, so another program wrote it; "
            "load its tensors yourself and pass them as a mapping name -> tensor."
        )
    return tensors, _parse_info(path, metadata[METADATA_KEY])


def _parse_info(path: Path, text: str) -> WeightsInfo:
    try:
        fields = parse_json(text)
        if isinstance(fields, dict) and fields.get("format_version", 0) > FORMAT_VERSION:
            raise WeightsError(
                f"{path} has weights format {fields['format_version']} and this misfm reads up to "
                f"{FORMAT_VERSION}; update misfm."
            )
        return WeightsInfo.model_validate(fields)
    except (ValueError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise WeightsError(
            f"The description inside {path} is not valid ({reason}); write the file again."
        ) from error
