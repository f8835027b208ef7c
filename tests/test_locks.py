"""One process at a time, and none locked out by one that died."""

import subprocess
import sys
import threading
import time

import pytest

from misfm.errors import DataError
from misfm.locks import Taken, hold

HOLDER = """
import sys, time
from pathlib import Path
from misfm.locks import hold
with hold(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_one_is_refused_until_the_first_is_done(tmp_path):
    path = tmp_path / "new" / "run.lock"
    with hold(path, "taken"), pytest.raises(Taken, match="taken"), hold(path, "taken"):
        pass
    with hold(path, "taken"):
        pass


def test_a_second_one_may_wait(tmp_path):
    path, order = tmp_path / "store.lock", []

    def wait():
        with hold(path, "taken", waiting=lambda: order.append("waiting")):
            order.append("second")

    with hold(path, "taken"):
        thread = threading.Thread(target=wait)
        thread.start()
        while not order:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["waiting", "first", "second"]


def test_a_killed_holder_leaves_no_lock(tmp_path):
    path = tmp_path / "run.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(Taken), hold(path, "taken"):
        pass
    holder.kill()
    holder.wait()
    with hold(path, "taken"):
        pass


def test_where_no_file_can_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="Cannot write"), hold(tmp_path / "file" / "lock", "taken"):
        pass


def test_a_lock_that_is_removed_at_the_end_locks_nobody_out(tmp_path):
    path = tmp_path / "run.lock"
    with hold(path, "taken", remove=True):
        late = path.open("ab")  # as one who comes while it is held
    assert not path.exists()
    with late, hold(path, "taken", remove=True), pytest.raises(Taken), hold(path, "taken"):
        pass


def test_nobody_waits_for_a_lock_that_is_held_by_the_same_thread(tmp_path):
    path = tmp_path / "store.lock"
    with hold(path, "taken"), pytest.raises(Taken), hold(path, "taken", waiting=lambda: None):
        pass
