"""Checkpoints: what was saved comes back, damaged or foreign files do not, and a full disk harms nothing."""

import os
import pickle

import pytest
import torch

from misfm.errors import DataError, WeightsError
from misfm.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint


def some(step=3):
    model = torch.nn.Linear(40, 50)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 40)).sum().backward()
    optimizer.step()
    return Checkpoint(step, model.state_dict(), optimizer.state_dict(), best_score=-0.5, best_step=2)


def test_what_was_saved_comes_back(tmp_path):
    saved = some()
    save_checkpoint(tmp_path / "checkpoints" / "last.pt", saved)
    found = load_checkpoint(tmp_path / "checkpoints" / "last.pt")
    assert (found.step, found.best_score, found.best_step) == (3, -0.5, 2)
    assert all(torch.equal(found.model[name], value) for name, value in saved.model.items())
    assert torch.equal(found.optimizer["state"][0]["exp_avg"], saved.optimizer["state"][0]["exp_avg"])
    assert os.listdir(tmp_path / "checkpoints") == ["last.pt"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_cut_short_is_refused_in_a_sentence(tmp_path, share):
    path = tmp_path / "last.pt"
    save_checkpoint(path, some())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=r"last\.pt is not a readable checkpoint .* delete it"):
        load_checkpoint(path)


class Trap:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["zip", "pickle"])
def test_nothing_in_a_file_is_executed(tmp_path, how):
    content = {"step": 1, "model": Trap(tmp_path / "sprung"), "optimizer": {}, "best_score": None}
    if how == "zip":
        torch.save(content, tmp_path / "last.pt")
    else:
        (tmp_path / "last.pt").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "last.pt")
    assert not (tmp_path / "sprung").exists()


def test_another_file_of_torch_is_no_checkpoint(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "last.pt")
    with pytest.raises(WeightsError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "last.pt")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("enforce fail")])
def test_a_full_disk_keeps_the_checkpoint_there_was(tmp_path, monkeypatch, error):
    path = tmp_path / "last.pt"
    save_checkpoint(path, some(step=3))

    def half(_, file):
        file.write(b"half")
        raise error  # torch says RuntimeError where its own writer fails

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(DataError, match=r"Cannot write .*last\.pt: .*Free space"):
        save_checkpoint(path, some(step=4))
    assert load_checkpoint(path).step == 3
    assert os.listdir(tmp_path) == ["last.pt"]
