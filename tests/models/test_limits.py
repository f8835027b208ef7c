"""Networks that no machine could hold are refused before anything is allocated for them."""

import pytest

from misfm.errors import ConfigError
from misfm.models import create, limits


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"channels": [64, 1024]}, r"more than 0\.1 GiB, and 0\.1 GiB of memory are free"),
        ("unet", {"channels": [60_000, 60_000]}, "needs more memory|memory are free"),
        ("unet", {"channels": [10**9, 10**9]}, "'channels' is 1000000000, and no network has more than"),
        ("unet", {"channels": [4] * 100}, "more than 64 entries"),
        ("primus", {"depth": 60_000, "embed_dim": 12, "num_heads": 1}, "more than 10,000 layers"),
        ("pctnet", {"window_sizes": [16, 6, 6]}, "window_sizes are at most 12, got 16"),
    ],
)
def test_absurd_options_are_refused_at_once(name, options, message, monkeypatch):
    monkeypatch.setattr(limits, "available_bytes", lambda: 2**26)
    with pytest.raises(ConfigError, match=message):
        create(name, num_classes=2, patch_size=(64, 64, 64), **options)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"patch_size": (10**6, 10**6, 10**6)}, "1,073,741,824 at most: choose a smaller patch_size"),
        ({"num_classes": 10**9}, "65,536 at most, got .*num_classes=1000000000"),
        ({"in_channels": 10**9}, "65,536 at most, got .*in_channels=1000000000"),
    ],
)
def test_absurd_sizes_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        create("unet", **{"num_classes": 2, "patch_size": (16, 16, 16), **sizes})


def test_what_fits_is_built_and_not_watched_afterwards(monkeypatch):
    monkeypatch.setattr(limits, "available_bytes", lambda: 100_000)
    model = create("unet", num_classes=2, patch_size=(16, 16, 16), channels=[4, 8])
    assert sum(parameter.numel() for parameter in model.parameters()) * 4 < 100_000
    monkeypatch.setattr(limits, "available_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match=r"0\.0 GiB of memory are free"):
        create("unet", num_classes=2, patch_size=(16, 16, 16), channels=[4, 8])
    type(model.head.levels[0][2])(10, 100, 3)  # outside of create nothing is counted
