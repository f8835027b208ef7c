"""One at a time in a folder, whether processes or threads, and one training at a time in a process."""

import threading

import pytest

from misfm.locks import Taken
from misfm.training.exclusive import exclusive, in_run
from misfm.training.run import RunFolder


def in_a_thread(work):
    """Do work in another thread; returns what it raised, if anything."""
    raised = []

    def do():
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=do)
    thread.start()
    return thread, raised


def enter(folder):
    with exclusive(folder):
        pass


def test_what_is_done_within_need_not_hold_the_folder_again(tmp_path):
    with exclusive(tmp_path), exclusive(tmp_path):
        assert (tmp_path / "run.lock").exists()
    assert not (tmp_path / "run.lock").exists()


def test_another_thread_is_refused(tmp_path):
    with exclusive(tmp_path):
        thread, raised = in_a_thread(lambda: enter(tmp_path))
        thread.join()
    assert [type(error) for error in raised] == [Taken]
    enter(tmp_path)


def test_trainings_in_threads_wait_for_each_other(tmp_path):
    order = []

    def second():
        with in_run(RunFolder(tmp_path / "second")):
            order.append("second")

    with in_run(RunFolder(tmp_path / "first")):
        thread, raised = in_a_thread(second)
        thread.join(timeout=0.1)
        order.append("first")
    thread.join()
    assert (order, raised) == (["first", "second"], [])


def test_a_folder_that_stays_empty_is_not_left_behind(tmp_path):
    with pytest.raises(ValueError, match="nothing"), exclusive(tmp_path / "new" / "run"):
        raise ValueError("nothing")
    assert not (tmp_path / "new").exists()
