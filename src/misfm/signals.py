"""Signals that ask to stop: Ctrl-C, SIGTERM of ``scancel``, ``docker stop``, SIGUSR1 of ``sbatch --signal``.

The first ends a command within ten seconds, whatever it is doing. Outside of training :class:`Interrupted`
is raised where the program is. Training is left the time to end its step and save (:func:`deferred`). What
neither can interrupt, such as one long computation outside of Python, ends with the process. A second kills.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from multiprocessing.resource_tracker import ensure_running
from types import FrameType

ASKING = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGUSR1") if name in signal.Signals.__members__
)
ENDING = (signal.SIGINT, signal.SIGTERM)
"""Those of them that are answered where misfm is a library: of others a program makes its own use."""
PATIENCE = 3.0
"""Seconds that a training step has to end before it is interrupted."""
LIMIT = 6.0
"""Seconds after which the process ends, whatever it is doing."""
REPEATED = 1.0
"""Seconds within which another signal is the same request: some senders reach a process twice."""


class Interrupted(BaseException):
    """The user or the system asked to stop; says what is saved, where that is known.

    No :class:`Exception`, so that nothing that deals with failures takes it for one and goes on.
    """


class _Mode(Enum):
    """When :class:`Interrupted` is raised after a signal."""

    AT_ONCE = 0
    WHEN_OVERDUE = 1
    NEVER = 2


@dataclass
class _State:
    """What is known in this process."""

    mode: _Mode = _Mode.AT_ONCE
    asked_at: float | None = None
    is_overdue: bool = False
    is_told: bool = False
    process: int | None = None
    """That handles signals, None where none does; one that was forked from it leaves them to it."""
    stopped: set[str] = field(default_factory=set)
    """Work of others that is to stop, by name."""
    pass_on: Callable[[int], None] | None = None
    """What else learns of a signal."""
    is_left: bool = False
    """Whether the answer is left to what else learns of it, and ends this process."""


_state = _State()
_work = threading.local()


def requested() -> bool:
    """Whether this process, or those that the present work is done for, have been asked to stop."""
    return _state.asked_at is not None or getattr(_work, "name", None) in _state.stopped


@contextmanager
def handled(farewell: str | None = None) -> Iterator[None]:
    """Turn the first signal into :class:`Interrupted` while the context lasts; in another one, do nothing.

    Args:
        farewell: what to print before the process is ended after ``LIMIT`` seconds; None never ends it so.
    """
    if _state.process is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    ended = threading.Event()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    watch = threading.Thread(target=_watch, args=(ours, ended, farewell), daemon=True, name="signals")
    watch.start()
    _state.process = os.getpid()
    _leave_to_the_parent_after_a_fork()
    waking = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    # A handler that is none of Python's could not be put back.
    answered = ENDING if farewell is None else ASKING
    asking = [number for number in answered if signal.getsignal(number) is not None]
    previous = {number: signal.signal(number, _answer) for number in asking}
    try:
        yield
    finally:
        _state.mode = _Mode.NEVER  # whatever comes now comes too late
        ended.set()
        theirs.shutdown(socket.SHUT_WR)
        watch.join()
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(waking)
        theirs.close()
        ours.close()
        _state.mode, _state.asked_at, _state.process = _Mode.AT_ONCE, None, None
        _state.is_overdue = _state.is_told = False
        if farewell is not None:
            atexit.register(ignore)  # all is done: what the interpreter tidies up is not worth a word


def _answer(number: int, _: FrameType | None) -> None:
    """Answer a signal, in the main thread."""
    if os.getpid() != _state.process:
        return
    now = time.monotonic()
    if _state.asked_at is None:
        _state.asked_at = now
        if _state.mode is _Mode.AT_ONCE:
            raise Interrupted
    elif _state.is_overdue and not _state.is_told:  # from the watch, not from outside
        _state.is_told = True
        if _state.mode is _Mode.WHEN_OVERDUE:
            raise Interrupted
    elif now - _state.asked_at > REPEATED:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _watch(ours: socket.socket, ended: threading.Event, farewell: str | None) -> None:
    """Wait for a signal, and see to it that it is answered: Python itself does so between its steps only."""
    while not (asked := {*(received := ours.recv(64))} & {*ASKING}):
        if not received:
            return
    if _state.pass_on is not None:
        _state.pass_on(min(asked))
    if _state.is_left:
        if not ended.wait(2 * LIMIT):
            os._exit(1)
        return
    if ended.wait(PATIENCE):
        return
    _state.is_overdue = True
    if hasattr(signal, "pthread_kill") and (main := threading.main_thread().ident) is not None:
        signal.pthread_kill(main, min(asked))  # that one again: others may be the host program's
    if farewell is not None and not ended.wait(LIMIT - PATIENCE):
        os.write(2, f"{farewell}\n".encode())
        os._exit(1)


_is_registered = False


def _leave_to_the_parent_after_a_fork() -> None:
    """Keep a forked process from waking the watch of its parent."""
    global _is_registered
    if not _is_registered and hasattr(os, "register_at_fork"):

        def sleep_on() -> None:
            if _state.process is not None:
                with suppress(ValueError):
                    signal.set_wakeup_fd(-1)

        os.register_at_fork(after_in_child=sleep_on)
        _is_registered = True


@contextmanager
def _waiting(mode: _Mode) -> Iterator[None]:
    """Answer signals in this way while the context lasts; other threads than the main one never do."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, _state.mode = _state.mode, mode
    try:
        yield
    finally:
        _state.mode = before


@contextmanager
def deferred() -> Iterator[None]:
    """Leave what is done in the context the time to look at :func:`requested` and save; at its end stop.

    It is interrupted all the same where it takes longer than ``PATIENCE``.

    Raises:
        Interrupted: at the end, if a stop was requested.
    """
    with handled():
        with _waiting(_Mode.WHEN_OVERDUE):
            yield
        stop_if_requested()


@contextmanager
def interruptible() -> Iterator[None]:
    """Within :func:`deferred`: what can be interrupted anywhere, and is to be.

    Raises:
        Interrupted: a stop was requested before.
    """
    with _waiting(_Mode.AT_ONCE):
        stop_if_requested()
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Within :func:`deferred`: what saves, and is to end."""
    with _waiting(_Mode.NEVER):
        yield


@contextmanager
def passed_on(to: Callable[[int], None], *, leave: bool) -> Iterator[None]:
    """Tell others of a signal, of its number, from another thread while the context lasts.

    Args:
        to: tells them.
        leave: whether the answer is left to them: nothing is interrupted here.
    """
    _state.pass_on, _state.is_left = to, leave
    try:
        if leave:
            with handled(), uninterrupted():
                yield
        else:
            yield
    finally:
        _state.pass_on, _state.is_left = None, False


def stop_if_requested() -> None:
    """Stop here if that was requested.

    Raises:
        Interrupted: it was.
    """
    if requested():
        raise Interrupted


def ignore(*_: object) -> None:
    """Ignore these signals: for a process whose parent gets them, too, and decides."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def withheld() -> Iterator[None]:
    """Start processes and threads that never see these signals, not even while they start."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        ensure_running()  # a process of Python's own; started later, it would let the signals in again
        signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def working_for(name: str) -> Iterator[None]:
    """Do work that others, in another process, may :func:`request` to stop, in this thread."""
    _work.name = name
    try:
        yield
    finally:
        _work.name = None


def request(name: str) -> None:
    """Request that the work of this name stops, in this process, and that none of it begins."""
    _state.stopped.add(name)
