"""Whether a training fits into the machine, estimated before work begins."""

from __future__ import annotations

from math import prod

from misfm.config import NetworkSettings, RunSettings
from misfm.errors import ConfigError
from misfm.memory import available_bytes, in_gib
from misfm.models import NETWORKS
from misfm.models.base import UNKNOWN_DEMAND
from misfm.parallel import check_workers
from misfm.planning.machine import present_machine
from misfm.training.batch_stream import loader_workers
from misfm.volume import Shape

LEAST_SHARE = 0.25
"""Of what was measured in float32, that a training step keeps in any case: bfloat16 takes half of that."""
COPIES = 3
"""Of a batch, at least: as read, as varied, and as the network gets it."""


def check_room(
    settings: RunSettings, network: NetworkSettings, patch_size: Shape, batch_size: int, in_channels: int
) -> None:
    """Refuse a training that the machine cannot hold, by an estimate that is sure to be too low.

    Args:
        settings: of the run.
        network: to train.
        patch_size: voxels along (D, H, W).
        batch_size: samples.
        in_channels: of the image.

    Raises:
        ConfigError: says what it takes and what there is.
    """
    machine = present_machine()
    voxels = batch_size * prod(patch_size)
    batch = voxels * 4 * in_channels * COPIES
    workers = loader_workers(settings.training.num_workers)
    check_workers(workers, "training.num_workers")
    recompute = settings.training.recompute_activations
    kept = voxels * least_saved_bytes(network, recompute=recompute)
    spared = kept - voxels * least_saved_bytes(network, recompute=True)
    free = available_bytes()
    parts = [(batch * (1 + workers) + (kept if machine.device == "cpu" else 0), free, "memory")]
    if machine.device != "cpu":
        needed = (batch / COPIES + kept) / machine.count
        parts.append((needed, machine.free_bytes, "memory of the GPU"))
    for needed, there, where in parts:
        if needed > there:
            fewer = ", or fewer num_workers" if workers else ""
            if spared and needed * (1 - spared / (batch + kept)) <= there:
                fewer += ", or training.recompute_activations=true, with which they may fit"
            raise ConfigError(
                f"Batches of {batch_size:,} patches of {patch_size} take {in_gib(needed)} of {where} or more "
                f"and {in_gib(there)} are free: choose a smaller batch_size or patch_size{fewer}."
            )


def least_saved_bytes(network: NetworkSettings, *, recompute: bool = False) -> float:
    """Return how many bytes a training step keeps for each voxel, at the very least."""
    demand = NETWORKS.demand(network.name)
    if demand == UNKNOWN_DEMAND:
        return 0.0
    channels = network.options.get("channels")
    first = channels[0] if isinstance(channels, list | tuple) and channels else demand.width
    if demand.width is None or not isinstance(first, int | float):  # building it says what is wrong
        return LEAST_SHARE * demand.kept(recompute=recompute)
    return LEAST_SHARE * min(1.0, first / demand.width) * demand.kept(recompute=recompute)
