"""Volume files that stay open: what is read of them, when they are opened anew, and what is shared."""

import os
import threading

import numpy as np
import pytest

from misfm.data import open_volumes
from misfm.data.open_volumes import opened, read_box
from misfm.data.record import pack
from misfm.volume import Box


def write(path, value=0):
    voxels = np.arange(2 * 7 * 9 * 11, dtype=np.int16).reshape(2, 7, 9, 11) + value
    path.with_suffix(".part").write_bytes(pack(voxels))
    os.replace(path.with_suffix(".part"), path)
    return voxels


@pytest.mark.parametrize(
    "box", [Box((0, 0, 0), (7, 9, 11)), Box((3, 2, 5), (2, 7, 1)), Box((3, 2, 5), (0, 0, 0))]
)
def test_a_box_holds_the_voxels_of_the_array(tmp_path, box):
    voxels = write(tmp_path / "a.b2nd")
    found = read_box(opened(tmp_path / "a.b2nd"), box)
    assert found.dtype == voxels.dtype
    assert np.array_equal(found, voxels[:, *box.slices])


def test_a_file_is_opened_once_until_it_changes(tmp_path):
    path = tmp_path / "a.b2nd"
    write(path)
    array = opened(path)
    assert opened(path) is array
    voxels = write(path, value=5)
    assert opened(path) is not array
    assert np.array_equal(read_box(opened(path), Box((0, 0, 0), (7, 9, 11))), voxels)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        opened(path)


def test_few_files_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(open_volumes, "MOST", 2)
    paths = [tmp_path / f"{name}.b2nd" for name in "abc"]
    for path in paths:
        write(path)
    first, second, _ = [opened(path) for path in paths]
    assert opened(paths[1]) is second
    assert opened(paths[0]) is not first


def test_each_thread_has_arrays_of_its_own(tmp_path):
    write(tmp_path / "a.b2nd")
    found = []
    thread = threading.Thread(target=lambda: found.append(opened(tmp_path / "a.b2nd")))
    thread.start()
    thread.join()
    assert found[0] is not opened(tmp_path / "a.b2nd")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_reads_on(tmp_path):
    voxels = write(tmp_path / "a.b2nd")
    opened(tmp_path / "a.b2nd")
    child = os.fork()
    if not child:
        same = np.array_equal(
            read_box(opened(tmp_path / "a.b2nd"), Box((1, 2, 3), (4, 4, 4))), voxels[:, 1:5, 2:6, 3:7]
        )
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
