"""The list of published weights: complete, true of what is at hand, and a warning where one is due."""

import pytest

from misfm import weights
from misfm.commands.info import describe_path
from misfm.errors import DataError, WeightsError
from misfm.models.base import NETWORKS
from misfm.weights.published import BUILTIN, WEIGHTS, by_name, notices, recognised

OPENMIND = "openmind/resenc-l-mae"
MIS_FM = "mis-fm/pctnet-ct10k-volf"
OURS = {"format": "misfm", "licence": "unknown"}


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    """An empty cache, and no network to fill it from."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("misfm.weights.hub.fetch", None)


def test_every_model_of_the_literature_has_a_name():
    resenc = ("mae", "vf", "voco", "mg", "simclr", "swinunetr", "s3d")
    primus = ("mae", "simmim", "mg", "vf", "voco", "simclr", "swinunetr")
    expected = {f"openmind/resenc-l-{method}" for method in resenc}
    expected |= {f"openmind/primus-m-{method}" for method in primus}
    expected |= {MIS_FM, "mis-fm/fmunet-abk1k-volf", BUILTIN}
    assert sorted(entry.name for entry in WEIGHTS) == sorted(expected)


@pytest.mark.parametrize("entry", WEIGHTS, ids=lambda entry: entry.name)
def test_entries_are_complete(entry):
    assert entry.network in NETWORKS.names()
    assert entry.data.partition(":")[2]
    assert entry.licence
    assert entry.citation
    assert entry.sha256 is None or (len(entry.sha256) == 64 and int(entry.sha256, 16))
    if entry.on_hub:
        assert entry.address.file == entry.file
        assert str(entry.address) == entry.source


def test_the_entry_of_the_builtin_weights_is_true_of_the_file():
    known, entry = weights.describe(BUILTIN), by_name(BUILTIN)
    assert (known["network"]["name"], known["pretext"]) == (entry.network, entry.pretext)
    assert known["licence"].startswith(entry.licence)
    assert entry.data.partition(":")[0] in known["licence"]


def test_weights_that_only_a_person_can_download_say_where():
    with pytest.raises(
        WeightsError, match=r"fetch pctnet_ct10k_volf.pt from https://drive.google.com/\S+ by"
    ):
        weights.describe(MIS_FM)


def test_unknown_names_offer_the_nearest():
    with pytest.raises(WeightsError, match="did you mean 'openmind/resenc-l-mae'"):
        weights.describe("OpenMind/ResEncL-MAE")
    with pytest.raises(DataError, match="did you mean 'openmind/primus-m-simmim'"):
        describe_path("openmind/primusm-simmim")
    with pytest.raises(WeightsError, match="`misfm info published` lists them"):
        weights.describe("nothing.pt")


def test_a_path_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / OPENMIND).mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"no weights file openmind/resenc-l-mae/weights.safetensors"):
        weights.describe(OPENMIND)


def test_info_describes_names_without_a_network(run_command):
    listing = run_command("info", "published", "--json").result
    assert {entry.name for entry in WEIGHTS} < listing.keys()
    entry = run_command("info", OPENMIND, "--json").result
    assert entry["cached"] is None
    assert entry["licence"] == "CC-BY-4.0"
    assert "sha256" in run_command("info", OPENMIND).out
    assert "drive.google.com" in run_command("info", MIS_FM, "--json").result["source"]


def test_info_describes_the_file_where_it_is_cached(monkeypatch, tmp_path):
    cached = tmp_path / "checkpoint_final.pth"
    cached.write_bytes(b"cut short")
    monkeypatch.setattr("misfm.weights.hub.find_cached", lambda address: cached)
    with pytest.raises(WeightsError, match="is not the file that misfm knows"):
        describe_path(OPENMIND)
    with pytest.raises(WeightsError, match="cut short"):
        describe_path("openmind/resenc-l-vf")


def test_weights_are_recognised_by_name_address_and_file():
    assert recognised(OPENMIND).name == OPENMIND
    assert recognised("hf://AnonRes/ResEncL-OpenMind-MAE@main").name == OPENMIND
    assert recognised("downloads/pctnet_ct10k_volf.pt").name == MIS_FM
    assert recognised("runs/a") is recognised("hf://owner/repo") is recognised("checkpoint_final.pth") is None


@pytest.mark.parametrize(
    ("source", "known", "words"),
    [
        ("runs/a", OURS, []),  # who trained it knows
        ("hf://owner/repo", OURS, ["not recorded"]),
        ("foreign.pt", {"format": "PyMIC", "licence": "unknown"}, ["not recorded"]),
        ("hf://owner/repo", {**OURS, "licence": "CC-BY-NC-4.0"}, ["restricted"]),
        ("a.safetensors", {**OURS, "licence": "MIT, for research use only"}, ["restricted"]),
        ("hf://owner/repo", {**OURS, "licence": "CC-BY-4.0"}, []),
        (OPENMIND, {"format": "nnssl", "licence": "CC-BY-4.0"}, ["OpenNeuro"]),
        ("pctnet_ct10k_volf.pt", {"format": "PyMIC", "licence": "unknown"}, ["TotalSegmentator"]),
    ],
)
def test_notices_name_licence_and_data_where_they_need_attention(source, known, words):
    found = notices(source, known)
    assert len(found) == len(words)
    assert all(word in notice and source in notice for word, notice in zip(words, found, strict=True))


def test_a_fine_tuning_starts_with_the_notices(pretrained, finetune_settings, tmp_path, caplog):
    from misfm.commands.finetune import finetune

    path = tmp_path / "pctnet_ct10k_volf.pt"
    path.write_bytes((pretrained / "weights.safetensors").read_bytes())
    finetune(finetune_settings(f"weights={path}", "training.steps=2"), tmp_path / "run")
    assert "has seen CT10k" in caplog.text
    assert "has seen CT10k" in (tmp_path / "run" / "transfer.txt").read_text()
