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

import yaml
from pydantic import ValidationError

from misfm.documents import parse_json, read_yaml
from misfm.errors import ConfigError, DataError
from misfm.files import write_json, write_text
from misfm.settings import NO_WEIGHTS, Settings

PLANNED = ("patch_size", "batch_size", "network", "spacing", "intensity", "steps")
"""Settings that are filled in where they are null; null says something of all others."""
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
    def metrics(self) -> Path:
        """One JSON object a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint of the best validation score."""
        return self.path / "checkpoints" / "best.pt"

    @property
    def weights(self) -> Path:
        """The final weights, to predict with and to transfer."""
        return self.path / "weights.safetensors"

    def begin(self, settings: Settings, *, resume: bool) -> None:
        """Write settings and environment, or check that a resumed run has the same settings.

        Raises:
            ConfigError: see :meth:`check`.
            DataError: the folder cannot be written.
        """
        self.check(settings, resume=resume)
        if not self.config.exists():
            write_text(self.config, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        write_json(self.path / "environment.json", environment())

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
        if self.path.is_dir() and any(self.path.iterdir()):
            raise ConfigError(f"{self.path} is not empty and holds no run: choose another --out.")

    def read_settings(self) -> dict[str, Any]:
        """Return the resolved settings the run was started with.

        Raises:
            DataError: the file cannot be read or holds no settings.
        """
        try:
            settings = dict(read_yaml(self.config))
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
            DataError: a line is no JSON.
        """
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        try:
            return [parse_json(line) for line in lines if line.endswith("\n")]
        except ValueError as error:
            raise DataError(f"{self.metrics} is damaged ({error}); correct or delete it.") from error


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
    return "" if saved == given else f"{key} was {saved}, now {given}"


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
        "command": sys.argv,
        "git": git_state(Path(__file__).parent),
    }


def git_state(folder: Path) -> str | None:
    """Commit of the checkout misfm runs from, with ``+changes`` if it is not clean; None outside git."""
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+changes"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
