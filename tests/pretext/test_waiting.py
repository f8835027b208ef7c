"""No pretext task makes the processor wait for the device, from raw patches to the loss.

Counted with a stand-in for the device (:mod:`far_device`), and where there is a GPU on that.
"""

from __future__ import annotations

import pytest
import torch
from far_device import THERE, Far, brought_back, far_device
from torch.func import functional_call

from misfm.batches import RawPatches, with_images_on
from misfm.pretext import PRETEXTS
from misfm.seeding import generator_for
from misfm.testing.trial import Trial


def raw_patches(trial: Trial) -> RawPatches:
    placement = trial.placement
    return RawPatches(
        trial.patches,
        placement.valid,
        placement.origin,
        placement.spacing,
        placement.labels,
        placement.hidden,
    )


def losses(trial: Trial, raw: RawPatches, model, device: torch.device):
    """Terms of the loss, from a raw batch on the CPU."""
    there = with_images_on(raw, device)
    batch = trial.task.prepare(there.patches, there.placement, trial.patch_size, generator_for("draws"))
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {name: tensor.detach().to(device, non_blocking=True) for name, tensor in state.items()}
    outputs = functional_call(model, state, (batch.inputs, *batch.context))
    return batch, trial.task.loss(outputs, batch)


@pytest.mark.parametrize("without", [None, "hidden"])
@pytest.mark.parametrize("name", PRETEXTS.names())
def test_a_task_waits_for_nothing(name, without):
    trial = Trial(PRETEXTS.get(name)())
    if without:
        trial.without_half(without)
    model, raw = trial.model(), raw_patches(trial)
    near, expected = losses(trial, raw, model, torch.device("cpu"))
    with torch.no_grad(), far_device() as waits:
        batch, terms = losses(trial, raw, model, THERE)
    assert waits == []
    assert all(isinstance(term, Far) for term in terms.values())
    torch.testing.assert_close(brought_back(batch.inputs), near.inputs, atol=1e-4, rtol=1e-4)
    for term, value in terms.items():
        torch.testing.assert_close(brought_back(value), expected[term].detach(), atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", PRETEXTS.names())
def test_a_task_waits_for_nothing_on_a_gpu(name):
    trial = Trial(PRETEXTS.get(name)())
    device = torch.device("cuda")
    model = trial.model().to(device)
    raw = RawPatches._make(None if each is None else each.pin_memory() for each in raw_patches(trial))
    losses(trial, raw, model, device)  # libraries are loaded, and kernels chosen
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses(trial, raw, model, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
