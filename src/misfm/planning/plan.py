"""Defaults of a fine-tuning that follow from its dataset and the machine, each with its reason.

What is chosen is left alone and not commented on. The plan depends on the weights by their network and patch
only, which a twin from scratch shares.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from misfm.config import FinetuneSettings, NetworkSettings
from misfm.models import NETWORKS
from misfm.planning.machine import Machine
from misfm.settings import as_option
from misfm.volume import FloatTriple, Shape, triple

CPU_VOXELS = 2**16
"""Voxels of a patch on a CPU, where time is short: with the lean U-Net, two take a core about a second."""
GPU_VOXELS = 128**3
"""Voxels of a patch that are enough however large the GPU."""
MEMORY_SHARE = 0.7
"""Of a GPU's free memory, for what is saved for the backward pass; the rest is for the weights with their
gradients and averages, the gradients of activations and the workspace of convolutions."""
SMALLEST_SIDE = 16
BATCH_SIZE, LARGEST_BATCH = 2, 8
STEPS_OF_WHOLE, STEPS_OF_PARTS, FEW_CASES = 2000, 5000, 5
"""Steps on a CPU for up to so many cases, where a patch holds most of a scan and where it holds less: what
validation curves from scratch took to level off on hippocampus MR and on head-neck CT (docs/results.md)."""
MOST = 0.5
"""Share of the median scan from which on a patch holds most of it; 0.80 and 0.06 were measured."""
MOST_TIMES = 4
"""Times as many steps for many cases, at most."""
GPU_STEPS = 4
"""Times as many steps on a GPU."""
WIDE = (32, 64, 128, 256, 320)
"""Channels of the lean U-Net on a GPU (nnU-Net's)."""
WIDE_FROM = 6 * 2**30
"""Bytes that a GPU of 8 GiB has free once the system has taken its part."""


SAVED_FOR_CLASS = 24
"""Bytes for each voxel and class, of logits and loss at all levels; measured alike, 14 to 24."""


@dataclass(frozen=True)
class Facts:
    """What a plan follows from.

    Attributes:
        shape: voxels (D, H, W) of the median scan at the spacing of the fine-tuning.
        spacing: that spacing, mm.
        num_cases: training cases.
        num_channels: of an image.
        num_classes: background included.
        machine: what trains.
        network: that of the weights or the one that is given; None is planned.
        weights_patch: patch of the weights, None without.
        recompute: whether blocks of the network are computed twice instead of kept.
    """

    shape: Shape
    spacing: FloatTriple
    num_cases: int
    num_channels: int
    num_classes: int
    machine: Machine
    network: NetworkSettings | None = None
    weights_patch: Shape | None = None
    recompute: bool = False


@dataclass(frozen=True)
class Plan:
    """Settings that are complete, and a sentence for each that was planned."""

    patch_size: Shape
    batch_size: int
    steps: int
    network: NetworkSettings
    reasons: tuple[str, ...]


def plan(settings: FinetuneSettings, facts: Facts) -> Plan:
    """Choose what ``settings`` leave open: network, patch, batch and steps."""
    reasons: list[str] = []
    network, patch, batch = facts.network, settings.patch_size, settings.batch_size
    steps = settings.training.steps
    extra = settings.unlabelled.batch_size if settings.unlabelled else 0
    if network is None:
        network, reason = plan_network(facts.machine)
        reasons.append(reason)
    if patch is None:
        samples = batch or shared_evenly(BATCH_SIZE, facts.machine)
        patch, reason = plan_patch(network, facts, math.ceil((samples + extra) / facts.machine.count))
        reasons.append(reason)
    if batch is None:
        batch, reason = plan_batch(network, facts, patch, extra)
        reasons.append(reason)
    if steps is None:
        steps, reason = plan_steps(facts, patch)
        reasons.append(reason)
    return Plan(patch, batch, steps, network, tuple(reasons))


def plan_network(machine: Machine) -> tuple[NetworkSettings, str]:
    """Choose the width of the lean U-Net."""
    if machine.device != "cpu" and machine.free_bytes >= WIDE_FROM:
        wide = NetworkSettings(name="unet", options={"channels": list(WIDE)})
        return wide, f"network unet with {as_option(WIDE)} channels: on a {machine.name}"
    return NetworkSettings(), f"network unet with its default channels: on a {machine.name}"


def plan_patch(network: NetworkSettings, facts: Facts, samples: int) -> tuple[Shape, str]:
    """Choose the patch: that of the weights if it fits, else as large as ``samples`` of them may be.

    Its shape is that of the median scan, as nnU-Net has it: the side that covers least of it grows next.
    """
    budget, limit = voxel_budget(network, facts, samples)
    theirs = facts.weights_patch
    if theirs is not None and NETWORKS.demand(network.name).is_fixed:
        return theirs, f"patch {as_option(theirs)}: the only one that the weights of {network.name} take"
    if theirs is not None and math.prod(theirs) <= budget:
        return theirs, f"patch {as_option(theirs)}: that of the weights; {limit}"
    patch = grow(facts.shape, budget, multiple_of(network))
    median = f"median scan {as_option(facts.shape)} at {as_option(facts.spacing)} mm"
    reason = f"patch {as_option(patch)}: {limit}; {median}"
    if theirs is not None:
        reason += f"; the {as_option(theirs)} of the weights are more than that"
    return patch, reason


def voxel_budget(network: NetworkSettings, facts: Facts, samples: int) -> tuple[int, str]:
    """Voxels that each of ``samples`` patches of a step may have, and what limits them."""
    machine = facts.machine
    if machine.device == "cpu":
        return CPU_VOXELS, f"on a CPU about {CPU_VOXELS:,} voxels a patch"
    fitting = int(MEMORY_SHARE * machine.free_bytes / (samples * saved_bytes(network, facts)))
    if fitting >= GPU_VOXELS:
        return GPU_VOXELS, f"on a {machine.name} up to {GPU_VOXELS:,} voxels a patch"
    limit = f"on a {machine.name} room for {samples} patches of {fitting:,} voxels"
    if not facts.recompute:
        twice = replace(facts, recompute=True)
        more = fitting * saved_bytes(network, facts) / saved_bytes(network, twice)
        if more > fitting:
            limit += f" (of {min(GPU_VOXELS, int(more)):,} with training.recompute_activations=true)"
    return fitting, limit


def saved_bytes(network: NetworkSettings, facts: Facts) -> float:
    """Bytes that a training step keeps for each voxel."""
    demand = NETWORKS.demand(network.name)
    saved: float = demand.kept(recompute=facts.recompute)
    if demand.width is not None and "channels" in network.options:
        saved *= network.options["channels"][0] / demand.width
    return saved + SAVED_FOR_CLASS * facts.num_classes + 4 * facts.num_channels


def multiple_of(network: NetworkSettings) -> int:
    """Return what the sides of a patch are multiples of; strides that weights bring along have their say."""
    strides: Sequence[Sequence[int]] = network.options.get("strides") or ()
    coarsest: list[int] = [math.prod(steps) for steps in zip(*strides, strict=True)]
    return max([NETWORKS.demand(network.name).multiple, *coarsest])


def grow(shape: Shape, budget: int, multiple: int) -> Shape:
    """Grow a patch in steps of 8 voxels, from 64 on of 16 for the halvings of a network, up to ``shape``.

    The side that covers the least of ``shape`` is next, until it covers all or the next step is one too much
    for ``budget``: a larger budget only goes further along the same way. Even the smallest patch leaves two
    voxels at the coarsest level, for one alone cannot be normalised.
    """
    sides = [max(SMALLEST_SIDE, multiple)] * 3
    while True:
        cover = [side / scan for side, scan in zip(sides, shape, strict=True)]
        axis = cover.index(min(cover))
        taller = list(sides)
        taller[axis] += max(multiple, 8 if sides[axis] < 64 else 16)
        if max(sides) > multiple and (cover[axis] >= 1 or math.prod(taller) > budget):
            return triple(sides)
        sides = taller


def plan_batch(network: NetworkSettings, facts: Facts, patch: Shape, extra: int) -> tuple[int, str]:
    """Choose the batch: two, or more where a patch holds the whole scan and leaves room."""
    machine, voxels = facts.machine, math.prod(patch)
    if machine.device == "cpu":
        room = max(BATCH_SIZE, BATCH_SIZE * CPU_VOXELS // voxels)
    else:
        room = int(MEMORY_SHARE * machine.free_bytes / (voxels * saved_bytes(network, facts)))
        room = machine.count * room - extra
    whole = all(side >= scan for side, scan in zip(patch, facts.shape, strict=True))
    batch = max(1, min(room, LARGEST_BATCH if whole else BATCH_SIZE))
    if batch % machine.count:
        batch = shared_evenly(batch, machine)
        return batch, f"batch {batch}: as many for each of {machine.count} devices"
    if batch > BATCH_SIZE:
        return batch, f"batch {batch}: a patch holds the median scan, and on a {machine.name} there is room"
    if room <= batch:
        short = "time" if machine.device == "cpu" else "room"
        return batch, f"batch {batch}: on a {machine.name} there is no {short} for more"
    return batch, f"batch {batch}: a patch is smaller than the median scan"


def shared_evenly(batch: int, machine: Machine) -> int:
    """Return the next larger batch that all devices have an equal share of."""
    return machine.count * math.ceil(batch / machine.count)


def plan_steps(facts: Facts, patch: Shape) -> tuple[int, str]:
    """Choose the number of steps: more where a patch is a part of the scan, with the cases, and on a GPU."""
    on_gpu = facts.machine.device != "cpu"
    share = math.prod(min(side / scan, 1) for side, scan in zip(patch, facts.shape, strict=True))
    base = (STEPS_OF_WHOLE if share >= MOST else STEPS_OF_PARTS) * (GPU_STEPS if on_gpu else 1)
    times = min(math.sqrt(max(facts.num_cases, FEW_CASES) / FEW_CASES), MOST_TIMES)
    steps = 100 * round(base * times / 100)
    cases = f"{facts.num_cases} training case{'s' if facts.num_cases != 1 else ''}"
    return steps, (
        f"steps {steps}: {cases} on a {'GPU' if on_gpu else 'CPU'}, a patch holds {share:.0%} of the median "
        f"scan; {base} up to {FEW_CASES} cases, and more with the root of their number"
    )
