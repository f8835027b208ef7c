"""What does not fit the weights is told before anybody trusts a label map; what fits is told nothing of."""

import numpy as np
import pytest

from misfm.data.appearance import ChannelRanges, ScanRanges
from misfm.inference.fitness import MisfitError, misfits
from misfm.volume import Volume
from misfm.weights import NetworkInfo, WeightsInfo

OF_CT = ChannelRanges(darkest=(-1024, -1000), brightest=(600, 1200), is_ct=True)
OF_MR = ChannelRanges(darkest=(0, 5), brightest=(300, 2000), is_ct=False)


def weights(kind="ct", channel=OF_CT, spacing=(2, 2, 2)):
    ranges = channel and ScanRanges(
        spacing=((2, 3), (1, 2), (1, 2)), extent=((60, 90), (50, 60), (50, 60)), channels=(channel,)
    )
    return WeightsInfo(
        network=NetworkInfo(name="unet"),
        in_channels=1,
        num_classes=2,
        patch_size=(16, 16, 16),
        spacing=spacing,
        intensity={"kind": kind},
        steps=1,
        data=None,
        scan_ranges=ranges,
    )


def scan(shape=(32, 28, 28), spacing=(2.5, 2, 2), change=lambda hu: hu):
    """A body of soft tissue and bone in air."""
    hu = np.full(shape, -1000.0)
    inside = tuple(slice(2, side - 2) for side in shape)
    hu[inside] = 40
    hu[tuple(slice(5, 9) for _ in shape)] = 700
    hu += np.random.default_rng(0).normal(0, 10, shape)
    # The axes of the array are the canonical ones: they grow towards superior, posterior, left.
    affine = np.array([[0, 0, -1.0, 0], [0, -1.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]]) @ np.diag(
        [*spacing, 1]
    )
    return Volume(change(hu)[None].astype(np.float32), affine)


def mr(hu):
    return np.where(hu < -500, 3, 400 + hu / 2)


def test_nothing_is_said_of_what_fits():
    assert misfits(scan(), [None], weights()) == []
    assert misfits(scan(), ["CT"], weights()) == []
    assert misfits(scan(change=mr), ["MR"], weights("mr", OF_MR)) == []
    # Channels of CT that a dataset calls by other names are normalised as MR is.
    assert misfits(scan(), ["CT"], weights("mr", OF_CT)) == []
    assert misfits(scan(change=mr), ["OT"], weights("mr", OF_MR)) == []
    # What converts MR to DICOM may leave a header of CT.
    assert misfits(scan(change=mr), ["CT"], weights("mr", OF_MR)) == []


def test_another_modality_by_its_header_is_refused_unless_forced():
    for asked, kind, channel, modality in [
        (scan(change=mr), "ct", OF_CT, "MR"),
        (scan(change=mr), "ct", None, "MR"),
        (scan(), "mr", OF_MR, "CT"),
        (scan(change=mr), "pet", None, "MR"),
    ]:
        info = weights(kind, channel)
        with pytest.raises(MisfitError, match=r"by its header and the weights .* --force"):
            misfits(asked, [modality], info)
        assert any("--force" in said for said in misfits(asked, [modality], info, force=True))


@pytest.mark.parametrize("channel", [OF_CT, None], ids=["recorded", "not recorded"])
@pytest.mark.parametrize(
    "change", [mr, lambda hu: hu.clip(-1024) + 1024, lambda hu: ((hu + 1000) / 2000).clip(0, 1)]
)
def test_a_network_of_ct_warns_of_what_is_not_in_hounsfield_units(change, channel):
    (said,) = misfits(scan(change=change), [None], weights(channel=channel))
    assert "are no HU of CT" in said


def test_other_intensities_than_in_training():
    (said,) = misfits(scan(change=lambda hu: hu.clip(-160, 240)), [None], weights())
    assert "hardly a voxel below -160 HU" in said
    (said,) = misfits(scan(), [None], weights("mr", OF_MR))
    assert "looks like CT" in said
    # The training had no HU either, so nothing is odd about that.
    unsigned = ChannelRanges(darkest=(0, 24), brightest=(1500, 2000), is_ct=False)
    assert misfits(scan(change=lambda hu: hu.clip(-1024) + 1024), [None], weights("ct", unsigned)) == []


def test_other_sizes_than_in_training():
    (said,) = misfits(scan(spacing=(10, 2, 2), shape=(8, 28, 28)), [None], weights())
    assert said == "its voxels are 10 mm from foot to head, and 2 to 3 mm in training."
    (said,) = misfits(scan(shape=(32, 28, 80)), [None], weights())
    assert said == "it shows 160 mm of the patient from side to side, and scans of the training 50 to 60 mm."
    (said,) = misfits(scan(spacing=(12, 2, 2), shape=(8, 28, 28)), [None], weights(channel=None))
    assert "12 mm from foot to head, and 2 mm in the input" in said


def test_an_empty_channel_stands_for_one_that_was_not_taken():
    empty = scan(change=lambda hu: np.zeros_like(hu))
    assert not any("HU" in said for said in misfits(empty, [None], weights()))
