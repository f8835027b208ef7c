"""What stops a training, or damages what it has saved, and how it goes on: as if nothing had happened."""

import os
import shutil
import signal

import pytest
import torch
from torch import nn

from misfm import signals
from misfm.errors import DataError, MisfmError, WeightsError
from misfm.files import checksum
from misfm.signals import Interrupted
from misfm.training.checkpoint import is_sound, load_checkpoint, save_checkpoint
from misfm.training.exclusive import as_begun
from misfm.training.loop import fit
from misfm.training.optim import OptimizerSettings
from misfm.training.run import RunFolder
from misfm.training.schedules import ScheduleSettings
from misfm.training.session import Validation
from misfm.training.settings import TrainingSettings


class Toy(nn.Module):
    """Shaped like a network of misfm, with dropout."""

    def __init__(self, width=8):
        super().__init__()
        self.backbone = nn.ModuleDict({"encoder": nn.Linear(4, width), "decoder": nn.Linear(width, width)})
        self.head = nn.Linear(width, 1)

    def forward(self, x):
        hidden = nn.functional.dropout(torch.relu(self.backbone["encoder"](x)), 0.3, self.training)
        return self.head(torch.relu(self.backbone["decoder"](hidden)))


class Batches(torch.utils.data.Dataset):
    """Batch ``i`` is a function of ``i``; ``before`` is called with ``i`` when it is read."""

    def __init__(self, before=lambda index: None):
        self.before = before

    def __getitem__(self, index):
        self.before(index)
        return torch.randn(6, 4, generator=torch.Generator().manual_seed(index))


class Regression:
    """Predict the sum of the inputs."""

    def prepare(self, batch, draws):
        from misfm.batches import Batch

        return Batch(batch, batch.sum(1, keepdim=True))

    def loss(self, outputs, batch):
        return {"square": ((outputs - batch.targets) ** 2).mean()}

    def score(self, outputs, batch):
        return {}

    def after_step(self, model):
        pass


def training(**others):
    tree = {"steps": 8, "log_every": 1, "validate_every": 4, "checkpoint_every": 1, "ema": 0.5, **others}
    optimizer = OptimizerSettings(name=tree.pop("optimizer", "adamw"))
    schedule = ScheduleSettings(name="poly")
    return TrainingSettings(precision="float32", optimizer=optimizer, schedule=schedule, **tree)


def train(run, settings=None, *, before=lambda index: None, model=None, judge=None, seed=0):
    torch.manual_seed(seed)
    run.path.mkdir(exist_ok=True)
    validation = Validation(judge or judged, key="score")
    model = model or Toy()
    return fit(
        model, Regression(), Batches(before), settings or training(), run, seed=5, validation=validation
    )


def judged(model, step):
    with torch.no_grad():
        return {"score": float(model(torch.ones(1, 4)))}


