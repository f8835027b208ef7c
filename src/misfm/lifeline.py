"""What holds processes of one world together: each finds out within seconds that another has died or failed.

A thread of each process watches a connection to the leader, for the main thread may be waiting for ever, deep
in a library, for the one that is gone. Signals that ask to stop are passed on to the leader, which alone
answers them. Where a process is lost one of those left says so, and all end.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from misfm import signals
from misfm.terminal import how_to_go_on

END, BYE = 255, 254
"""What is sent beside the numbers of signals: something has failed and is told; this process is done."""
GRACE = 3.0
"""Seconds that a process waits for the leader to end first, so that this one has the last word."""
TOKEN_BYTES = 16
PARENT = "MISFM_LEADER_PID"
"""Variable of the environment: which process has started this one."""
GLANCE = 0.2
"""Seconds between two looks whether those that are still to meet are there."""
Door = tuple[int, bytes]
"""The leader's port, and what to say there."""


class Lifeline:
    """The connections of one process: the leader's to all others, theirs to the leader.

    Args:
        peers: by rank; the leader has all others, the others have the leader.
        rank: of this process.
        size: how many there are.
    """

    def __init__(self, peers: dict[int, socket.socket], rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._peers = peers
        self._asked = self._ends = False
        self._writing = threading.Lock()
        for peer in peers.values():
            keep_alive(peer)
        threading.Thread(target=self._watch, daemon=True, name="lifeline").start()

    def send(self, message: int) -> None:
        """Send a message to all that are connected."""
        with self._writing:
            for peer in self._peers.values():
                with suppress(OSError):
                    peer.sendall(bytes([message]))

    def ask(self, number: int) -> None:
        """Pass on that a signal has asked to stop: to the leader to do so, to others not to wonder."""
        self._asked = True
        self.send(number)

    def end(self) -> None:
        """Have all others end, for this process is about to, and tells why."""
        self._ends = True
        self.send(END)

    def wait(self) -> None:
        """Give whoever failed first the time to say so; this process mostly ends meanwhile."""
        time.sleep(GRACE)

    @contextmanager
    def passing_on(self) -> Iterator[None]:
        """Pass signals on while the context lasts; all but the leader leave the answer to it."""
        with signals.passed_on(self.ask, leave=self.rank != 0):
            yield

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select():
                    peer = self._peers[key.data]
                    for message in received(peer) or [-1]:
                        if message in (-1, BYE):
                            selector.unregister(peer)
                        self._answer(message, key.data)

    def _answer(self, message: int, rank: int) -> None:
        if self._ends:
            return
        if message == -1:
            self._lost(rank)
        elif message == END:
            if self.rank == 0:
                self.end()
            self._outlast()
            os._exit(1)
        elif message != BYE and not self._asked:
            self.ask(message)
            if self.rank == 0 and not signals.requested():
                os.kill(os.getpid(), message)

    def _lost(self, rank: int) -> None:
        """End this process, for another one is gone; the leader says so, or the next where it is that one."""
        time.sleep(0.2)  # a stop of all that is on its way here
        if not (self._asked or signals.requested()) and self.rank in (0, 1):
            print(lost(rank, self.size), file=sys.stderr, flush=True)
        self.send(END)
        os._exit(1)

    def _outlast(self) -> None:
        """Let the leader end before this process, but not for ever."""
        if self.rank:
            leader = self._peers[0]
            leader.settimeout(GRACE)
            while received(leader):
                pass


def received(peer: socket.socket) -> bytes:
    """Return what has come; nothing where the other end is gone."""
    try:
        return peer.recv(64)
    except OSError:
        return b""


def lost(rank: int, size: int) -> str:
    """Say that a process is gone."""
    return (
        f"Error: Process {rank} of {size} was killed or cannot be reached any more, most likely for want of "
        f"memory: {how_to_go_on(sys.argv)}."
    )


def keep_alive(peer: socket.socket) -> None:
    """Find out within ten seconds that the machine at the other end is gone."""
    peer.setblocking(True)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)


def connect(
    rank: int, size: int, address: str, tell: Callable[[tuple[int, bytes]], tuple[int, bytes]]
) -> Lifeline:
    """Connect all processes with the leader; to be called by all of them.

    Args:
        rank: of this process.
        size: how many there are.
        address: of the leader's machine.
        tell: gives all processes what the leader gives it.
    """
    if rank:
        port, token = tell((0, b""))
        leader = socket.create_connection((address, port), timeout=60)
        leader.sendall(token + rank.to_bytes(4, "big"))
        return Lifeline({0: leader}, rank, size)
    token = secrets.token_bytes(TOKEN_BYTES)
    with listening(address) as server:
        server.settimeout(60)
        tell((server.getsockname()[1], token))
        peers: dict[int, socket.socket] = {}
        while len(peers) < size - 1:
            peer, _ = server.accept()
            peer.settimeout(60)
            known = peer.recv(TOKEN_BYTES + 4, socket.MSG_WAITALL)
            if known[:TOKEN_BYTES] == token:
                peers[int.from_bytes(known[TOKEN_BYTES:], "big")] = peer
            else:  # somebody else's
                peer.close()
        return Lifeline(peers, rank, size)


@contextmanager
def watched_meeting(children: Sequence[subprocess.Popen[bytes]], size: int) -> Iterator[None]:
    """End this process where one of those that misfm has started ends before all have met.

    Only then is there a :class:`Lifeline`; meanwhile the main thread waits deep in a library.

    Args:
        children: that this process has started, rank 1 the first.
        size: how many processes there are.
    """
    met = threading.Event()
    parent = "" if children else os.environ.get(PARENT, "")

    def watch() -> None:
        while not met.wait(GLANCE):
            if parent.isdecimal() and os.getppid() != int(parent):
                os._exit(1)
            for rank, child in enumerate(children, 1):
                if child.poll() is None or met.is_set():
                    continue
                if child.returncode < 0 and not signals.requested():  # else it has said so itself
                    print(lost(rank, size), file=sys.stderr, flush=True)
                os._exit(1)

    threading.Thread(target=watch, daemon=True, name="meeting").start()
    try:
        yield
    finally:
        met.set()


def listening(address: str) -> socket.socket:
    """Open a port: on this machine only where the address says so."""
    if address in ("127.0.0.1", "localhost"):
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))
