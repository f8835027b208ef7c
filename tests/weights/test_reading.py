"""Whatever a file of weights holds, reading it gives weights or one sentence, soon and in little memory."""

import io
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from misfm.errors import MisfmError, WeightsError
from misfm.inference.load import load_predictor
from misfm.models import create
from misfm.weights import DataInfo, NetworkInfo, WeightsInfo, describe, from_pretrained, load, reading, save
from misfm.weights.file import parse
from misfm.weights.formats import unpickle
from misfm.weights.nnssl_resenc import reference_names

SIZES = {"num_classes": 3, "patch_size": (16, 16, 16)}
OPTIONS = {"channels": [4, 8]}


def small(name="unet", **options):
    return create(name, **SIZES, **(options or OPTIONS))


INFO = WeightsInfo(
    network=NetworkInfo(name="unet", options=OPTIONS),
    in_channels=1,
    num_classes=3,
    label_names=("background", "liver", "spleen"),
    patch_size=(16, 16, 16),
    spacing=(1.0, 1.0, 1.0),
    intensity={"kind": "ct"},
    steps=10,
    data=DataInfo(count=1, fingerprint="abc"),
)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """One of our files."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save(path, small(), INFO)
    return path


def plans():
    kwargs = {
        "features_per_stage": [4, 8],
        "n_blocks_per_stage": [1, 1],
        "strides": [[1, 1, 1], [2, 2, 2]],
        "kernel_sizes": [[3, 3, 3], [3, 3, 3]],
        "n_conv_per_stage_decoder": [1],
    }
    architecture = {"network_class_name": "x.ResidualEncoderUNet", "arch_kwargs": kwargs}
    configuration = {"patch_size": [16, 16, 16], "spacing": [1, 1, 1], "architecture": architecture}
    return {"configurations": {"3d": configuration}, "transpose_forward": [0, 1, 2]}


def checkpoint():
    """One of nnU-Net's."""
    state = small("resenc", channels=[4, 8], blocks=[1, 1]).state_dict()
    labels = {"background": 0, "liver": 1, "spleen": 2}
    arguments = {"plans": plans(), "configuration": "3d", "dataset_json": {"labels": labels}}
    return {
        "network_weights": reference_names(state),
        "trainer_name": "nnUNetTrainer",
        "current_epoch": 3,
        "init_args": arguments,
    }


USES = [
    describe,
    from_pretrained,
    load_predictor,
    lambda path: load(small(), path),
    lambda path: from_pretrained(path, num_classes=2, in_channels=2),
]


def check_every_use(path):
    """All uses of a file work, or end in one sentence that names it."""
    for use in USES:
        message = ""
        try:
            use(path)
        except MisfmError as error:
            message = str(error)
        assert "\n" not in message
        assert len(message) < 1500


ODD = st.sampled_from(
    [
        *(None, True, -1, 0, 10**9, 10**18, 0.5, 1e308, "", "name", "x" * 1000, [], {}, [[[[]]]], ["a", "b"]),
        *([0, 0, 0], [10**6] * 3, [1] * 100, [2**16] * 5, {"name": 1}, {"patch_size": [1, 1, 1]}, "primus"),
    ]
)


@st.composite
def spoilt(draw, value):
    """A value of JSON with one thing in it replaced, removed or added."""
    if isinstance(value, dict) and value and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(value, key=str)))
        how = draw(st.sampled_from(["within", "within", "within", "remove", "add"]))
        if how == "remove":
            return {name: one for name, one in value.items() if name != key}
        if how == "add":
            return {**value, draw(st.sampled_from(["name", "depth", "patch_size", "x"])): draw(ODD)}
        return {**value, key: draw(spoilt(value[key]))}
    if isinstance(value, list | tuple) and value and draw(st.integers(0, 2)):
        place = draw(st.integers(0, len(value) - 1))
        return [draw(spoilt(one)) if i == place else one for i, one in enumerate(value)]
    if isinstance(value, torch.Tensor):
        return draw(
            st.sampled_from(
                [
                    value.flatten(),
                    value.flatten()[:0],
                    value.double(),
                    value.unsqueeze(0),
                    torch.zeros(()),
                    torch.full_like(value, 3).to(torch.uint8),
                    torch.zeros(1).expand(10**10),
                    torch.zeros(2, device="meta"),
                    torch.zeros(2, dtype=torch.complex64),
                ]
            )
        )
    return draw(ODD)


quick = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quick
@given(description=spoilt(INFO.model_dump(mode="json")))
def test_any_description_is_used_or_refused(ours, tmp_path, description):
    path = tmp_path / "spoilt.safetensors"
    save_file(load_file(ours), path, {"misfm": json.dumps(description)})
    check_every_use(path)


@quick
@given(content=spoilt(checkpoint()))
def test_any_checkpoint_of_others_is_used_or_refused(tmp_path, content):
    path = tmp_path / "checkpoint_final.pth"
    torch.save(content, path)
    check_every_use(path)


@st.composite
def mutated(draw, content):
    """Bytes with some changed, removed or repeated."""
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content) - 1))
        piece = draw(st.binary(max_size=4))
        content = content[:place] + piece + content[place + draw(st.integers(0, 8)) :]
    return content


