"""Things read, computed and written at once: never more than three, each failure its own, all of it noted."""

import threading

import pytest

from misfm.errors import ConfigError, DataError
from misfm.parallel import Overlapped, Where, pool
from misfm.signals import Interrupted


class Recorded:
    """Parts that write down what was done."""

    def __init__(self, fail=(), stop_at=None):
        self.results, self.dropped, self.threads = {}, [], {}
        self.fail, self.stop_at = fail, stop_at
        self.alive, self.most = 0, 0
        self.lock = threading.Lock()

    def _count(self, change):
        with self.lock:
            self.alive += change
            self.most = max(self.most, self.alive)

    def _enter(self, part, item):
        self.threads.setdefault(part, set()).add(threading.current_thread().name)
        if (part, item) in self.fail:
            raise DataError(f"{item} fails to {part}")

    def read(self, item):
        self._enter("read", item)
        self._count(1)
        return item

    def compute(self, item, read):
        if item == self.stop_at:
            raise Interrupted
        self._enter("compute", item)
        return read

    def write(self, item, made):
        self._enter("write", item)
        self._count(-1)
        return item * 10

    def drop(self, made):
        self.dropped.append(made)

    def done(self, item, result):
        assert threading.current_thread() is threading.main_thread()
        self.results[item] = result


def test_each_part_has_its_thread_and_no_more_than_three_things_are_there():
    parts = Recorded()
    Overlapped(parts).run(range(20))
    assert parts.results == {item: 10 * item for item in range(20)}
    assert parts.most <= 3
    assert {name.rsplit("_", 1)[0] for name in parts.threads["read"]} == {"reader"}
    assert {name.rsplit("_", 1)[0] for name in parts.threads["write"]} == {"writer"}
    assert parts.threads["compute"] == {"MainThread"}


@pytest.mark.parametrize("room", [True, False])
def test_a_failure_is_of_its_thing_alone(room):
    parts = Recorded(fail={("read", 1), ("compute", 3), ("write", 4), ("read", 5)})
    Overlapped(parts, lambda read: room).run(range(6))
    failed = {item: str(result) for item, result in parts.results.items() if isinstance(result, DataError)}
    assert failed == {
        1: "1 fails to read",
        3: "3 fails to compute",
        4: "4 fails to write",
        5: "5 fails to read",
    }
    assert (parts.results[0], parts.results[2]) == (0, 20)


def test_a_stop_ends_it_and_what_was_written_is_noted():
    parts = Recorded(stop_at=2)
    with pytest.raises(Interrupted):
        Overlapped(parts).run(range(9))
    assert set(parts.results) | set(parts.dropped) == {0, 1}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("reader", "writer"))]


def test_devices_are_workers_of_their_own():
    assert Where(workers=3).num_workers(0) == 3
    assert Where(devices="auto").num_workers(4) == 4
    assert Where(devices="auto").num_workers(0) == 1
    assert Where(devices="2").num_workers(0) == 2
    for wrong in (Where(devices=3), Where(devices="none"), Where(workers=2, devices=2)):
        with pytest.raises(ConfigError, match="--devices"):
            wrong.num_workers(2)


def test_a_scheduler_that_is_not_there_is_a_sentence():
    with pytest.raises(ConfigError, match="no Dask scheduler at 'nonsense'"), pool(scheduler="nonsense"):
        pass
