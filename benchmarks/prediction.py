"""Prediction beside MONAI's sliding window, with the same network on the same scan; and what 16 bits change.

    pip install monai
    python benchmarks/prediction.py --run RUN --input SCAN [SCAN ...]

``RUN`` is a fine-tuning, the scans are of its kind. Both slide windows over the first scan as it is prepared
for the network, at several overlaps and batch sizes, in turn; the floor is the network alone on as many
windows. MONAI gets the normalised image, misfm normalises window by window, as ``misfm predict`` does; all
windows are computed. Beside that stands what ``misfm predict`` does by itself: its precision, and windows
of one value once. Then every scan is labelled in 32 and in 16 bits, and voxels that differ are counted; what
the device does not multiply natively is emulated: operands and results of every layer are rounded to it.
Writes ``results/prediction.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, Floor, alternate, report, rounded
from torch import Tensor, nn

from misfm.data.readers import read_volume
from misfm.files import write_text
from misfm.inference.load import load_weights
from misfm.inference.passes import Batching, Passes
from misfm.inference.precision import dtype_of, name_of
from misfm.inference.predictor import Predictor, Prepared
from misfm.inference.sliding_window import blended_logits, window_starts
from misfm.report.markdown import markdown_table

SETTINGS = ((0.25, 1), (0.5, 1), (0.5, 4), (0.75, 1))
"""Overlap and windows in one pass."""


def windows_of(prepared: Prepared, predictor: Predictor, overlap: float) -> int:
    sides = zip(prepared.image.shape[1:], predictor.spec.patch_size, strict=True)
    return prod(len(window_starts(max(side, size), size, overlap)) for side, size in sides)


def slide(predictor: Predictor, prepared: Prepared, overlap: float, batch: int | None, **more: Any) -> Passes:
    passes = Passes(predictor.network, prepare=prepared.normalise, batching=Batching(batch), **more)
    for _ in blended_logits(passes, prepared.image, predictor.spec.patch_size, overlap=overlap):
        pass
    return passes


def compare(predictor: Predictor, prepared: Prepared, rounds: int) -> list[dict[str, Any]]:
    """A row for each setting: times of misfm, of MONAI, and of the network alone."""
    from monai.inferers import sliding_window_inference

    network, window = predictor.network, predictor.spec.patch_size
    device = next(network.parameters()).device
    image = prepared.normalise(prepared.image[None].to(device))
    dtype = dtype_of("auto", device)
    rows = []
    for overlap, batch in SETTINGS:

        def ours(_: int, overlap: float = overlap, batch: int = batch) -> None:
            slide(predictor, prepared, overlap, batch, reuse=False)

        def theirs(_: int, overlap: float = overlap, batch: int = batch) -> None:
            with torch.inference_mode():
                sliding_window_inference(image, window, batch, network, overlap, mode="gaussian")

        def alone(_: int, overlap: float = overlap, batch: int = batch) -> None:
            x = torch.randn(batch, image.shape[1], *window, device=device)
            with torch.inference_mode():
                for _ in range(ceil(windows_of(prepared, predictor, overlap) / batch)):
                    network(x)

        def default(_: int, overlap: float = overlap) -> None:
            slide(predictor, prepared, overlap, None, dtype=dtype)

        actions = {"misfm": ours, "MONAI": theirs, "network alone": alone, "misfm by itself": default}
        times = alternate(actions, rounds)
        rows.append({"overlap": overlap, "batch": batch, "times": times})
    return rows


class Rounding:
    """Rounds what goes into and out of every layer, as if it were computed in ``dtype``."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def _round(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            return value.to(self.dtype).to(value.dtype)
        return type(value)(map(self._round, value)) if isinstance(value, tuple | list) else value

    @contextmanager
    def of(self, network: nn.Module) -> Iterator[None]:
        """Round while the context lasts."""
        kept = {name: value.detach().clone() for name, value in network.named_parameters()}
        layers = [layer for layer in network.modules() if not [*layer.children()]]
        hooks = [
            layer.register_forward_pre_hook(lambda _, inputs: self._round(inputs)) for layer in layers
        ] + [layer.register_forward_hook(lambda _, __, output: self._round(output)) for layer in layers]
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(self._round(parameter))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            with torch.no_grad():
                for name, parameter in network.named_parameters():
                    parameter.copy_(kept[name])


def is_native(dtype: torch.dtype, device: torch.device) -> bool:
    return device.type == "cuda" or dtype_of("auto", device) == dtype