def as_bytes(content, *, zipped):
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


@quick
@given(data=st.data(), zipped=st.booleans())
def test_any_bytes_of_a_checkpoint_are_used_or_refused(tmp_path, data, zipped):
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(data.draw(mutated(as_bytes(checkpoint(), zipped=zipped))))
    check_every_use(path)


@settings(quick, max_examples=200)
@given(data=st.data())
def test_any_other_bytes_of_our_file_are_refused(ours, data):
    content = ours.read_bytes()
    changed = data.draw(mutated(content))
    if changed != content:
        with pytest.raises(WeightsError):
            parse(ours, changed)


def shared(levels):
    """Lists that share their entries: few are stored, and whoever follows them never ends."""
    value = [0]
    for _ in range(levels):
        value = [value] * 9
    return value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"plans": shared(30)}, "stands for more than 10,000,000 values"),
        ({"a": json.loads("[" * 70 + "]" * 70)}, "nested more than 64 deep"),
        ({"a": torch.zeros(1).expand(10**12)}, "a repeats few stored numbers up to 4,000,000,000,000 bytes"),
        ({"a": torch.zeros(3).to_sparse()}, "a is no plain tensor but float32, sparse_coo, cpu"),
        ({"a": torch.zeros(3, device="meta")}, "a is no plain tensor but float32, strided, meta"),
    ],
)
def test_checkpoints_that_stand_for_more_than_they_hold_are_refused(tmp_path, content, message):
    path = tmp_path / "checkpoint.pt"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=rf"checkpoint\.pt is not a whole torch checkpoint .*{message}"):
        describe(path)


@pytest.fixture
def archive(tmp_path):
    """A checkpoint in which one number is easily found."""
    torch.save({"network_weights": {"a": torch.full((1000,), 1.5)}}, tmp_path / "checkpoint.pt")
    return tmp_path / "checkpoint.pt"


class Repeated:
    """Pickles as an array whose one number is repeated."""

    def __reduce__(self):
        return np.ndarray, ((10**4, 10**4), "f4", b"\0" * 4, 0, (0, 0))


def test_numbers_and_arrays_of_numpy_are_read_and_nothing_else_of_numpy(tmp_path):
    path = tmp_path / "a.pt"
    scores = [np.dtype(code).type(1) for code in "?bhilqBHILQefd"]
    torch.save({"logging": {"losses": scores, "curve": np.linspace(0, 1, 3, dtype=np.float32)}}, path)
    read = unpickle(path)["logging"]
    assert [(score.dtype, score) for score in read["losses"]] == [(score.dtype, 1) for score in scores]
    assert read["curve"].tolist() == [0, 0.5, 1]
    for other in (np.array([{}]), np.array(["text"]), np.zeros(1, "f4,f4"), Repeated()):
        torch.save({"logging": other}, path)
        with pytest.raises(WeightsError, match=r"refused|values|numbers"):
            unpickle(path)


def test_a_flipped_bit_in_a_tensor_of_any_checkpoint_is_noticed(archive):
    content = archive.read_bytes()
    place = content.index(torch.full((2,), 1.5).numpy().tobytes())
    unpickle(archive)
    archive.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(WeightsError, match=r"checkpoint\.pt is damaged: the checksum of .*/data/0' differs"):
        unpickle(archive)


def test_checkpoints_that_were_written_without_checksums_are_read(archive):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, archive)
    finally:
        torch.serialization.set_crc32_options(True)
    assert unpickle(archive)["a"].sum() == 3


def test_memory_that_is_missing_is_not_the_fault_of_the_file(ours, tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(3)}, tmp_path / "checkpoint.pt")

    def nothing_left(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(torch, "load", nothing_left)
    monkeypatch.setattr("safetensors.torch.load", nothing_left)
    for path in (ours, tmp_path / "checkpoint.pt"):
        free = 4 * path.stat().st_size
        monkeypatch.setattr("misfm.weights.reading.available_bytes", lambda free=free: free)
        with pytest.raises(WeightsError, match=f"not enough memory to read {path}"):
            describe(path)
    monkeypatch.setattr(reading, "available_bytes", lambda: 1000)
    with pytest.raises(WeightsError, match=r"takes 0\.0 GiB of memory and 0\.0 GiB are free"):
        describe(ours)


def test_a_network_that_cannot_be_built_is_the_fault_of_the_file(ours, tmp_path):
    path = tmp_path / "wide.safetensors"
    description = INFO.model_dump(mode="json") | {"patch_size": [2**20] * 3}
    save_file(load_file(ours), path, {"misfm": json.dumps(description)})
    with pytest.raises(WeightsError, match=r"wide\.safetensors describes a network that cannot be built"):
        from_pretrained(path)
    options = {"network": {"name": "unet", "options": {"name": "unet"}}}
    save_file(load_file(ours), path, {"misfm": json.dumps(INFO.model_dump(mode="json") | options)})
    with pytest.raises(WeightsError, match=r"not valid .*'name' follows from data and settings"):
        describe(path)
