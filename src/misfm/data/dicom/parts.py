"""The images of one DICOM series to scans: by plane, and by the tags that tell volumes apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from misfm.data.dicom.frames import Frame
from misfm.data.dicom.grid import is_straight

_FEW = 2
"""Images of another plane in a series that are scouts of it, not scans of their own."""
SEVERAL = 3
"""Slices that are a stack."""
_EVEN = 1.05
"""The widest gap of an even stack, in its narrowest."""
_VOLUMES = ("stack", "time", "echo", "b-value", "kind")
"""What no two images of one scan differ in, wherever they lie."""


def is_stack(frames: Sequence[Frame]) -> bool:
    """Whether images lie evenly, one behind the other: what is plainly one scan."""
    normal = frames[0].normal
    ordered = sorted(frames, key=lambda frame: float(frame.position @ normal))
    gaps = np.diff([float(frame.position @ normal) for frame in ordered])
    if not len(gaps):
        return False
    return bool(gaps.min() > 0 and gaps.max() <= _EVEN * gaps.min() and is_straight(ordered))


def by_plane(frames: Sequence[Frame]) -> list[tuple[str, list[Frame]]]:
    """Images of one orientation each; one or two that cross the others are single images, as scouts are."""
    planes: list[list[Frame]] = []
    for frame in frames:
        for plane in planes:
            if abs(float(plane[0].normal @ frame.normal)) > 0.9:
                plane.append(frame)
                break
        else:
            planes.append([frame])
    if len(planes) == 1:
        return [("", list(frames))]
    largest = max(len(plane) for plane in planes)
    found: list[tuple[str, list[Frame]]] = []
    for number, plane in enumerate(planes, start=1):
        if len(plane) <= _FEW < largest:
            found += [("", [frame]) for frame in plane]
        else:
            found.append((f"plane {number}", plane))
    return found


def by_volume(frames: list[Frame]) -> list[tuple[str, list[Frame]]]:
    """Images of one stack, time, echo, b-value and kind each, and then of what else keeps them apart."""
    parts = [("", frames)]
    for at, (tag, _) in enumerate(frames[0].volume):
        if tag in _VOLUMES:
            parts = [
                (" ".join(filter(None, (name, more))), finer)
                for name, some in parts
                for more, finer in _by_tag(some, at)
            ]
    return [
        (" ".join(filter(None, (name, more))), finer)
        for name, some in parts
        for more, finer in _by_place(some)
    ]


def _by_tag(frames: list[Frame], at: int) -> list[tuple[str, list[Frame]]]:
    """Images of one value of a tag each, where two values or more have a stack of their own."""
    parts: dict[tuple[str, ...], list[Frame]] = {}
    for frame in frames:
        parts.setdefault((frame.volume[at][1],), []).append(frame)
    places = [list({one.place: one for one in some}.values()) for some in parts.values()]
    stacks = [some for some in places if len(some) >= SEVERAL]
    whole = list({frame.place: frame for frame in frames}.values())
    if len(stacks) < 2 or (is_stack(whole) and not all(map(is_stack, stacks))):
        return [("", frames)]  # a tag that changes at random within one even stack says nothing
    names = [name for name, _ in frames[0].volume]
    return [(_name(names, (at,), key, parts), some) for key, some in sorted(parts.items(), key=_in_order)]


def _by_place(frames: list[Frame]) -> list[tuple[str, list[Frame]]]:
    """Images that lie in one place each, with what tells them from the others; all where nothing does."""
    if _is_one(frames):
        return [("", frames)]
    names = [name for name, _ in frames[0].volume]
    ways: list[tuple[int, ...]] = [(at,) for at in range(len(names))]
    ways += [tuple(range(most)) for most in range(2, len(names) + 1)]
    for way in ways:
        parts: dict[tuple[str, ...], list[Frame]] = {}
        for frame in frames:
            parts.setdefault(tuple(frame.volume[at][1] for at in way), []).append(frame)
        if len(parts) > 1 and all(map(_is_one, parts.values())):
            return [
                (_name(names, way, key, parts), some) for key, some in sorted(parts.items(), key=_in_order)
            ]
    return [("", frames)]


def _is_one(frames: Sequence[Frame]) -> bool:
    """Whether no two images lie in one place, copies of an image aside."""
    places = {(frame.identity, frame.volume): frame.place for frame in frames}
    return len(set(places.values())) == len(places)


def _name(
    names: Sequence[str], way: Sequence[int], key: Sequence[str], parts: Mapping[tuple[str, ...], Any]
) -> str:
    telling = [
        (names[at], value)
        for place, (at, value) in enumerate(zip(way, key, strict=True))
        if len({other[place] for other in parts}) > 1
    ]
    return " ".join(f"{name} {value}".strip() for name, value in telling)


def _in_order(part: tuple[tuple[str, ...], Any]) -> list[tuple[float, str]]:
    def number(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            return 0.0

    return [(number(value), value) for value in part[0]]