def differences(predictor: Predictor, scans: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Voxels that 16 bits label otherwise, of all and of those that either labels, by type."""
    device = next(predictor.network.parameters()).device
    found: dict[str, dict[str, Any]] = {
        name_of(dtype): {"native": is_native(dtype, device), "voxels": 0, "labelled": 0, "differ": 0}
        for dtype in (torch.bfloat16, torch.float16)
    }
    for path in scans:
        prepared = predictor.prepare(read_volume(path))
        predictor.dtype = torch.float32
        exact = predictor.label(prepared)
        for dtype in (torch.bfloat16, torch.float16):
            row = found[name_of(dtype)]
            if row["native"]:
                predictor.dtype = dtype
                other = predictor.label(prepared)
            else:
                with Rounding(dtype).of(predictor.network):
                    other = predictor.label(prepared)
            predictor.dtype = torch.float32
            row["voxels"] += exact.size
            row["labelled"] += int(((exact != 0) | (other != 0)).sum())
            row["differ"] += int((exact != other).sum())
    return found


def parts(predictor: Predictor, path: Path) -> dict[str, float]:
    """Wall seconds of each part of labelling a scan."""
    times, began = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        times[name], began = rounded(time.perf_counter() - began), time.perf_counter()

    volume = read_volume(path)
    lap("read")
    prepared = predictor.prepare(volume)
    lap("prepare")
    labels = predictor.label(prepared)
    lap("network and blending")
    predictor.finish(prepared, labels)
    lap("clean up")
    return times


def table(rows: Sequence[dict[str, Any]], line: dict[str, Any]) -> str:
    heads = ["overlap", "windows a pass", "CPU s: misfm", "MONAI", "network alone", "misfm by itself"]
    cells = [
        [f"{row['overlap']}", f"{row['batch']}"]
        + [f"{times.row()['cpu_s']:.2f}" for times in row["times"].values()]
        for row in rows
    ]
    lines = markdown_table(heads, cells)
    for name, row in line["differ"].items():
        how = "natively" if row["native"] else "emulated by rounding"
        lines += [
            "",
            f"In {name} ({how}) {row['differ']:,} of {row['voxels']:,} voxels of {line['num_scans']} scan(s) "
            f"are labelled otherwise than in float32; {row['labelled']:,} have a label.",
        ]
    share = line["reused"]["windows_of_one_value"] / line["reused"]["windows"]
    info = line["machine"]
    lines += [
        "",
        f"Of the first scan's windows at overlap 0.5 {share:.0%} hold one value. By itself misfm computes in "
        f"{line['precision']} here. {line['per']}; medians of {line['rounds']} rounds in turn, on "
        f"{info['cpu']} ({info['capability']}), {info['threads']} thread(s), torch {info['torch']}, load "
        f"average {info['load_average']}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Time prediction beside MONAI; count what 16 bits change.")
    parser.add_argument("--run", required=True, help="run folder or weights")
    parser.add_argument("--input", type=Path, nargs="+", required=True, help="scans of its kind")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    predictor = load_weights(args.run, precision="float32").predictor
    prepared = predictor.prepare(read_volume(args.input[0]))
    device = next(predictor.network.parameters()).device
    rows = compare(predictor, prepared, args.rounds)
    middle = next(row["times"] for row in rows if (row["overlap"], row["batch"]) == (0.5, 1))
    shape = "x".join(str(side) for side in prepared.image.shape[1:])
    window = "x".join(map(str, predictor.spec.patch_size))
    passes = slide(predictor, prepared, 0.5, 1)
    line = report(
        "prediction",
        {name: middle[name] for name in ("misfm", "MONAI", "misfm by itself")},
        per=f"one scan of {shape}, windows of {window}, overlap 0.5",
        floor=Floor("the network alone, CPU seconds", middle["network alone"].row()["cpu_s"]),
        settings=[
            {**row, "times": {name: times.row() for name, times in row["times"].items()}} for row in rows
        ],
        differ=differences(predictor, args.input),
        num_scans=len(args.input),
        precision=name_of(dtype_of("auto", device)),
        parts=parts(predictor, args.input[0]),
        reused={"windows": windows_of(prepared, predictor, 0.5), "windows_of_one_value": passes.num_reused},
    )
    write_text(RESULTS / "prediction.md", table(rows, line))


if __name__ == "__main__":
    main()
