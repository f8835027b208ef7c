"""Planned defaults: within a budget, fit for the network, larger where there is more, never over a choice."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misfm.commands.finetune import finetune
from misfm.commands.trials import Trial
from misfm.commands.trials import finetune_settings as arm_settings
from misfm.commands.twins import finetune_twins
from misfm.config import CompareSettings, FinetuneSettings, NetworkSettings
from misfm.models import create
from misfm.models.base import NETWORKS, UNKNOWN_DEMAND
from misfm.planning import fill_defaults as filling
from misfm.planning.machine import Machine
from misfm.planning.plan import (
    CPU_VOXELS,
    GPU_VOXELS,
    MEMORY_SHARE,
    Facts,
    multiple_of,
    plan,
    saved_bytes,
)
from misfm.training.run import RunFolder

GIB = 2**30
UNET = NetworkSettings()
CPU = Machine("cpu")
HEAD_NECK = Facts((96, 64, 112), (3.0, 4.0, 4.0), 5, 1, 6, CPU)

shapes = st.tuples(*[st.integers(1, 600)] * 3)
networks = st.sampled_from(NETWORKS.names()).map(lambda name: NetworkSettings(name=name))


def gpu(gib):
    return Machine("cuda", int(gib * GIB))


machines = st.one_of(st.just(CPU), st.floats(0.1, 100).map(gpu))


def open_settings(**chosen):
    return FinetuneSettings(recipe="none", dataset="d", **chosen)


def planned(facts=HEAD_NECK, settings=None, **changes):
    return plan(settings or open_settings(), replace(facts, **changes))


def test_a_cpu_gets_small_patches_in_the_shape_of_the_scan_and_says_so():
    found = planned()
    assert found.patch_size == (40, 32, 48)
    assert (found.batch_size, found.steps, found.network) == (2, 5000, UNET)
    network, patch, batch, steps = found.reasons
    assert network == "network unet with its default channels: on a CPU"
    assert patch == (
        "patch 40,32,48: on a CPU about 65,536 voxels a patch; median scan 96,64,112 at 3,4,4 mm"
    )
    assert batch.startswith("batch 2: ")
    assert steps == (
        "steps 5000: 5 training cases on a CPU, a patch holds 9% of the median scan; 5000 up to 5 cases, and "
        "more with the root of their number"
    )


def test_a_large_gpu_gets_a_wide_network_large_patches_and_more_steps():
    found = planned(machine=gpu(79))
    assert found.network.options == {"channels": [32, 64, 128, 256, 320]}
    assert found.patch_size == (96, 64, 112)
    assert (found.batch_size, found.steps) == (8, 8000)
    assert found.reasons[1] == (
        "patch 96,64,112: on a GPU with 79.0 GiB free up to 2,097,152 voxels a patch; "
        "median scan 96,64,112 at 3,4,4 mm"
    )
    assert planned(machine=gpu(5)).network == UNET


@given(shape=shapes, machine=machines, network=networks)
def test_patches_fit_budget_scan_and_network(shape, machine, network):
    found = planned(shape=shape, machine=machine, network=network)
    multiple, voxels = multiple_of(network), math.prod(found.patch_size)
    smallest = 2 * max(16, multiple) ** 3
    budget = CPU_VOXELS
    if machine.device == "cuda":
        budget = min(GPU_VOXELS, MEMORY_SHARE * machine.free_bytes / 2 / saved_bytes(network, HEAD_NECK))
    assert voxels <= max(budget, smallest)
    for side, scan in zip(found.patch_size, shape, strict=True):
        assert side % math.lcm(8, multiple) == 0
        assert side >= 16
        assert side < max(scan + max(16, multiple), 16 + 1, 2 * multiple + 1)
    if machine.device == "cuda" and voxels > smallest:
        needed = found.batch_size * voxels * saved_bytes(network, HEAD_NECK)
        assert needed <= MEMORY_SHARE * machine.free_bytes
    assert 1 <= found.batch_size <= 8


@given(shape=shapes, network=networks, less=st.floats(0.1, 100), more=st.floats(0.1, 100))
def test_more_memory_never_makes_a_side_smaller_or_the_steps_more(shape, network, less, more):
    less, more = sorted([less, more])
    small, large = (planned(shape=shape, network=network, machine=gpu(gib)) for gib in (less, more))
    assert all(a <= b for a, b in zip(small.patch_size, large.patch_size, strict=True))
    assert large.steps <= small.steps  # a patch that holds most of the scan needs fewer
    if small.patch_size == large.patch_size:
        assert small.batch_size <= large.batch_size


@given(cases=st.integers(1, 2000), more=st.integers(0, 2000))
def test_steps_grow_slowly_with_the_cases(cases, more):
    few, many = (planned(num_cases=count) for count in (cases, cases + more))
    assert few.steps <= many.steps <= few.steps * (cases + more) / cases + 100
    assert planned(num_cases=1).steps == planned(num_cases=5).steps == 5000
    assert planned(num_cases=20).steps == 10000
    assert planned(num_cases=80).steps == planned(num_cases=2000).steps == 20000
    on_gpu = planned(num_cases=cases, machine=gpu(20), settings=open_settings(patch_size=(40, 32, 48)))
    assert abs(on_gpu.steps - 4 * few.steps) <= 250


def test_a_patch_that_holds_most_of_the_scan_takes_fewer_steps():
    hippocampus = {"shape": (36, 50, 36), "network": UNET, "weights_patch": (40, 40, 40)}
    assert planned(**hippocampus).steps == planned(**{**hippocampus, "weights_patch": None}).steps == 2000
    assert planned(**{**hippocampus, "shape": (36, 50, 180)}).steps == 5000


def test_the_longest_side_of_the_scan_is_the_longest_of_the_patch():
    for machine in (CPU, gpu(8)):
        d, h, w = planned(shape=(20, 512, 300), machine=machine).patch_size
        assert d <= 24
        assert h > w > d


@pytest.mark.parametrize("name", NETWORKS.names())
@pytest.mark.parametrize("shape", [(5, 9, 7), (36, 50, 36), (20, 500, 500), (300, 300, 300)])
def test_every_network_takes_what_is_planned_for_it(name, shape):
    import torch

    assert NETWORKS.demand(name) != UNKNOWN_DEMAND, "measure it with benchmarks/activation_memory.py"
    found = planned(shape=shape, network=NetworkSettings(name=name))
    with torch.device("meta"):
        backbone = create(name, num_classes=2, patch_size=found.patch_size).backbone
    assert all(
        side % divisor == 0 for side, divisor in zip(found.patch_size, backbone.min_divisor, strict=True)
    )
    assert any(side > divisor for side, divisor in zip(found.patch_size, backbone.min_divisor, strict=True))


def test_small_scans_come_in_larger_batches():
    assert planned(shape=(24, 24, 24)).batch_size == 8
    assert planned(shape=(32, 40, 32)).batch_size == 3
    assert planned(shape=(32, 40, 33)).batch_size == 2
    assert planned(machine=gpu(3), settings=open_settings(patch_size=(160, 160, 160))).batch_size == 1


def test_what_is_chosen_stays_and_is_not_commented_on():
    chosen = open_settings(patch_size=(24, 32, 40), batch_size=3, training={"steps": 7})
    found = planned(settings=chosen, network=NetworkSettings(name="fmunet"), machine=gpu(40))
    assert (found.patch_size, found.batch_size, found.steps, found.network.name) == (
        (24, 32, 40),
        3,
        7,
        "fmunet",
    )
    assert found.reasons == ()


def test_a_chosen_batch_leaves_smaller_patches_on_a_gpu():
    large = {"shape": (400, 400, 400), "machine": gpu(8)}
    eight = planned(settings=open_settings(batch_size=8), **large)
    assert math.prod(eight.patch_size) < math.prod(planned(**large).patch_size)
    unlabelled = open_settings(unlabelled={"store": "s", "batch_size": 6})
    assert planned(settings=unlabelled, **large).patch_size == eight.patch_size


def test_a_network_computed_twice_gets_larger_patches_which_is_said_where_it_is_not():
    large = {"shape": (400, 400, 400), "machine": gpu(8), "network": NetworkSettings(name="resenc")}
    plain, twice = planned(**large), planned(**large, recompute=True)
    assert math.prod(plain.patch_size) < math.prod(twice.patch_size)
    assert "with training.recompute_activations=true)" in plain.reasons[0]
    assert "recompute" not in twice.reasons[0]


def test_the_patch_of_the_weights_is_kept_where_it_fits():
    found = planned(weights_patch=(40, 40, 40), network=UNET)
    assert found.patch_size == (40, 40, 40)
    assert found.reasons[0].startswith("patch 40,40,40: that of the weights; ")
    large = planned(weights_patch=(96, 96, 96), network=UNET)
    assert large.patch_size == planned().patch_size
    assert large.reasons[0].endswith("; the 96,96,96 of the weights are more than that")
    bound = planned(weights_patch=(64, 128, 128), network=NetworkSettings(name="pctnet"))
    assert bound.patch_size == (64, 128, 128)
    assert bound.reasons[0] == "patch 64,128,128: the only one that the weights of pctnet take"


def test_strides_of_weights_divide_the_sides():
    strides = [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]
    network = NetworkSettings(name="resenc", options={"strides": strides})
    assert multiple_of(network) == 32
    assert multiple_of(NetworkSettings(name="unet", options={"strides": [[2, 2, 2]] * 4})) == 16
    assert multiple_of(NetworkSettings(name="unknown")) == UNKNOWN_DEMAND.multiple


def test_a_network_that_was_not_measured_counts_as_the_hungriest():
    assert saved_bytes(NetworkSettings(name="new"), HEAD_NECK) > max(
        saved_bytes(NetworkSettings(name=name), HEAD_NECK) for name in NETWORKS.names()
    )


OPEN = ("patch_size=null", "batch_size=null", "training.steps=null", "network=null")
SHORT = (*OPEN, "training.validate_every=2")


@pytest.fixture
def quick(monkeypatch):
    """Plan short runs, which is not what is tested here."""
    from misfm.planning import plan as module

    monkeypatch.setattr(
        module, "plan_steps", lambda facts, patch: (2, "steps 2: as many as a test has time for")
    )
    monkeypatch.setattr(module, "CPU_VOXELS", 16**3)


def test_twins_share_the_plan(tmp_path, quick, finetune_settings, pretrained, caplog):
    caplog.set_level("INFO", logger="misfm")
    finetune_twins(finetune_settings(*SHORT, f"weights={pretrained}"), tmp_path / "run")
    ours, twin = (RunFolder(tmp_path / folder).read_settings() for folder in ("run", "run/twin"))
    assert ours["weights"] == str(pretrained)
    assert {**ours, "weights": "none"} == twin
    assert ours["patch_size"] == [16, 16, 16]
    assert ours["training"]["steps"] == 2
    assert caplog.text.count("patch 16,16,16: that of the weights") == 1
    assert caplog.text.count("steps 2: as many as") == 1
    assert "\nsteps 2: as many as a test has time for\n" in (tmp_path / "run" / "plan.txt").read_text()


def test_a_run_goes_on_with_its_plan_whatever_is_free_by_then(
    tmp_path, quick, finetune_settings, monkeypatch
):
    settings, out = finetune_settings(*OPEN), tmp_path / "run"
    finetune(settings, out)
    before, why = RunFolder(out).read_settings(), (out / "plan.txt").read_text()
    assert None not in (before["patch_size"], before["batch_size"], before["network"])
    monkeypatch.setattr(filling, "present_machine", lambda: gpu(40))
    finetune(settings, out, resume=True)
    assert RunFolder(out).read_settings() == before
    assert (out / "plan.txt").read_text() == why


def test_scans_are_measured_without_the_air_around_the_patient(dataset):
    from misfm.data.dataset import Dataset
    from misfm.data.dataset_fingerprint import DatasetFingerprint

    scans = DatasetFingerprint(Dataset.open(dataset))
    assert len(scans.measured) == len(scans.dataset.cases())
    halved = tuple(2 * side for side in scans.spacing)
    native, coarse = scans.shape("native"), scans.shape(halved)
    assert all(abs(side - 2 * half) <= 3 for side, half in zip(native, coarse, strict=True))


def test_arms_of_a_comparison_take_patch_and_batch_from_the_pretraining(store, dataset):
    settings = CompareSettings(
        store=str(store),
        dataset=str(dataset),
        recipes=("mae", "voco"),
        pretrain=("patch_size=[24, 24, 24]", "voco:patch_size=[16, 16, 16]"),
    )
    arms = [arm_settings(settings, Trial("unet", recipe, 1), None) for recipe in ("scratch", "mae", "voco")]
    assert {(arm.patch_size, arm.batch_size, arm.network.name) for arm in arms} == {((24, 24, 24), 2, "unet")}
    chosen = settings.model_copy(update={"finetune": ("patch_size=[8, 8, 16]",)})
    assert arm_settings(chosen, Trial("unet", "mae", 1), None).patch_size == (8, 8, 16)
