"""Training on several devices: how the processes are started and meet, and how each gets its device.

There is a process for each GPU; on a CPU as many as are asked for, which share its cores. misfm starts those
of one machine itself (the same command line once more for each), or is started as one of them by ``torchrun``
or ``srun``. They then meet, rank 0 leads, and the others do what it calls (:mod:`misfm.world`).
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, NoReturn, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric.plugins.environments.lightning import find_free_network_port
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

from misfm import lifeline, world
from misfm.errors import ConfigError, MisfmError
from misfm.parallel import check_workers
from misfm.ranks import Started, started_world, unused_tasks
from misfm.signals import Interrupted
from misfm.terminal import logger

AUTO = "auto"
LONG = timedelta(days=20)
"""How long a process waits for decisions of the leader, which may be labelling cases meanwhile."""
MEETING = timedelta(minutes=5)
"""How long processes wait for each other at the start."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Devices:
    """What to train on, as asked for.

    Attributes:
        count: devices of each machine, or ``"auto"``: all GPUs, or one process on a CPU. None is one, or
            those for which ``torchrun`` or ``srun`` have started processes.
        nodes: machines; None is one, or those that have been started.
        strategy: ``ddp``: each device has the whole network; ``fsdp``: its share; ``auto``: ddp.
    """

    count: int | Literal["auto"] | None = None
    nodes: int | None = None
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"


def parse_devices(count: str | None, nodes: int | None, strategy: str) -> Devices:
    """Read what the options of a command say.

    Raises:
        ConfigError: no number of devices, or no strategy of that name.
    """
    if strategy not in ("auto", "ddp", "fsdp"):
        raise ConfigError(f"--strategy is auto, ddp or fsdp; got '{strategy}'.")
    if count in (None, AUTO):
        return Devices(count, nodes, strategy)  # type: ignore[arg-type]
    if not (count.isdecimal() and int(count)):
        raise ConfigError(f"--devices takes a number from 1, or auto; got '{count}'.")
    return Devices(int(count), nodes, strategy)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Entered:
    """The world that this process is one of until it ends.

    Attributes:
        started: how it was started.
        world: for :func:`misfm.world.member`.
        line: notices the end of another.
        children: processes that this one has started.
        strategy: what each device has.
    """

    started: Started
    world: world.World
    line: lifeline.Lifeline
    children: list[subprocess.Popen[bytes]]
    strategy: Literal["auto", "ddp", "fsdp"]


_entered: Entered | None = None


def as_devices(devices: Devices | int | Literal["auto"] | None) -> Devices:
    """Return what is asked for where a number of devices is enough to say so."""
    return devices if isinstance(devices, Devices) else Devices(devices)


def own_place() -> tuple[Started, str]:
    """Return which of the world's processes this one is, and the strategy."""
    if _entered is not None:
        return _entered.started, _entered.strategy
    return Started(world.rank(), world.size(), world.size(), 1, "misfm"), AUTO


def lead(devices: Devices | int | Literal["auto"] | None, work: Callable[[], Result]) -> Result:
    """Do work on these devices: in rank 0, while the others do what it calls.

    Where this process is already at such work, or is alone, the work is done and no more.

    Returns:
        In each rank, what rank 0 has returned. Where rank 0 fails the others end.

    Raises:
        ConfigError: devices that are not there, or another number of processes than was started.
    """
    if world.is_entered() or (entered := enter(as_devices(devices))) is None:
        return work()
    with world.member(entered.world), entered.line.passing_on():
        if not world.is_leader():
            return follow(entered.line)  # type: ignore[no-any-return]
        try:
            return world.led(work)
        except Exception as error:
            if not isinstance(error, MisfmError):  # perhaps another rank is gone, which its line tells better
                entered.line.wait()
            entered.line.end()
            raise
        except BaseException:
            entered.line.end()
            raise


def follow(line: lifeline.Lifeline) -> Any:
    """Follow the leader until it is done; what fails here is told here, and ends all."""
    logger.disabled = True  # the leader tells
    try:
        return world.follow()
    except (Exception, Interrupted) as error:
        line.wait()  # where all fail alike, or one is gone, others tell, and end this process
        fail(error, line)
    finally:
        logger.disabled = False


def fail(error: BaseException, line: lifeline.Lifeline) -> NoReturn:
    """Say why this rank ends, and all with it."""
    if isinstance(error, MisfmError):
        print(f"Error: {error}", file=sys.stderr, flush=True)
    elif isinstance(error, Exception):
        sys.excepthook(type(error), error, error.__traceback__)
    line.end()
    os._exit(1)


def enter(devices: Devices) -> Entered | None:
    """Start the other processes where that is to be done here, and meet them; None where this one is alone.

    Raises:
        ConfigError: as :func:`lead`.
    """
    global _entered
    started = chosen(devices)
    if started is None:
        return None
    if _entered is not None:
        if started.size != _entered.started.size:
            raise ConfigError(
                f"--devices: this program started with {_entered.started.size} processes, and goes on with "
                "as many."
            )
        return _entered
    place, children = {}, []
    if started_world() is None:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), **os.environ}
        children = start_others(started, place)
    address, port = meeting_place({**place, **os.environ}, started)
    device = own_device(started)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // started.local_size))
    with lifeline.watched_meeting(children, started.size):
        meet(started, address, port, "nccl" if device.type == "cuda" else "gloo")
        ours = world.World(started.rank, started.size, dist.new_group(backend="gloo", timeout=LONG))
        with world.member(ours):
            line = lifeline.connect(started.rank, started.size, address, world.from_leader)
    _entered = Entered(started, ours, line, children, devices.strategy)
    atexit.register(leave, _entered)
    if not started.rank:
        logger.info("%s", in_words(started, device.type))
    return _entered


