"""Models Genesis: restore a patch whose texture, intensities and context were distorted.

Zhou et al., "Models Genesis", Medical Image Analysis 2021 (arXiv 2004.07882). A patch is, each with a
probability of its own and in this order,

1. mirrored: together with what is to be restored, so this is augmentation and no distortion;
2. shuffled locally: the voxels of many small windows change places within their window;
3. given other intensities by one monotone cubic Bézier curve, rising or falling;
4. painted: *in-painting* replaces up to five boxes by noise, *out-painting* everything outside of up to five.

Numbers are those of nnssl, whose patches of 160^3 get 10,000 windows. Departures from it:

- Curve and noise live in [0, 1]. nnssl applies them to z-scores as they are, which clips all below 0 and
  above 1; here they act on the range that the real voxels of each channel span, and are mapped back.
- 10,000 windows, whose sides grow with the patch, cover a patch of 160^3 voxels 1.5 times; the number of
  windows keeps that cover (``shuffle_cover``) whatever the patch. A window may have two voxels along an axis
  also where a tenth of the patch is less.
- All channels are shuffled alike, and padding counts neither in the loss nor in the range.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from misfm.augment.mirrors import flip
from misfm.batches import Placement, sent
from misfm.pretext.base import PRETEXTS
from misfm.pretext.restoration import Restorable, Restoration
from misfm.seeding import draw_below, draw_int
from misfm.settings import Probability
from misfm.volume import Box, Shape, triple

MAX_FLIPS, MAX_BOXES, ANOTHER_BOX = 3, 5, 0.95
"""Most mirrors and most painted boxes, and the chance of each further box (Models Genesis, authors' code)."""
BORDER = 3
"""Voxels that boxes stay away from the border of the patch where there is room."""
CURVE_KNOTS = 1001
"""Points of a curve that are computed, and entries of the table that stands for it."""
SORTED_TOGETHER = 2**17
"""Voxels of windows shuffled in one sort: enough to keep a device busy, few enough for a CPU's cache."""


@dataclass(frozen=True)
class Windows:
    """Windows whose voxels change places; a later window overwrites an earlier one.

    Attributes:
        starts: (n, 3) int64, first voxel along (D, H, W).
        sides: (n, 3) int64, voxels along (D, H, W).
        seed: of the permutations.
    """

    starts: Tensor
    sides: Tensor
    seed: int


@dataclass(frozen=True)
class Curve:
    """A cubic Bézier curve from (0, 0) to (1, 1), or mirrored from (0, 1) to (1, 0).

    Attributes:
        controls: (2, 2) float, the two control points (x, y) in the unit square.
        falling: bright becomes dark.
    """

    controls: Tensor
    falling: bool


@dataclass(frozen=True)
class Painting:
    """Noise within the boxes, or outside of all of them.

    Attributes:
        boxes: cuboids within the patch.
        outside: out-painting.
        seed: of the noise.
    """

    boxes: tuple[Box, ...]
    outside: bool
    seed: int


@dataclass(frozen=True)
class Distortion:
    """One draw; ``None`` leaves a step out.

    Attributes:
        flips: mirrored axes, counted from -3 (D) to -1 (W).
        windows: of the local shuffling.
        curve: of the intensities.
        painting: in- or out-painting.
    """

    flips: tuple[int, ...]
    windows: Windows | None
    curve: Curve | None
    painting: Painting | None


@PRETEXTS.register("models-genesis")
class ModelsGenesis(Restoration):
    """Restore what shuffling, intensity curves and painting distorted; see the module's docstring."""

    p_flip: Probability = 0.4
    """Chance of a mirror along a random axis, and then of another, three at most."""
    p_shuffle: Probability = 0.5
    """Chance of local shuffling."""
    shuffle_cover: Annotated[float, Field(ge=0)] = 1.5
    """Voxels of all windows together over those of the patch."""
    largest_window: Probability = 0.1
    """Largest side of a window over that of the patch."""
    p_curve: Probability = 0.9
    """Chance of an intensity curve."""
    p_painting: Probability = 0.9
    """Chance of in- or out-painting."""
    inpainting_share: Probability = 0.2
    """Share of in-painting in that."""

    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> Restorable:
        """Distort each patch on its own; see the base class."""
        real = placement.real(patch_size, patches.device)[:, 0]
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        masks: list[Tensor] = []
        for image, mask in zip(patches[:, 0], real, strict=True):
            plan = sample_distortion(self, patch_size, generator)
            targets.append(flip(image, plan.flips))
            masks.append(flip(mask, plan.flips))
            inputs.append(apply_distortion(targets[-1], masks[-1], plan))
        return Restorable(torch.stack(inputs), torch.stack(targets), real=torch.stack(masks))


def sample_distortion(settings: ModelsGenesis, shape: Shape, generator: Generator) -> Distortion:
    """Draw a distortion of a patch of (D, H, W) voxels."""

    def chance(probability: float) -> bool:
        return float(torch.rand((), generator=generator)) < probability

    mirrored: set[int] = set()
    for _ in range(MAX_FLIPS):
        if not chance(settings.p_flip):
            break
        mirrored ^= {draw_int(-3, -1, generator)}  # twice along an axis is no mirror
    shuffled = chance(settings.p_shuffle)
    curved = chance(settings.p_curve)
    painted = chance(settings.p_painting)
    return Distortion(
        flips=tuple(sorted(mirrored)),
        windows=sample_windows(settings, shape, generator) if shuffled else None,
        curve=Curve(torch.rand(2, 2, generator=generator), chance(0.5)) if curved else None,
        painting=sample_painting(shape, not chance(settings.inpainting_share), generator)
        if painted
        else None,
    )


def sample_windows(settings: ModelsGenesis, shape: Shape, generator: Generator) -> Windows:
    """Draw windows anywhere within a patch of (D, H, W) voxels, sides uniform from 1 on."""
    size = torch.tensor(shape)
    largest = (size * settings.largest_window).long().clamp(min=2).minimum(size)
    mean_volume = float(((largest + 1) / 2).prod())
    count = round(settings.shuffle_cover * size.prod().item() / mean_volume)
    sides = 1 + draw_below(largest, count, generator)
    room = size - sides + 1
    starts = (torch.rand(count, 3, generator=generator, dtype=torch.float64) * room).long()
    return Windows(starts, sides, draw_seed(generator))


def sample_painting(shape: Shape, outside: bool, generator: Generator) -> Painting:
    """Draw up to five boxes within a patch of (D, H, W) voxels.

    A box takes a sixth to a third of each side in in-painting, and three to four sevenths of it in
    out-painting, which keeps one box at least.
    """
    low, high = (3 / 7, 4 / 7) if outside else (1 / 6, 1 / 3)
    boxes: list[Box] = []
    while len(boxes) < MAX_BOXES:
        if float(torch.rand((), generator=generator)) >= ANOTHER_BOX and (boxes or not outside):
            break
        starts, sizes = [], []
        for side in shape:
            sizes.append(draw_int(max(1, int(low * side)), max(1, int(high * side)), generator))
            border = min(BORDER, (side - sizes[-1]) // 2)
            starts.append(draw_int(border, side - sizes[-1] - border, generator))
        boxes.append(Box(triple(starts), triple(sizes)))
    return Painting(tuple(boxes), outside, draw_seed(generator))


def draw_seed(generator: Generator) -> int:
    """Draw the seed of a generator that works on the device of the patches."""
    return int(torch.randint(2**62, (), generator=generator))


def apply_distortion(image: Tensor, real: Tensor, plan: Distortion) -> Tensor:
    """Return a distorted copy of a patch (C, D, H, W), mirrored already; pure but for the plan's seeds.

    Args:
        image: any finite values.
        real: (D, H, W) bool, the voxels whose range curve and noise fill.
        plan: what to do.
    """
    low = image.masked_fill(~real, torch.inf).amin((1, 2, 3), keepdim=True).nan_to_num(posinf=0.0)
    high = image.masked_fill(~real, -torch.inf).amax((1, 2, 3), keepdim=True).nan_to_num(neginf=0.0)
    distorted = image.clone()
    if plan.windows is not None:
        distorted = distorted.flatten(1)[:, shuffled_index(plan.windows, image)].view(image.shape)
    if plan.curve is not None:
        span = (high - low).clamp(min=torch.finfo(image.dtype).tiny)
        distorted = low + (high - low) * bend(((distorted - low) / span).clamp(0, 1), plan.curve)
    if plan.painting is not None:
        generator = torch.Generator(image.device).manual_seed(plan.painting.seed)
        noise = torch.rand(image.shape, generator=generator, device=image.device, dtype=image.dtype)
        within = torch.zeros_like(real)
        for box in plan.painting.boxes:
            within[box.slices] = True
        distorted = torch.where(within ^ plan.painting.outside, low + (high - low) * noise, distorted)
    return distorted


def shuffled_index(windows: Windows, image: Tensor) -> Tensor:
    """Return for each voxel of (C, D, H, W), flattened, the voxel whose value it gets.

    Every window reads the unshuffled image, so only the last window over a voxel matters. Many windows at a
    time are laid out one after the other as rows of voxels and shuffled in one sort.
    """
    device, numel = image.device, image[0].numel()
    generator = torch.Generator(device).manual_seed(windows.seed)
    index = torch.arange(numel + 1, device=device)  # one more, for what is written nowhere
    last_window = torch.full_like(index, -1)
    numbers = torch.arange(len(windows.sides))
    num_parts = 1 + int(windows.sides.prod(1).sum()) // SORTED_TOGETHER
    for part in numbers.tensor_split(num_parts):
        row, voxel = window_voxels(windows.starts[part], windows.sides[part], image)
        order = torch.randint(2**31, voxel.shape, generator=generator, device=device)
        source = voxel[(row * 2**31 + order).argsort()]  # rows stay where they are, voxels only move within
        window = sent(part, device)[row]
        last_window.scatter_reduce_(0, voxel, window, "amax")
        index[torch.where(last_window[voxel] == window, voxel, numel)] = source
    return index[:numel]


def window_voxels(starts: Tensor, sides: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """List the voxels of windows (n, 3), which are on the CPU, one window after the other.

    Returns:
        For each voxel the number of its window, and its number in the flattened image (C, D, H, W), on the
        device of the image.
    """
    total = int(sides.prod(1).sum())
    starts, sides = sent(starts, image.device), sent(sides, image.device)
    volumes = sides.prod(1)
    row = torch.repeat_interleave(volumes, output_size=total)
    place = torch.arange(len(row), device=row.device) - (volumes.cumsum(0) - volumes)[row]
    _, height, width = sides[row].unbind(1)
    line, w = place // width, place % width
    d, h, w = (starts[row] + torch.stack([line // height, line % height, w], 1)).unbind(1)
    return row, (d * image.shape[2] + h) * image.shape[3] + w


def bend(x: Tensor, curve: Curve) -> Tensor:
    """Map intensities in [0, 1] by a curve to [0, 1], with straight lines between table entries."""
    table = sent(tabulate(curve), x)
    places = x * (len(table) - 1)
    left = places.long().clamp_(max=len(table) - 2)
    return torch.lerp(table[left], table[left + 1], places - left)


def tabulate(curve: Curve) -> Tensor:
    """Values of a curve at evenly spaced intensities from 0 to 1, float64."""
    t = torch.linspace(0, 1, CURVE_KNOTS, dtype=torch.float64)[:, None]
    first, second = curve.controls.double()
    knots = 3 * (1 - t) ** 2 * t * first + 3 * (1 - t) * t**2 * second + t**3
    # With controls in the unit square both coordinates never fall along the curve.
    along, value = knots.T.contiguous()
    value = value.flip(0) if curve.falling else value
    right = torch.searchsorted(along, t[:, 0]).clamp(1, CURVE_KNOTS - 1)
    width = (along[right] - along[right - 1]).clamp(min=torch.finfo(along.dtype).tiny)
    return torch.lerp(value[right - 1], value[right], ((t[:, 0] - along[right - 1]) / width).clamp(0, 1))
