"""What memory is free, and which failures are for want of it."""

import numpy as np
import pytest
import torch

from misfm import memory
from misfm.memory import available_bytes, is_out_of_memory


def test_what_is_free_is_less_than_there_is():
    assert 2**20 < available_bytes() < 2**60


def test_a_group_and_those_above_it_bind(tmp_path, monkeypatch):
    group = tmp_path / "job" / "step"
    group.mkdir(parents=True)
    for folder, limit, used in ((group, "max", 0), (tmp_path / "job", 1000, 400), (tmp_path, 5000, 400)):
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
    (tmp_path / "job" / "memory.stat").write_text("anon 300\ninactive_file 100\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_GROUPS_OF_PROCESS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text("0::/job/step\n")
    assert available_bytes() == 700


@pytest.mark.parametrize("library", [lambda: np.empty(2**50), lambda: torch.empty(2**50)])
def test_libraries_that_get_no_memory_are_understood(library):
    with pytest.raises((MemoryError, RuntimeError)) as error:
        library()
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(ValueError("damaged"))
