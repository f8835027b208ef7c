"""The training loop on a toy network: what resumes, what stops it, what it logs, which state is the best."""

import json
import math
import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from misfm.batches import Batch
from misfm.errors import MisfmError
from misfm.seeding import generator_for
from misfm.signals import ENDING, Interrupted
from misfm.training import loop
from misfm.training.checkpoint import load_checkpoint
from misfm.training.loop import fit
from misfm.training.optim import OptimizerSettings
from misfm.training.run import RunFolder
from misfm.training.schedules import ScheduleSettings
from misfm.training.session import Validation
from misfm.training.settings import TrainingSettings

OPTIMIZER = {"name": "adamw", "lr": 0.05, "weight_decay": 0.01, "clip_norm": 1.0}


def training(steps=10, schedule="poly", optimizer=(), **others):
    return TrainingSettings(
        steps=steps,
        **{"log_every": 1, "validate_every": 4, "checkpoint_every": 3, "precision": "float32", **others},
        optimizer=OptimizerSettings(**{**OPTIMIZER, **dict(optimizer)}),
        schedule=ScheduleSettings(name=schedule),
    )


class Toy(nn.Module):
    """Shaped like a network of misfm: backbone with encoder and decoder, and a head; with dropout."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"encoder": nn.Linear(4, 8), "decoder": nn.Linear(8, 8)})
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        hidden = nn.functional.dropout(torch.relu(self.backbone["encoder"](x)), 0.3, self.training)
        return self.head(torch.relu(self.backbone["decoder"](hidden)))


def toy(seed=0):
    torch.manual_seed(seed)
    return Toy()


class Batches(Dataset):
    """Batch ``i`` is a function of ``i``; ``before`` is called with ``i`` when it is read."""

    def __init__(self, before=lambda index: None):
        self.before = before

    def __getitem__(self, index):
        self.before(index)
        return torch.randn(6, 4, generator=generator_for("toy", index))


class Regression:
    """Predict the sum of the inputs, which are made noisy at random."""

    def prepare(self, batch, draws):
        return Batch(
            batch + 0.1 * torch.randn(batch.shape, generator=draws.of_batch()), batch.sum(1, keepdim=True)
        )

    def loss(self, outputs, batch):
        error = outputs - batch.targets
        return {"square": (error**2).mean(), "absolute": 0.1 * error.abs().mean()}

    def score(self, outputs, batch):
        return {"sign": float((outputs.sign() == batch.targets.sign()).float().mean())}

    def after_step(self, model):
        pass


class Killed(BaseException):
    """Stands for a process that ends here and now."""


def kill_at(index):
    def before(now):
        if now == index:
            raise Killed

    return before


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


@pytest.fixture
def other_run(tmp_path):
    (tmp_path / "other").mkdir()
    return RunFolder(tmp_path / "other")


def train(run, settings, *, before=lambda index: None, seed=5, model=None, validation=None):
    return fit(model or toy(), Regression(), Batches(before), settings, run, seed=seed, validation=validation)


def logged(run):
    return [
        {key: value for key, value in row.items() if key != "samples_per_s"} for row in run.read_metrics()
    ]


def same(first, second):
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


@pytest.mark.skipif(torch.cuda.is_available(), reason="of CPUs")
def test_bfloat16_is_left_where_a_volume_is_no_larger_than_the_kernel(run):
    class Convolving(Toy):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = (nn.Conv3d(1, 1, 3, padding=1) for _ in range(2))
            self.seen = set()

        def forward(self, x):
            volumes = x[:, :1, None, None, None].expand(-1, 1, 4, 4, 4)
            wide, narrow = self.wide(volumes), self.narrow(volumes[:, :, :2])
            self.seen.add((wide.dtype, narrow.dtype))
            return super().forward(x) + wide.mean() + narrow.mean()

    model = Convolving()
    train(run, training(precision="bfloat16"), model=model)
    assert model.seen == {(torch.bfloat16, torch.float32)}


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("last_step", [1, 3, 7])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_run_killed_anywhere_ends_where_the_whole_one_does(
    run, other_run, optimizer, accumulate, last_step, ema
):
    settings = training(schedule="sawtooth", optimizer={"name": optimizer}, accumulate=accumulate, ema=ema)
    whole = train(run, settings)
    with pytest.raises(Killed):
        train(other_run, settings, before=kill_at(last_step * accumulate))
    # Another process would begin with other weights of its own and another state of the global generator.
    resumed = train(other_run, settings, model=toy(seed=1 if last_step >= 3 else 0))
    assert same(whole, resumed)
    assert logged(run) == logged(other_run)
    assert [row["step"] for row in logged(run)] == list(range(1, 11))


def test_a_finished_run_resumes_to_itself(run):
    settings = training()
    first, rows = train(run, settings), run.read_metrics()
    again = train(run, settings, model=toy(seed=1), before=kill_at(0))
    assert same(first, again)
    assert run.read_metrics() == rows


def test_averaged_weights_are_judged_and_kept_while_the_last_ones_train_on(run, other_run):
    judged = []

    def judge(model, step):
        judged.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"score": step}

    plain = train(other_run, training(6, validate_every=6, checkpoint_every=1))
    expected = {name: value.clone() for name, value in toy().state_dict().items()}

    class Watched(Regression):
        """Averages by hand, with the formula, one tensor at a time."""

        steps = 0

        def after_step(self, model):
            decay = min(0.5, (1 + self.steps) / (10 + self.steps))
            for name, value in model.state_dict().items():
                expected[name] = decay * expected[name] + (1 - decay) * value
            self.steps += 1

    settings = training(6, validate_every=3, checkpoint_every=1, ema=0.5)
    validation = Validation(judge, key="score")
    kept = fit(toy(), Watched(), Batches(), settings, run, seed=5, validation=validation)
    for name, value in kept.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-6)
        assert torch.equal(value, judged[-1][name])
        assert torch.equal(value, load_checkpoint(run.best).model[name])
        assert torch.equal(load_checkpoint(run.last).model[name], plain.state_dict()[name])
        assert torch.equal(load_checkpoint(run.last).average[name], value)
    assert not same(kept, plain)


def test_reading_ahead_in_processes_changes_nothing(run, other_run):
    assert same(train(run, training(4)), train(other_run, training(4, num_workers=2)))
    assert logged(run) == logged(other_run)


def test_the_seed_decides_the_run(run, other_run):
    assert not same(train(run, training(2)), train(other_run, training(2), seed=6))


def test_accumulated_batches_count_like_one_large_batch(run, other_run):
    class Exact(Regression):
        def prepare(self, batch, draws):
            return Batch(batch, batch.sum(1, keepdim=True))

    class Pairs(Dataset):
        def __getitem__(self, index):
            single = Batches()
            return torch.cat([single[2 * index], single[2 * index + 1]])

    models = [toy().eval(), toy().eval()]  # without dropout
    fit(models[0], Exact(), Batches(), training(3, accumulate=2), run, seed=0)
    fit(models[1], Exact(), Pairs(), training(3), other_run, seed=0)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_frozen_encoder_stays_bit_for_bit_what_it_was(run):
    # A warm-up of 20 steps: the sawtooth freezes the encoder in all of the first 20, then lets it go.
    settings = training(steps=400, schedule="sawtooth", log_every=100)
    before = toy().state_dict()
    with pytest.raises(Killed):
        train(run, training(400, "sawtooth", checkpoint_every=20), before=kill_at(20))
    frozen = load_checkpoint(run.last)
    assert frozen.step == 20
    for name, value in frozen.model.items():
        assert torch.equal(value, before[name]) == name.startswith("backbone.encoder"), name
    with pytest.raises(Killed):
        train(run, settings, before=kill_at(25))
    assert not torch.equal(
        load_checkpoint(run.last).model["backbone.encoder.weight"], before["backbone.encoder.weight"]
    )


@pytest.mark.parametrize("number", ENDING)
def test_a_request_to_stop_saves_and_says_how_to_go_on(run, other_run, number):
    settings = training(checkpoint_every=1000)
    whole = train(run, settings)
    handler = signal.getsignal(number)

    def ask(index):
        if index == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=r"Stopped after step 5; the state is saved in"):
        train(other_run, settings, before=ask)
    assert signal.getsignal(number) is handler
    assert load_checkpoint(other_run.last).step == 5
    assert same(whole, train(other_run, settings, model=toy(seed=1)))
    assert logged(run) == logged(other_run)


def test_in_a_program_that_uses_misfm_other_signals_are_its_own(run):
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        train(run, training(), before=lambda index: index == 4 and os.kill(os.getpid(), signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1]


def test_a_kill_after_a_validation_that_was_done_again_loses_nothing(run, other_run, monkeypatch):
    settings = training(validate_every=4)
    judged = Validation(lambda model, step: {"score": float(step)}, key="score")
    whole = fit(toy(), Regression(), Batches(), settings, run, seed=0, validation=judged)

    def interrupted(model, step):
        if step == 8:
            raise Interrupted
        return {"score": float(step)}

    stopped = Validation(interrupted, key="score")
    with pytest.raises(Interrupted):
        fit(toy(), Regression(), Batches(), settings, other_run, seed=0, validation=stopped)

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save", killed)  # right after the row was logged
        with pytest.raises(Killed):
            fit(toy(), Regression(), Batches(), settings, other_run, seed=0, validation=judged)
    again = fit(toy(), Regression(), Batches(), settings, other_run, seed=0, validation=judged)
    assert same(whole, again)
    assert logged(run) == logged(other_run)


def test_a_loss_that_is_not_finite_stops_with_advice(run):
    class Broken(Regression):
        def loss(self, outputs, batch):
            return {"square": outputs.mean() * math.nan}

    with pytest.raises(MisfmError, match=r"Loss nan .* at step 1: start again with a lower"):
        fit(toy(), Broken(), Batches(), training(), run, seed=0)


def test_gradients_are_clipped_to_their_limit(run):
    settings = training(
        1, optimizer={"name": "sgd", "lr": 1.0, "clip_norm": 0.5, "weight_decay": 0.0, "momentum": 0.1}
    )
    model = toy()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(run, settings, model=model)
    (row,) = run.read_metrics()
    assert row["gradient_norm"] > 0.5
    after = [parameter.detach() for parameter in model.parameters()]
    moved = sum(float(((a - b) ** 2).sum()) for a, b in zip(before, after, strict=True)) ** 0.5
    assert moved == pytest.approx(0.5 * 1.1, rel=1e-3)  # Nesterov's first step is 1 + momentum gradients


def test_the_log_has_the_sum_its_terms_rate_and_speed(run):
    train(run, training(4, log_every=2, validate_every=100))
    rows = run.read_metrics()
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        assert row["loss"] == pytest.approx(row["square"] + row["absolute"], rel=1e-5)
        assert row["samples_per_s"] > 0
        assert {"sign", "gradient_norm"} <= row.keys()
    # The rate of the step just taken: steps 1 and 3 of 4, counted from 0.
    assert [row["lr"] for row in rows] == pytest.approx([0.05 * 0.75**0.9, 0.05 * 0.25**0.9], abs=1e-6)


def test_the_best_state_is_kept_beside_the_last(run):
    scores = iter([math.nan, 0.3, 0.9, 0.5])
    modes = []

    def judge(model, step):
        modes.append((model.training, torch.is_inference_mode_enabled()))
        return {"score": next(scores)}

    model = train(run, training(8, validate_every=2), validation=Validation(judge, key="score"))
    assert modes == [(False, True)] * 4
    assert not model.training
    best, last = load_checkpoint(run.best), load_checkpoint(run.last)
    assert (best.step, last.step) == (6, 8)
    assert (last.best_score, last.best_step) == (0.9, 6)
    assert [row["score"] for row in run.read_metrics() if "score" in row] == [None, 0.3, 0.9, 0.5]
    row = json.loads(run.metrics.read_text().splitlines()[1])
    assert (row["step"], row["score"]) == (2, None)
    assert "loss" in row


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"accumulate": 0}, {"precision": "float8"}, {"epochs": 3}])
def test_settings_out_of_range_are_refused(wrong):
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        TrainingSettings(**{"steps": 1, **wrong})


def flat(after, *, lower_is_better=False, patience=2, cooldown=0.3):
    """A validation that is better with every step until ``after``, and then no more."""
    sign = -1 if lower_is_better else 1
    return Validation(
        lambda model, step: {"score": sign * min(step, after)},
        key="score",
        lower_is_better=lower_is_better,
        patience=patience,
        cooldown=cooldown,
    )


@pytest.mark.parametrize("lower_is_better", [False, True])
def test_without_patience_the_rate_falls_to_zero_before_the_run_ends(run, lower_is_better):
    settings = training(20, validate_every=2, log_every=3)
    train(run, settings, validation=flat(4, lower_is_better=lower_is_better))
    rows = run.read_metrics()
    # Best after step 4, two validations without a better one, and a cooldown of 0.3 * 20 steps from there.
    last = load_checkpoint(run.last)
    assert (last.step, last.best_step, last.cooldown_from) == (14, 4, 8)
    assert [row["step"] for row in rows if "score" in row] == [2, 4, 6, 8, 10, 12, 14]
    rates = {row["step"]: row["lr"] for row in rows}
    reached = 0.05 * (1 - 8 / 20) ** 0.9
    assert rates[8] == pytest.approx(0.05 * (1 - 7 / 20) ** 0.9, rel=1e-4)
    assert [rates[step] for step in (9, 10, 14)] == pytest.approx(
        [reached, reached * 5 / 6, reached / 6], rel=1e-4
    )


def test_a_cooldown_that_ends_off_the_rhythm_is_judged_and_logged_all_the_same(run, caplog):
    caplog.set_level("INFO", logger="misfm")
    train(run, training(20, validate_every=4, log_every=100), validation=flat(4, patience=1, cooldown=0.25))
    assert [row["step"] for row in run.read_metrics()] == [4, 8, 12, 13]
    assert "no better score in 1 validations: training ends after step 13" in caplog.text
    assert "step 12/13 " in caplog.text


def test_patience_that_runs_out_shortly_before_the_end_changes_nothing(run, other_run):
    train(run, training(12, validate_every=2), validation=flat(6, cooldown=0.2))
    train(other_run, training(12, validate_every=2), validation=flat(6, patience=None))
    assert logged(run) == logged(other_run)
    assert load_checkpoint(run.last).cooldown_from is None


def test_without_a_cooldown_patience_ends_the_run_at_once(run):
    train(run, training(20, validate_every=2), validation=flat(4, cooldown=0.0))
    assert load_checkpoint(run.last).step == 8


@pytest.mark.parametrize("last_step", range(5, 14))
def test_a_cooldown_that_is_killed_anywhere_ends_where_the_whole_one_does(run, other_run, last_step):
    settings = training(20, validate_every=2, checkpoint_every=3, ema=0.9)
    whole = train(run, settings, validation=flat(4))
    with pytest.raises(Killed):
        train(other_run, settings, before=kill_at(last_step), validation=flat(4))
    resumed = train(other_run, settings, model=toy(seed=1), validation=flat(4))
    assert same(whole, resumed)
    assert logged(run) == logged(other_run)
    again = train(other_run, settings, model=toy(seed=2), before=kill_at(0), validation=flat(4))
    assert same(whole, again)


def test_checkpoints_from_before_there_was_a_cooldown_are_read(run):
    whole = train(run, training(20, validate_every=2), validation=flat(4))
    state = torch.load(run.last, weights_only=True)
    del state["cooldown_from"]
    torch.save(state, run.last)
    assert load_checkpoint(run.last).cooldown_from is None
    assert whole is not None
