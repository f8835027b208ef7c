"""Windows through a network: as many at a time as fit, and those that hold one value throughout only once.

A network sees of a scan nothing but the window it is given, so windows of the very same content have the very
same logits. Air is mostly noise, but the intensity window of CT makes it one value, and so are the corners
that a scanner leaves empty: a window that holds nothing else is computed once, and its logits serve for all
others like it. That is exact for every network, whatever it knows of places within a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, combinations

import torch
from torch import Tensor, nn

from misfm.inference.precision import computing_in
from misfm.memory import is_out_of_memory
from misfm.models.heads import finest
from misfm.terminal import logger

Place = tuple[slice, slice, slice]

MOST_WINDOWS = 8
"""In one pass; by then a GPU is busy."""
_SHARE = 0.8
"""Of the memory of a GPU that is free, which windows may take."""
_SAMPLE = 8
"""Of every so many voxels along an axis one is looked at, to find windows that may hold one value."""


class Batching:
    """How many windows go through a network at a time.

    On a CPU it is one, for more are no faster. On a GPU the first pass is of one window, and what it took
    says how many fit. Where memory runs out all the same, it is half as many from then on.

    Args:
        size: a number to keep to, as long as it fits; None chooses.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size or 1
        self._is_chosen = size is not None

    def run(self, compute: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
        """Return ``compute`` (B, ...) of all windows (B, ...), in as many passes as it takes."""
        if not self._is_chosen and windows.device.type == "cuda":
            return self._first(compute, windows)
        try:
            return compute(windows)
        except Exception as error:
            if len(windows) == 1 or not is_out_of_memory(error):
                raise
        # Outside of the handler: the error holds on to the memory of what failed.
        if windows.device.type == "cuda":
            torch.cuda.empty_cache()
        self.size = min(self.size, (len(windows) + 1) // 2)
        return torch.cat([self.run(compute, part) for part in torch.split(windows, self.size)])

    def _first(self, compute: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
        device = windows.device
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        logits = torch.cat([compute(window) for window in torch.split(windows, 1)])
        taken = torch.cuda.max_memory_allocated(device) - before
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        self.size = max(1, min(MOST_WINDOWS, int(_SHARE * free / max(1, taken))))
        self._is_chosen = True
        return logits


class Passes:
    """Runs a network over windows of an image.

    Args:
        network: in eval mode; (B, C, D, H, W) to logits (B, K, D, H, W) of any float type, or a list of which
            the first is taken.
        prepare: makes the network's input of voxels (B, C, ...), voxel by voxel; None casts to float32.
        batching: how many windows at a time.
        mirror_axes: spatial axes (0, 1, 2) over whose mirrored combinations logits are averaged.
        dtype: what the network is computed in.
        reuse: compute windows of one value only once.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        prepare: Callable[[Tensor], Tensor] | None = None,
        batching: Batching | None = None,
        mirror_axes: Sequence[int] = (),
        dtype: torch.dtype = torch.float32,
        reuse: bool = True,
    ) -> None:
        self.network = network
        self.batching = batching or Batching()
        self.dtype = dtype
        self.reuse = reuse
        self.num_reused = 0
        self._prepare = prepare or Tensor.float
        self._flips = list(
            chain.from_iterable(combinations(mirror_axes, n) for n in range(len(mirror_axes) + 1))
        )
        self._known: tuple[tuple[int, ...], Tensor] | None = None

    def device(self, image: Tensor) -> torch.device:
        """Where the network is; where the image is, if that has no parameters."""
        return next((parameter.device for parameter in self.network.parameters()), image.device)

    def over(self, image: Tensor, places: Iterable[Place], moved: Tensor | None = None) -> Iterator[Tensor]:
        """Yield logits (K, D, H, W) float32 of each window, in their order, on the network's device.

        Args:
            image: (C, D, H, W), any type.
            places: of the windows, all of one size.
            moved: the same image where the network is, if it is there.
        """
        source = image if moved is None else moved
        device = self.device(source)
        waiting: list[Tensor | None] = []  # None: as what is known
        for place in places:
            window = source[:, *place]
            key = self._only_value(image[:, *place], window, device) if self.reuse else None
            if key is not None and (self._known is None or self._known[0] != key):
                yield from self._done(waiting, device)
                waiting = []
                self._known = key, self._compute([window], device)[0].clone()
            if key is not None:
                self.num_reused += 1
            waiting.append(None if key is not None else window)
            if sum(one is not None for one in waiting) >= self.batching.size:
                yield from self._done(waiting, device)
                waiting = []
        yield from self._done(waiting, device)

    def _done(self, waiting: Sequence[Tensor | None], device: torch.device) -> Iterator[Tensor]:
        windows = [window for window in waiting if window is not None]
        logits = iter(self._compute(windows, device)) if windows else iter(())
        for window in waiting:
            if window is not None:
                yield next(logits)
            else:
                assert self._known is not None
                yield self._known[1]

    def _only_value(self, window: Tensor, moved: Tensor, device: torch.device) -> tuple[int, ...] | None:
        """The bits of the one value that each channel of the network's input holds; None where one varies."""
        sample = window[None, :, ::_SAMPLE, ::_SAMPLE, ::_SAMPLE]
        if _bits_of_one(self._prepare(sample)) is None:
            return None
        return _bits_of_one(self._prepare(moved[None].to(device)))

    @torch.inference_mode()
    def _compute(self, windows: Sequence[Tensor], device: torch.device) -> Tensor:
        """Return float32 logits (B, K, D, H, W), the mean over all mirrored versions."""
        inputs = self._prepare(torch.stack(list(windows)).to(device))
        return self.batching.run(self._logits, inputs)

    def _logits(self, inputs: Tensor) -> Tensor:
        total: Tensor | None = None
        for axes in self._flips:
            dims = [axis + 2 for axis in axes]
            logits = self._safe(inputs.flip(dims) if dims else inputs)
            logits = logits.flip(dims) if dims else logits
            total = logits if total is None else total + logits
        assert total is not None
        return total / len(self._flips) if len(self._flips) > 1 else total

    def _safe(self, inputs: Tensor) -> Tensor:
        """Run the network; in float32 from then on where the range of float16 turns out to be too small."""
        with computing_in(self.dtype, inputs.device):
            logits = finest(self.network(inputs)).float()
        if self.dtype != torch.float16 or bool(logits.isfinite().all()):
            return logits
        logger.warning("the network's values exceed those of float16: it is computed in float32.")
        self.dtype = torch.float32
        return finest(self.network(inputs)).float()


def _bits_of_one(x: Tensor) -> tuple[int, ...] | None:
    """The bits of the value that each channel of (1, C, D, H, W) float32 holds; None where one has several.

    Bits, for 0 and -0 are equal and not the same.
    """
    bits = x[0].contiguous().view(torch.int32)
    first = bits[:, :1, :1, :1]
    return tuple(first.flatten().tolist()) if bool((bits == first).all()) else None