def ask(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def at(step, do):
    return lambda index: do() if index == step else None


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run that nothing happens to: its weights, and its folder."""
    whole = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    return train(whole), whole


def assert_undisturbed(model, run, undisturbed):
    expected, whole = undisturbed
    for name, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    assert rows_of(run) == rows_of(whole)
    for found, wanted in ((run.last, whole.last), (run.best, whole.best)):
        ours, theirs = load_checkpoint(found), load_checkpoint(wanted)
        assert (ours.step, ours.best_score, ours.best_step) == (
            theirs.step,
            theirs.best_score,
            theirs.best_step,
        )
        assert all(torch.equal(ours.model[name], value) for name, value in theirs.model.items())


def rows_of(run):
    return [{key: row[key] for key in row if key != "samples_per_s"} for row in run.read_metrics()]


@pytest.mark.parametrize("step", [0, 3, 7])
def test_a_stop_in_any_step_stops_also_in_the_last(run, undisturbed, step):
    with pytest.raises(Interrupted, match=f"Stopped after step {step + 1}; the state is saved"):
        train(run, training(checkpoint_every=100), before=at(step, ask))
    assert_undisturbed(train(run, seed=1), run, undisturbed)


@pytest.mark.parametrize("step", [4, 8])
@pytest.mark.parametrize("late", [False, True])
def test_a_validation_is_interrupted_and_done_again_on_resuming(run, undisturbed, step, late):
    def judge(model, now):
        if now == step:
            if not late:
                ask()
                pytest.fail("went on")
            os.kill(os.getpid(), signal.SIGTERM)
        return judged(model, now)

    settings = training(checkpoint_every=100)
    with pytest.raises(Interrupted, match=f"Stopped after step {step}; the state is saved"):
        train(run, settings, judge=judge)
    assert [row["step"] for row in run.read_metrics()] == list(range(1, step))
    assert_undisturbed(train(run, settings, seed=1), run, undisturbed)


def test_a_step_that_takes_long_is_interrupted_and_repeated(run, undisturbed, monkeypatch):
    monkeypatch.setattr(signals, "PATIENCE", 0.05)

    def hang():
        ask()
        signal.pause()
        pytest.fail("went on")

    with pytest.raises(Interrupted, match="Stopped in step 4, which takes long; the last checkpoint is in"):
        train(run, before=at(3, hang))
    assert load_checkpoint(run.last).step == 3
    monkeypatch.undo()
    assert_undisturbed(train(run, seed=1), run, undisturbed)


class Killed(BaseException):
    """Stands for a process that ends here and now."""


def kill():
    raise Killed


def half_way(run):
    with pytest.raises(Killed):
        train(run, before=at(6, kill))


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(run, undisturbed, caplog):
    half_way(run)
    assert (load_checkpoint(run.last).step, load_checkpoint(run.previous).step) == (6, 5)
    damage(run.last, 1000)
    assert_undisturbed(train(run, seed=1), run, undisturbed)
    assert "last.pt is damaged: going on from the checkpoint before it." in caplog.text


def test_where_both_are_damaged_nothing_is_begun_anew_in_silence(run):
    half_way(run)
    damage(run.last, 1000)
    damage(run.previous, 1000)
    with pytest.raises(WeightsError, match=r"last\.pt is not a readable checkpoint, nor .* delete"):
        train(run)


def test_a_kill_while_a_checkpoint_is_replaced_leaves_one(run, undisturbed, monkeypatch):
    half_way(run)
    replace = os.replace

    def killed(source, target):
        if str(target) == str(run.last):
            raise Killed
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            train(run, seed=1)
    assert load_checkpoint(run.last).step == load_checkpoint(run.previous).step == 6
    assert_undisturbed(train(run, seed=1), run, undisturbed)


def test_file_systems_without_links_keep_two_as_well(run, monkeypatch):
    def link(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    half_way(run)
    assert (load_checkpoint(run.last).step, load_checkpoint(run.previous).step) == (6, 5)


def damage(path, place):
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << place % 8
    path.write_bytes(content)


def test_every_flipped_bit_of_a_checkpoint_is_noticed(run, tmp_path):
    half_way(run)
    sound, size = run.last.read_bytes(), run.last.stat().st_size
    assert is_sound(run.last)
    for place in (*range(0, size - 20, size // 300), size - 21, size - 22, size - 1):
        damage(run.last, place)
        with pytest.raises(WeightsError):
            load_checkpoint(run.last)
        run.last.write_bytes(sound)


def test_checkpoints_without_a_checksum_are_read(run, undisturbed):
    half_way(run)
    torch.save(torch.load(run.last, weights_only=True), run.last)
    assert_undisturbed(train(run, seed=1), run, undisturbed)


@pytest.mark.parametrize(
    ("model", "optimizer", "ema"),
    [
        (Toy(width=9), "adamw", 0.5),
        (nn.Linear(4, 1), "adamw", 0.5),
        (Toy(), "sgd", 0.5),
        (Toy(), "adam", 0.9),
    ],
)
def test_the_checkpoint_of_another_run_is_a_sentence(run, model, optimizer, ema):
    with pytest.raises(Killed):
        train(run, training(ema=0 if ema == 0.9 else ema), before=at(6, kill))
    with pytest.raises(WeightsError, match=r"last\.pt is the checkpoint of another network or optimiser"):
        train(run, training(optimizer=optimizer, ema=ema), model=model)


def test_a_checkpoint_of_other_shapes_in_the_optimiser_is_another(run):
    half_way(run)
    state = load_checkpoint(run.last)
    state.optimizer["state"][0]["exp_avg"] = torch.zeros(3)
    save_checkpoint(run.last, state)
    with pytest.raises(WeightsError, match="another network or optimiser"):
        train(run)


@pytest.mark.parametrize("place", [3, 40, -1])
def test_damaged_rows_of_the_log_are_a_sentence(run, place):
    half_way(run)
    damage(run.metrics, place)
    with pytest.raises(DataError, match=r"metrics\.jsonl is damaged .*put it back as it was, or delete it"):
        train(run)


def test_a_log_that_was_deleted_is_begun_again(run):
    half_way(run)
    run.metrics.unlink()
    train(run)
    assert [row["step"] for row in run.read_metrics()] == [7, 8]


def test_the_log_of_a_finished_run_has_a_checksum(run):
    train(run)
    text = run.metrics.read_text()
    run.metrics.write_text(text.replace('"step": 2', '"step": 3'))
    with pytest.raises(DataError, match=r"metrics\.jsonl is not as misfm wrote it"):
        run.read_metrics()


@pytest.mark.parametrize("step", [2, 7])
def test_a_folder_that_goes_away_is_a_sentence(run, step):
    with pytest.raises(DataError, match="was removed or moved while the run went on"):
        train(run, before=at(step, lambda: shutil.rmtree(run.path)))


def test_a_batch_that_cannot_be_read_is_told_in_its_own_words(run):
    def refuse(index):
        raise DataError(f"batch {index} is damaged.")

    with pytest.raises(DataError) as told:
        train(run, training(num_workers=1), before=refuse)
    assert str(told.value) == "batch 0 is damaged."


@pytest.mark.parametrize("step", [0, 3])
def test_a_killed_worker_is_a_sentence(run, step):
    main = os.getpid()

    def die(index):
        if index == step and os.getpid() != main:
            ask(signal.SIGKILL)

    with pytest.raises(
        MisfmError, match="A process that read batches was killed, most likely for want of mem"
    ):
        train(run, training(num_workers=1), before=die)


def test_workers_leave_signals_to_the_training(run, undisturbed):
    main = os.getpid()

    def ask_all(index):
        if os.getpid() != main:
            for number in signals.ASKING:
                ask(number)
            if index == 3:
                os.kill(main, signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(run, training(num_workers=2), before=ask_all)
    assert_undisturbed(train(run, training(num_workers=2), seed=1), run, undisturbed)


def test_a_run_goes_on_with_the_threads_it_began_with(run, caplog):
    caplog.set_level("INFO", logger="misfm")
    before = torch.get_num_threads()
    other = 2 if before == 1 else 1
    run.begin(TrainingSettings(steps=1), resume=False)
    torch.set_num_threads(other)
    try:
        with as_begun(run):
            assert torch.get_num_threads() == before
            run.begin(TrainingSettings(steps=1), resume=True)
        assert torch.get_num_threads() == other
        assert f"going on with {before} threads, as the run began, instead of {other}" in caplog.text
        assert run.conditions()["threads"] == before
    finally:
        torch.set_num_threads(before)


def test_another_device_is_a_warning(run, caplog, monkeypatch):
    run.begin(TrainingSettings(steps=1), resume=False)
    monkeypatch.setattr("misfm.training.exclusive.present_device", lambda: "abacus")
    with as_begun(run):
        pass
    assert "and goes on on abacus: its numbers will differ in their last digits" in caplog.text


def test_the_checksum_of_parts_is_that_of_the_whole():
    assert checksum(b"second", checksum(b"first")) == checksum(b"firstsecond")
