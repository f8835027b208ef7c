"""What the values in label maps mean: labels with a value each, or regions that overlap and have several.

A network sees *classes*: the values that occur in label maps, numbered 0 (background), 1, 2, … without gaps.
It answers with one output a class, of which one is true at each voxel; or with one output a region, each true
or false. A mask has *codes*: the value of a label, or what stands for a region (``regions_class_order``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from misfm.settings import Settings

MOST_LABELS = 2**15 - 1
"""Of a dataset: label maps are kept in 16 bits."""
IGNORED_CLASS = -1
"""Class of voxels that were not annotated (the ``ignore`` label of nnU-Net datasets)."""
ROUNDING = 1e-3
"""How far a value in a label map may lie from a whole number: files store some as scaled fractions."""

Value = Annotated[int, Field(ge=0, le=MOST_LABELS)]


class LabelScheme(Settings):
    """The labels of a dataset or network, and how their values become targets and outputs become masks."""

    values: dict[str, tuple[Value, ...]]
    """Values of each label in label maps, the background left out, in the order of the network's outputs."""
    order: tuple[Value, ...] = ()
    """Value that a mask has for each region, in the order of ``values``; later ones are painted over earlier
    ones. Empty where each label has one value."""
    ignore: int | None = None
    """Value of voxels that nobody has judged."""
    background: str | None = "background"
    """What value 0 is called; null where no name is given to it."""

    @classmethod
    def numbered(cls, num_classes: int) -> LabelScheme:
        """Labels without names, of values 1, 2, … below ``num_classes``."""
        return cls(values={str(value): (value,) for value in range(1, num_classes)})

    @property
    def has_regions(self) -> bool:
        """Whether labels are regions, which may overlap."""
        return bool(self.order)

    @property
    def num_outputs(self) -> int:
        """Channels of the network's head: one a class with the background, or one a region."""
        return len(self.values) + (not self.has_regions)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Name of each channel of the head."""
        return tuple(self.values) if self.has_regions else (self._background, *self.values)

    @property
    def output_values(self) -> tuple[tuple[int, ...], ...]:
        """Values in label maps of each channel of the head."""
        return tuple(self.values.values()) if self.has_regions else ((0,), *self.values.values())

    @property
    def _background(self) -> str:
        return self.background or "background"

    @property
    def is_numbered(self) -> bool:
        """Whether labels are no regions and have the values 1, 2, … in their order."""
        singles = [(value,) for value in range(1, len(self.values) + 1)]
        return not self.has_regions and list(self.values.values()) == singles

    @cached_property
    def codes(self) -> dict[str, int]:
        """The value that stands for each label in a mask."""
        if self.has_regions:
            return dict(zip(self.values, self.order, strict=True))
        return {name: own[0] for name, own in self.values.items()}

    @cached_property
    def by_code(self) -> dict[int, tuple[int, ...]]:
        """Values of each label in label maps, by what stands for it in a mask."""
        return {self.codes[name]: own for name, own in self.values.items()}

    @property
    def names(self) -> dict[int, str]:
        """Name of each label by its value in a mask, the background first."""
        return {0: self._background, **{code: name for name, code in self.codes.items()}}

    @cached_property
    def known(self) -> tuple[int, ...]:
        """All values of label maps but the ignored one, in the order of their classes."""
        if self.has_regions:
            return (0, *sorted({value for own in self.values.values() for value in own}))
        return (0, *(own[0] for own in self.values.values()))

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The smallest that holds every value of a mask."""
        return np.uint8 if max(self.codes.values(), default=0) <= 255 else np.uint16

    def naming(self, value: int) -> str:
        """Name of a label that a value belongs to, the background or "ignore" among them."""
        found = [name for name, own in self.values.items() if value in own]
        return found[0] if found else "ignore" if value == self.ignore else self._background

    def classes(self, label_map: Tensor) -> Tensor:
        """Return the class (int64) of each voxel of a label map, :data:`IGNORED_CLASS` if it is ignored."""
        table = torch.zeros(max(*self.known, self.ignore or 0) + 1, dtype=torch.int64)
        table[list(self.known)] = torch.arange(len(self.known))
        if self.ignore is not None:
            table[self.ignore] = IGNORED_CLASS
        return table[label_map.long()]

    def membership(self) -> Tensor:
        """Which classes lie in which region: (R, K) bool."""
        return torch.tensor([[value in own for value in self.known] for own in self.values.values()])

    def activate(self, logits: Tensor, dim: int) -> Tensor:
        """Return the probability of each output: they sum to one over classes, and not over regions."""
        return logits.sigmoid() if self.has_regions else logits.softmax(dim)

    def decide(self, probabilities: Tensor) -> Tensor:
        """Return which label each voxel is: 0 for the background, 1 for the first of ``values``, …

        Args:
            probabilities: (K, …) of classes, of which the largest decides (logits do as well), or (R, …) of
                regions, each there where it is above a half and painted over those before it.

        Returns:
            (…) uint8, or int16 of more than 255 outputs; :meth:`mask` turns it into values.
        """
        dtype = torch.uint8 if len(probabilities) <= 255 else torch.int16
        if not self.has_regions:
            # On the CPU several times faster than argmax.
            return probabilities.max(dim=0).indices.to(dtype)
        found = torch.zeros(probabilities.shape[1:], dtype=dtype, device=probabilities.device)
        for number, probability in enumerate(probabilities, start=1):
            found.masked_fill_(probability > 0.5, number)
        return found

    def mask(self, decided: Tensor) -> NDArray[np.unsignedinteger[Any]]:
        """Return the values of a mask for what :meth:`decide` gave."""
        voxels: NDArray[Any] = decided.cpu().numpy()
        return voxels.astype(self.dtype, copy=False) if self.is_numbered else self._mask_values[voxels]

    @cached_property
    def _mask_values(self) -> NDArray[np.unsignedinteger[Any]]:
        return np.array([0, *self.codes.values()], dtype=self.dtype)

    def without(self, code: int) -> dict[int, int]:
        """Return what the values of a label become where it turns out not to be: what lies around it.

        Regions within it go, too; of those that go beyond it the one painted last remains.
        """
        gone = self.by_code[code]
        around = {
            value: [own for own, held in self.by_code.items() if value in held and own not in gone]
            for value in gone
        }
        return {value: found[-1] if found else 0 for value, found in around.items()}


def whole(voxels: NDArray[Any]) -> NDArray[Any] | None:
    """Return the values of a label map as whole numbers, None where they are none.

    Some files store them as fractions with a scale, which brings them back with a rounding error.
    """
    if voxels.dtype.kind in "iu":
        return voxels
    rounded = np.rint(voxels)
    with np.errstate(invalid="ignore"):  # infinite ones
        return rounded if np.all(np.abs(voxels - rounded) <= ROUNDING) else None


def mask_of(label_map: NDArray[Any], values: Sequence[int]) -> NDArray[np.bool_]:
    """Return where a label map has any of a few values."""
    mask: NDArray[np.bool_] = label_map == values[0]
    for value in values[1:]:
        mask |= label_map == value
    return mask
