"""Windows of one value are computed once, which changes nothing; what does not fit is halved."""

import pytest
import torch
from torch import nn

from misfm.inference.passes import Batching, Passes
from misfm.inference.sliding_window import blended_logits
from misfm.models import create

WINDOW = (16, 16, 16)


class Counting(nn.Module):
    """A network that knows of places, normalises each window, and counts what it saw."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(2, 3, 3, padding=1)
        self.norm = nn.InstanceNorm3d(3, affine=True)
        self.place = nn.Parameter(torch.randn(1, 3, *WINDOW))
        self.num_windows = 0

    def forward(self, x):
        self.num_windows += len(x)
        return self.norm(self.conv(x)) + self.place


def patient():
    """Two channels: a patient in the middle of air that is noise below the intensity window."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(-1100, -900, (2, 20, 72, 88), generator=generator).short()
    image[:, :, 30:45, 30:50] = torch.randint(-100, 200, (2, 20, 15, 20), generator=generator).short()
    image[1, :, :20, :20] = 3000  # beyond the other end of the intensity window, in one channel
    return image


def clipped(x):
    return (x.float().clip(-600, 1000) - 200) / 800


def logits(network, *, reuse, image, mirror_axes=(), batch=1):
    passes = Passes(network, prepare=clipped, batching=Batching(batch), mirror_axes=mirror_axes, reuse=reuse)
    with torch.no_grad():
        whole = torch.cat([slab for _, slab in blended_logits(passes, image, WINDOW)], dim=1)
    return whole, passes


@pytest.mark.parametrize("mirror_axes", [(), (0, 2)])
def test_air_is_computed_once_and_nothing_differs(mirror_axes):
    image, network = patient(), Counting().eval()
    every, _ = logits(network, reuse=False, image=image, mirror_axes=mirror_axes)
    num_windows, network.num_windows = network.num_windows, 0
    once, passes = logits(network, reuse=True, image=image, mirror_axes=mirror_axes)
    assert torch.equal(every, once)
    assert passes.num_reused > 20
    assert network.num_windows < 0.75 * num_windows


@pytest.mark.parametrize("name", ["unet", "pctnet", "resenc"])
def test_that_holds_for_networks(name):
    torch.manual_seed(1)
    options = {"channels": (4, 8)} if name == "unet" else {}
    model = create(name, in_channels=2, num_classes=3, patch_size=WINDOW, **options).eval()
    image = patient()[:, :16, :24, 30:80]
    image[:, :, :, 24:] = -1000
    every, _ = logits(model, reuse=False, image=image)
    once, passes = logits(model, reuse=True, image=image)
    assert passes.num_reused > 2
    assert torch.equal(every, once)


def test_batches_keep_the_order_of_additions():
    image, network = patient(), Counting().eval()
    single, _ = logits(network, reuse=True, image=image)
    for batch in (2, 5):
        several, _ = logits(network, reuse=True, image=image, batch=batch)
        assert torch.allclose(several, single, atol=1e-5)


def test_zero_and_minus_zero_are_two_values():
    image = torch.zeros(1, 16, 16, 24)
    image[:, :, :, 16:] = -0.0

    class Sign(nn.Module):
        def forward(self, x):
            return torch.cat([1 / x, x], dim=1).clip(-1, 1)

    passes = Passes(Sign().eval())
    found = list(passes.over(image, [(slice(None), slice(None), slice(s, s + 16)) for s in (0, 8)]))
    assert (found[0][0] == 1).all()
    assert (found[1][0] == -1).any()
    assert passes.num_reused == 1


def test_half_as_many_windows_where_memory_runs_out():
    class Small(nn.Module):
        def forward(self, x):
            if len(x) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return 2 * x

    batching = Batching(8)
    passes = Passes(Small().eval(), batching=batching, reuse=False)
    image = torch.randn(1, 4, 4, 40)
    places = [(slice(None), slice(None), slice(s, s + 4)) for s in range(0, 40, 4)]
    found = list(passes.over(image, places))
    assert all(torch.equal(one, 2 * image[:, *place]) for one, place in zip(found, places, strict=True))
    assert batching.size == 2


def test_values_beyond_float16_are_computed_in_float32(caplog):
    class Large(nn.Module):
        def forward(self, x):
            return 1e5 * x.to(torch.float16 if torch.is_autocast_enabled("cpu") else torch.float32)

    passes = Passes(Large().eval(), dtype=torch.float16, reuse=False)
    with caplog.at_level("WARNING", logger="misfm"):
        (found,) = passes.over(torch.ones(1, 4, 4, 4), [(slice(None),) * 3])
    assert torch.equal(found, torch.full((1, 4, 4, 4), 1e5))
    assert passes.dtype == torch.float32
    assert "exceed those of float16" in caplog.text