def meet(started: Started, address: str, port: int, backend: str) -> None:
    """Find the other processes.

    Raises:
        MisfmError: they are not there within some minutes.
    """
    try:
        if started.by == "torchrun":  # it has opened the port itself
            dist.init_process_group(backend, init_method="env://", timeout=LONG)
        else:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                address, port, started.size, not started.rank, timeout=MEETING
            )
            dist.init_process_group(
                backend, store=store, timeout=LONG, rank=started.rank, world_size=started.size
            )
    except (RuntimeError, ValueError) as error:  # torch's errors of networks are these
        raise MisfmError(
            f"Process {started.rank} of {started.size} does not find the others at {address}:{port}: "
            f"{str(error).splitlines()[0]}."
        ) from error


def own_device(started: Started) -> torch.device:
    """Return the device of a process: the GPU of its number, or the one that it was given."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", started.rank % started.local_size % present_devices())


def in_words(started: Started, kind: str) -> str:
    """Say what trains."""
    what = "GPUs" if kind == "cuda" else "processes on the CPU"
    machines = f" of {started.num_nodes} machines" if started.num_nodes > 1 else ""
    return f"training on {started.size} {what}{machines}"


def leave(entered: Entered) -> None:
    """Part from the others at the end of the process."""
    entered.line.send(lifeline.BYE)
    for child in entered.children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(2 * lifeline.GRACE)
        child.kill()
    if dist.is_initialized() and dist.get_backend() == "nccl":
        dist.destroy_process_group()


def chosen(devices: Devices) -> Started | None:
    """Decide which of several processes this one is; None where it is to be alone.

    Raises:
        ConfigError: what is asked for is not there, or is not what was started.
    """
    count, nodes, strategy = devices.count, devices.nodes, devices.strategy
    started = started_world()
    if started is not None:
        check_started(devices, started)
        return started
    if (tasks := unused_tasks()) > 1 and count is None:
        raise ConfigError(
            f"SLURM gave this job {tasks} tasks, and this is one process that srun did not start: start it "
            "with `srun misfm ...`, or say how many devices to train on with --devices N."
        )
    if (nodes or 1) > 1:
        raise ConfigError(
            f"--nodes {nodes}: start misfm on each machine by srun or torchrun, or with MASTER_ADDR, "
            "MASTER_PORT, WORLD_SIZE, NODE_RANK, LOCAL_RANK and MISFM_NODES set (docs/using.md)."
        )
    size = present_devices() if isinstance(count, str) else count or 1
    if size == 1 and strategy == "fsdp":
        raise ConfigError("--strategy fsdp shares a network out among devices: give --devices 2 or more.")
    check_present(size)
    return None if size == 1 else Started(0, size, size, 1, "misfm")


def check_started(devices: Devices, started: Started) -> None:
    """Check that what is asked for is what was started.

    Raises:
        ConfigError: it is not.
    """
    for option, asked, there, what in (
        ("--devices", devices.count, started.local_size, "processes on each machine"),
        ("--nodes", devices.nodes, started.num_nodes, "machines"),
    ):
        if asked not in (None, AUTO, there):
            raise ConfigError(
                f"{option} {asked}, but {started.by} has started {there} {what}: leave {option} out, or "
                "start as many."
            )
    check_present(started.local_size)


def present_devices() -> int:
    """Return how many GPUs this machine has; 1 for a CPU."""
    return max(1, torch.cuda.device_count())


def check_present(size: int) -> None:
    """Check that a machine has so many devices.

    Raises:
        ConfigError: it has fewer GPUs, or too few cores.
    """
    if not torch.cuda.is_available():
        check_workers(size, "--devices")
    elif 1 < present_devices() < size:  # a single one may be what each process was given of several
        raise ConfigError(f"--devices {size}: this machine has {present_devices()} GPUs.")
    elif present_devices() == 1 < size and started_world() is None:
        raise ConfigError(f"--devices {size}: this machine has one GPU.")


def start_others(started: Started, place: dict[str, str]) -> list[subprocess.Popen[bytes]]:
    """Start the same command line once for each further process of this machine."""
    import __main__

    module = getattr(__main__, "__spec__", None)
    program = ["-m", module.name] if module is not None else [os.path.abspath(sys.argv[0])]
    command = [sys.executable, *program, *sys.argv[1:]]
    known = {"WORLD_SIZE": str(started.size), "NODE_RANK": "0", "MISFM_NODES": "1"}
    known[lifeline.PARENT] = str(os.getpid())
    return [
        subprocess.Popen(command, env={**place, **known, "LOCAL_RANK": str(rank)})
        for rank in range(1, started.size)
    ]


def meeting_place(environment: dict[str, str], started: Started) -> tuple[str, int]:
    """Return address and port at which the processes find each other."""
    if started.by == "srun":
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or "127.0.0.1"
        address = environment.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)
        job, step = (int(environment.get(f"SLURM_{name}_ID") or 0) for name in ("JOB", "STEP"))
        return address, int(environment.get("MASTER_PORT") or 15_000 + (job * 7 + step) % 10_000)
    return environment.get("MASTER_ADDR", "127.0.0.1"), int(environment.get("MASTER_PORT", 29_500))


def check_shares(count: int, setting: str) -> None:
    """Check that a batch can be shared out evenly.

    Raises:
        ConfigError: it cannot.
    """
    if count % world.size():
        raise ConfigError(
            f"{setting} {count} cannot be shared out evenly among {world.size()} devices: choose a multiple "
            f"of {world.size()}, or other --devices."
        )
