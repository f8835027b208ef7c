"""What tests of whole recipes share: tiny generated scans, a store and runs on them, and the command line."""

import json
import sys
from dataclasses import dataclass
from typing import Any

import pytest

pytest.register_assert_rewrite("misfm.testing")

TINY_PRETRAINING = [
    "network.options.channels=[4, 8]",
    "patch_size=[16, 16, 16]",
    "batch_size=2",
    "validation_batches=1",
    "generated=2",
    "pretext.options.block_size=[[3, 6], [3, 6], [3, 6]]",
    "training.steps=4",
    "training.log_every=2",
    "training.validate_every=4",
    "training.checkpoint_every=2",
]
TINY_FINETUNING = [
    "network={name: unet, options: {channels: [4, 8]}}",
    "patch_size=[16, 16, 16]",
    "batch_size=2",
    "training.steps=4",
    "training.log_every=2",
    "training.validate_every=4",
    "training.checkpoint_every=2",
]


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit status, standard output and standard error."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> Any:
        """The JSON object on the last line."""
        return json.loads(self.out.splitlines()[-1])

    @property
    def error(self) -> str:
        """The one sentence a failed command ends with."""
        return self.err.strip().splitlines()[-1]


@pytest.fixture
def run_command(monkeypatch, capfd):
    """Run ``misfm ARGUMENTS...`` in this process, as the console script does."""
    from misfm.cli import main

    def run(*arguments):
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["misfm", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        status = exit_.value.code
        return Outcome(int(status or 0), captured.out, captured.err)

    return run


def as_options(assignments):
    return [part for assignment in assignments for part in ("--set", assignment)]


@pytest.fixture(scope="session")
def tiny_pretraining():
    """Options of a pretraining of four steps and a second."""
    return as_options(TINY_PRETRAINING)


@pytest.fixture(scope="session")
def tiny_finetuning():
    """Options of a fine-tuning of four steps and a second."""
    return as_options(TINY_FINETUNING)


@pytest.fixture(scope="session")
def phantom_dir(tmp_path_factory):
    """Folder with ``scans`` (four of them) and ``dataset`` (four training cases, two test cases)."""
    from misfm.data.generated import write_phantom_dataset, write_phantom_scans
    from misfm.synthesis.generate import PhantomSettings

    folder = tmp_path_factory.mktemp("phantom")
    settings = PhantomSettings(shape=(24, 26, 28), spacing=(14.0, 13.0, 12.0))
    write_phantom_scans(folder / "scans", 4, seed=0, settings=settings)
    write_phantom_dataset(folder / "dataset", num_train=4, num_test=2, seed=0, settings=settings)
    return folder


@pytest.fixture(scope="session")
def scans(phantom_dir):
    return phantom_dir / "scans"


@pytest.fixture(scope="session")
def dataset(phantom_dir):
    return phantom_dir / "dataset"


@pytest.fixture(scope="session")
def store(phantom_dir):
    """The scans as a store."""
    from misfm.data.ingest import ingest
    from misfm.data.record import IngestSettings

    settings = IngestSettings(spacing=(14.0, 14.0, 14.0), intensity="ct:-200,600")
    ingest([phantom_dir / "scans"], phantom_dir / "store", settings)
    return phantom_dir / "store"


@pytest.fixture(scope="session")
def pretrain_settings(store):
    """Build settings of a tiny pretraining, with more assignments on top."""
    from misfm.config import PretrainSettings
    from misfm.resolve import resolve

    def build(*assignments):
        tiny = list(TINY_PRETRAINING)
        if any(assignment.startswith("pretext=") for assignment in assignments):  # has other options
            tiny = [assignment for assignment in tiny if not assignment.startswith("pretext.")]
        return resolve(
            PretrainSettings, recipe="small", options={"store": str(store)}, assignments=[*tiny, *assignments]
        )

    return build


@pytest.fixture(scope="session")
def finetune_settings(dataset):
    """Build settings of a tiny fine-tuning, with more assignments on top."""
    from misfm.config import FinetuneSettings
    from misfm.resolve import resolve

    def build(*assignments):
        options = {"dataset": str(dataset)}
        return resolve(
            FinetuneSettings, recipe="small", options=options, assignments=[*TINY_FINETUNING, *assignments]
        )

    return build


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, pretrain_settings):
    """Run folder of a tiny pretraining."""
    from misfm.commands.pretrain import pretrain

    out = tmp_path_factory.mktemp("runs") / "pretrained"
    pretrain(pretrain_settings(), out)
    return out


@pytest.fixture(scope="session")
def finetuned(tmp_path_factory, finetune_settings):
    """Run folder of a tiny fine-tuning from scratch."""
    from misfm.commands.finetune import finetune

    out = tmp_path_factory.mktemp("runs") / "finetuned"
    finetune(finetune_settings("training.steps=30", "training.validate_every=30"), out)
    return out
