"""Curves and intervals as PNG images that read well on light and on dark pages.

Backgrounds are transparent and lines and letters of medium lightness. The colours keep apart for colour-blind
readers (after Okabe and Ito's palette) and the baseline is grey.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from misfm.evaluation.arms import ALL, Arm, Comparison, mean_curve
from misfm.text import printable

INK = "#858c96"
COLOURS = ("#8f959e", "#2f86c8", "#e08a1e", "#14a07a", "#c265a0", "#b8a30f")
_DPI = 150

Curve = Sequence[tuple[int, float]]


def learning_curves(arms: Sequence[Arm]) -> bytes:
    """Draw validation Dice over steps: every run a thin line, every arm's mean over its seeds a thick one.

    Returns:
        A PNG image.
    """
    figure, axes = _canvas("step", "validation Dice")
    for colour, name in zip(_cycle(), dict.fromkeys(arm.name for arm in arms), strict=False):
        curves = [arm.curve for arm in arms if arm.name == name and arm.curve]
        for curve in curves if len(curves) > 1 else []:
            axes.plot(*_xy(curve), color=colour, linewidth=0.9, alpha=0.55)
        if mean_points := mean_curve(arms, name):
            steps, mean = _xy(mean_points)
            axes.plot(steps, mean, color=colour, linewidth=2.4, label=plain_text(name))
            axes.plot(steps[-1:], mean[-1:], "o", color=colour, markersize=5)
    axes.set_ylim(bottom=0)
    return _finish(figure, axes)


def loss_curves(curves: Mapping[str, Curve]) -> bytes:
    """Draw (step, loss) by name: the logged values faintly, a running mean on top.

    Returns:
        A PNG image.
    """
    figure, axes = _canvas("step", "loss")
    for colour, (name, curve) in zip(_cycle(start=1), curves.items(), strict=False):
        if curve:
            steps, values = _xy(curve)
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
            axes.plot(steps, _running_mean(values), color=colour, linewidth=2.2, label=plain_text(name))
    return _finish(figure, axes)


def difference_plot(comparison: Comparison) -> bytes:
    """Draw each arm's Dice difference to the baseline with its 95 % interval, by label and for all.

    Returns:
        A PNG image.
    """
    others = {name: scores for name, scores in comparison.scores.items() if name != comparison.baseline}
    labels = list(dict.fromkeys(label for scores in others.values() for label in scores))
    figure, axes = _canvas(
        f"Dice minus {plain_text(comparison.baseline)}", "", height=1.2 + 0.38 * len(labels)
    )
    axes.axvline(0, color=INK, linewidth=1)
    offsets = np.linspace(-0.14, 0.14, len(others)) if len(others) > 1 else [0.0]
    for colour, offset, (name, scores) in zip(_cycle(start=1), offsets, others.items(), strict=False):
        rows = [(labels.index(label) + offset, s.difference) for label, s in scores.items() if s.difference]
        for y, difference in rows:
            if difference.interval is not None:
                axes.plot(difference.interval, [y, y], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([d.mean for _, d in rows], [y for y, _ in rows], "o", color=colour, label=plain_text(name))
    axes.set_yticks(range(len(labels)), [plain_text(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return _finish(figure, axes)


def dice_by_labels(comparisons: Mapping[int, Comparison]) -> bytes:
    """Draw each arm's mean Dice over the number of labels, with its 95 % interval.

    Args:
        comparisons: number of labels -> comparison of the same arms.

    Returns:
        A PNG image.
    """
    figure, axes = _canvas("labelled cases", "Dice")
    names = dict.fromkeys(name for comparison in comparisons.values() for name in comparison.scores)
    for place, (colour, name) in enumerate(zip(_cycle(), names, strict=False)):
        scores = {
            labels: one.scores[name].get(ALL) for labels, one in comparisons.items() if name in one.scores
        }
        known = [
            (labels, score)
            for labels, score in sorted(scores.items(), key=itemgetter(0))
            if score is not None
        ]
        xs = [labels * 1.02 ** (place - len(names) / 2) for labels, _ in known]  # intervals side by side
        for x, (_, score) in zip(xs, known, strict=True):
            if score.interval is not None:
                axes.plot([x, x], score.interval, color=colour, linewidth=1.6, solid_capstyle="round")
        axes.plot(xs, [score.mean for _, score in known], "o-", color=colour, label=plain_text(name))
    axes.set_xscale("log")
    axes.set_xticks(sorted(comparisons), [str(labels) for labels in sorted(comparisons)])
    axes.minorticks_off()
    return _finish(figure, axes)


def to_png(figure: Figure) -> bytes:
    """Render a figure with a transparent background."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, transparent=True, bbox_inches="tight", pad_inches=0.06)
    return buffer.getvalue()


def plain_text(text: str) -> str:
    """Keep matplotlib from reading ``$`` in a user's name as mathematics, and from what it cannot draw."""
    return printable(text).replace("$", r"\$")


def _canvas(x_label: str, y_label: str, *, height: float = 3.2) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, color=INK)
    axes.set_ylabel(y_label, color=INK)
    axes.tick_params(colors=INK, length=0)
    axes.grid(visible=True, color=INK, alpha=0.22, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    return figure, axes


def _finish(figure: Figure, axes: Axes) -> bytes:
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        figure.legend(
            loc="outside upper left", ncols=min(len(handles), 4), frameon=False, labelcolor=INK, borderpad=0
        )
    return to_png(figure)


def _cycle(start: int = 0) -> list[str]:
    """Colours for up to 30 things, the first of them once."""
    return [COLOURS[0], *COLOURS[1:] * 6][start:]


def _xy(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = np.asarray(curve, dtype=np.float64).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a window of a fifteenth of the curve, shorter at its ends."""
    reach = len(values) // 30
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    last = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    mean: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return mean
