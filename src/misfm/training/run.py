"""The run folder: settings, environment, log, metrics, checkpoints and weights of one training."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from misfm import world
from misfm.documents import Malformed, parse_json, parse_yaml
from misfm.errors import ConfigError, DataError
from misfm.files import CHECKSUMS, read_checked, read_checksums, write_checked, write_checked_json
from misfm.settings import NO_WEIGHTS, Settings
from misfm.terminal import logger
from misfm.training.batch_stream import loader_workers

PLANNED = ("patch_size", "batch_size", "network", "spacing", "intensity", "steps")
"""Settings that are filled in where they are null; null says something of all others."""
PLACES = ("store", "dataset", "split", "weights")
"""Settings that may be paths."""
FREE = ("num_workers",)
"""Settings that change no number, so that they may change while a run goes on."""
CONDITIONS = ("threads", "device", "ranks")
"""What is kept of how a run began: sums depend on it in their last digits."""
LOCK = "run.lock"
"""In a folder while a process works in it."""
PLAN = "plan.txt"
"""In the folder of a fine-tuning: why what was planned is as it is."""
VERSIONED = ("misfm", "torch", "numpy", "lightning-fabric", "blosc2", "nibabel", "SimpleITK")


@dataclass(frozen=True)
class RunFolder:
    """Paths within a run folder.

    Attributes:
        path: the folder itself.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved settings, YAML."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions and machine, and what else a run that goes on needs to be the same."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def previous(self) -> Path:
        """The checkpoint before the last one, for when that is damaged."""
        return self.path / "checkpoints" / "previous.pt"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.last.exists() or self.previous.exists()

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation score."""
        return self.path / "checkpoints" / "best.pt"

    @property
    def weights(self) -> Path:
        """The final weights, to predict with and to transfer."""
        return self.path / "weights.safetensors"

    def settings_checksum(self) -> int | None:
        """Return the checksum of the settings the run was started with; None where none is kept."""
        sums = read_checksums(self.path).get(self.config.name)
        return sums[-1] if sums else None

    def begin(self, settings: Settings, *, resume: bool) -> None:
        """Write settings and environment, or check that a resumed run has the same settings.

        Raises:
            ConfigError: see :meth:`check`.
            DataError: the folder cannot be written.
        """
        self.check(settings, resume=resume)
        if not self.config.exists():
            text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
            write_checked(self.config, text.encode())
        training = getattr(settings, "training", None)
        workers = None if training is None else loader_workers(training.num_workers)
        write_checked_json(
            self.environment, {**environment(), "loader_workers": workers, **self.conditions()}
        )

    def conditions(self) -> dict[str, Any]:
        """Return what the numbers of the run depend on beside its settings, as it began; nothing before that.

        Raises:
            DataError: the file that says so is damaged.
        """
        if not (self.config.exists() and self.environment.exists()):
            return {}
        try:
            found = parse_json(read_checked(self.environment))
            return {name: found[name] for name in CONDITIONS if name in found}
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self.environment} is damaged; delete it to go on with the run.") from error

    def check(self, settings: Settings, *, resume: bool) -> None:
        """Check that a run can begin here, or that a resumed one has the same settings.

        Settings that came into misfm after the run was started count as having had their defaults.

        Raises:
            ConfigError: the folder holds a run and ``resume`` is off, its settings differ, or it holds other
                things.
        """
        self.refuse_taken(resume=resume)
        if not self.config.exists():
            return
        changed = first_difference(self.completed(type(settings)), settings.model_dump(mode="json"))
        if changed:
            raise ConfigError(
                f"The run in {self.path} was started with other settings ({changed}): resume it with the "
                "options it was started with, or choose another --out."
            )

    def refuse_taken(self, *, resume: bool) -> None:
        """Check that a run can begin here, whatever its settings.

        Raises:
            ConfigError: the folder holds a run and ``resume`` is off, or it holds other things.
        """
        if resume:
            return
        if self.config.exists():
            raise ConfigError(
                f"{self.path} already holds a run: add --resume to go on with it, or choose another --out."
            )
        if self.path.is_dir() and any(not is_leftover(file.name) for file in self.path.iterdir()):
            raise ConfigError(f"{self.path} is not empty and holds no run: choose another --out.")

    def read_settings(self) -> dict[str, Any]:
        """Return the resolved settings the run was started with.

        Raises:
            DataError: the file cannot be read or holds no settings.
        """
        try:
            settings = dict(parse_yaml(read_checked(self.config).decode()))
            if "dataset" in settings:  # a fine-tuning; in those of earlier versions null says that, too
                settings["weights"] = settings.get("weights") or NO_WEIGHTS
            return settings
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"{self.config} does not hold the settings of a run; it is damaged.") from error

    def require(self, settings: Settings) -> None:
        """Check that a run was trained with these settings; what was left open to be planned may be anything.

        Raises:
            ConfigError: it was not; names the first setting that differs.
        """
        given = without_open(settings.model_dump(mode="json"))
        changed = first_difference(shared_part(self.completed(type(settings)), given), given)
        if changed:
            raise ConfigError(
                f"The run in {self.path} was trained with other settings ({changed}): choose another --out."
            )

    def completed(self, kind: type[Settings]) -> dict[str, Any]:
        """Return the settings the run was started with, and the defaults of those that did not exist then."""
        saved = self.read_settings()
        try:
            return kind.model_validate(saved).model_dump(mode="json")
        except ValidationError:  # settings that have gone since then: they are named as the difference
            return saved

    def read_metrics(self) -> list[dict[str, Any]]:
        """All logged steps, oldest first; a last line cut short by a kill is left out.

        Raises:
            DataError: a line is damaged.
        """
        try:
            *lines, _ = read_checked(self.metrics).split(b"\n")
        except FileNotFoundError:
            return []
        except Malformed as error:
            raise damaged_metrics(self.metrics, str(error)) from error
        rows = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(parse_row(line))
            except ValueError as error:
                raise damaged_metrics(self.metrics, f"line {number} is no logged step") from error
        return rows

    def seal_metrics(self) -> None:
        """Keep the checksum of a log that is complete."""
        write_checked(self.metrics, self.metrics.read_bytes())

    def check_present(self) -> None:
        """Check that the folder is still there, before results are written to it.

        Raises:
            DataError: it was removed or moved meanwhile.
        """
        if not self.config.exists():
            raise DataError(
                f"{self.path} was removed or moved while the run went on: put it back and resume, or start "
                "the run again."
            )


def parse_row(line: bytes) -> dict[str, Any]:
    """Read a logged step.

    Raises:
        ValueError: it is none.
    """
    row = parse_json(line)
    if not (isinstance(row, dict) and type(row.get("step")) is int):
        raise ValueError("no step")
    if not all(value is None or type(value) in (int, float) for value in row.values()):
        raise ValueError("something that is no number")
    return row


def damaged_metrics(path: Path, what: str) -> DataError:
    """Return an error that says what is wrong with a log."""
    return DataError(
        f"{path} is damaged ({what}): put it back as it was, or delete it to go on without what was logged "
        "before."
    )


def is_leftover(name: str) -> bool:
    """Whether a file may be of a start that was killed before there was a run."""
    return name in (LOCK, PLAN, CHECKSUMS) or (name.startswith(".") and name.endswith(".tmp"))


def steps_taken(run: RunFolder) -> int:
    """Return after how many steps a training ended, or is by now."""
    rows = run.read_metrics()
    return int(rows[-1]["step"]) if rows else 0


def first_difference(saved: Any, given: Any, key: str = "") -> str:
    """Name the first setting that differs between two resolved configurations; empty if none does."""
    if isinstance(saved, dict) and isinstance(given, dict):
        for name in [*given, *(name for name in saved if name not in given)]:
            found = first_difference(saved.get(name), given.get(name), f"{key}.{name}" if key else str(name))
            if found:
                return found
        return ""
    name = key.rpartition(".")[2]
    if saved == given or name in FREE or is_same_place(saved, given, name):
        return ""
    return f"{key} was {saved}, now {given}"


def is_same_place(saved: Any, given: Any, name: str) -> bool:
    """Whether two values of a setting are paths to one file or folder, written differently or moved."""
    if name not in PLACES or not (isinstance(saved, str) and isinstance(given, str)):
        return False
    if not os.path.exists(given):
        return False
    if os.path.exists(saved):
        return os.path.realpath(saved) == os.path.realpath(given)
    # Moved, perhaps together with the run. Names that stand for no place, such as builtin or phantom:800, are
    # not taken for a folder that was moved.
    is_moved = os.path.basename(os.path.normpath(saved)) == os.path.basename(os.path.normpath(given))
    if is_moved:
        logger.info("%s is no longer at %s: going on with %s", name, saved, given)
    return is_moved


def without_open(settings: Any) -> Any:
    """Leave out what a fine-tuning plans where it is null."""
    if not isinstance(settings, dict):
        return settings
    return {
        name: without_open(value)
        for name, value in settings.items()
        if value is not None or name not in PLANNED
    }


def shared_part(saved: Any, given: Any) -> Any:
    """Return of ``saved`` what ``given`` names, too."""
    if not (isinstance(saved, dict) and isinstance(given, dict)):
        return saved
    return {name: shared_part(value, given[name]) for name, value in saved.items() if name in given}


def environment() -> dict[str, Any]:
    """Versions, machine and git state, for ``environment.json``."""
    versions = {}
    for package in VERSIONED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": present_device(),
        "gpu": present_gpu(),
        "ranks": world.size(),
        "command": sys.argv,
        "git": git_state(Path(__file__).parent),
    }


def present_device() -> str:
    """Name the device that training would choose."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "mps" if torch.backends.mps.is_available() else "cpu"


def present_gpu() -> dict[str, Any] | None:
    """Driver, CUDA version, memory and capability of the GPU that training would choose; None without one."""
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "driver": output_of(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "count": torch.cuda.device_count(),
    }


def git_state(folder: Path) -> str | None:
    """Commit of the checkout misfm runs from, with ``+changes`` if it is not clean; None outside git."""
    return output_of(["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+changes"])


def output_of(command: list[str]) -> str | None:
    """What a command prints; None where there is no such command, or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
