"""The only training loop: pretraining and fine-tuning differ in their objective, not in how they are run.

Batch ``i`` is a pure function of the run's seed and ``i``, and so is every other draw; a run killed at any
moment and resumed from its last checkpoint therefore repeats the uninterrupted one bit for bit (on one device
and thread count). A run whose patience runs out goes into a cooldown, whose start is in the checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from misfm.batches import Batch, with_images_on
from misfm.errors import MisfmError, WeightsError
from misfm.seeding import Draws, derive_seed
from misfm.signals import Interrupted, deferred, interruptible, requested, uninterrupted
from misfm.terminal import logger
from misfm.training.batch_stream import batch_stream
from misfm.training.checkpoint import Checkpoint, load_latest, restore, save_checkpoint
from misfm.training.ema import WeightAverage
from misfm.training.fast import computed, is_fused, made_ready, may_overflow, restore_scale
from misfm.training.logging import SPEED, MetricsLog
from misfm.training.memory import keep_freed_memory
from misfm.training.optim import build_optimizer, set_learning_rate
from misfm.training.precision import exact_convolutions, fabric_precision
from misfm.training.run import RunFolder
from misfm.training.schedules import LearningRateScale, cooled, learning_rate_scale
from misfm.training.settings import TrainingSettings

COOLDOWN = 0.1
"""Share of the steps within which the rate falls to zero once patience has run out."""


class Objective(Protocol):
    """What is trained for: turns raw patches into inputs and targets, and scores outputs.

    All ranks of a world call each of these together, with equal shares of a batch that follow each other.
    """

    def prepare(self, batch: Any, draws: Draws) -> Batch:
        """Return inputs and targets of this rank's samples, on the device the batch is on."""
        ...

    def loss(self, outputs: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Named terms of the whole batch, from this rank's outputs; their sum is minimised."""
        ...

    def score(self, outputs: Any, batch: Batch) -> Mapping[str, float]:
        """Numbers a person can read, of the whole batch."""
        ...

    def after_step(self, model: nn.Module) -> None:
        """Do what follows an optimiser step."""
        ...


@dataclass(frozen=True)
class Validation:
    """How to judge the model during training.

    Attributes:
        run: called with the model in eval mode and the steps taken; returns numbers to log.
        key: the one of them that tells the best checkpoint.
        lower_is_better: of that number.
        patience: validations without a better one after which training ends; None trains all steps.
        cooldown: share of all steps within which the rate falls to zero before that; 0 ends at once.
    """

    run: Callable[[nn.Module, int], Mapping[str, float]]
    key: str
    lower_is_better: bool = False
    patience: int | None = None
    cooldown: float = COOLDOWN


@dataclass
class Session:
    """One process's share of a run: what :func:`fit` hands to its steps.

    Attributes:
        fabric: device and precision.
        model: as set up by Fabric.
        optimizer: likewise.
        objective: what is trained for.
        settings: of the training.
        seed: of the run.
        state: the checkpoint as of now, without tensors that are looked up when it is saved.
        average: of the weights, or None where the last ones are kept.
        cooldown: steps that are still taken once patience has run out.
        saved: step of the last checkpoint; None where there is none, or it is damaged.
        loss: of the last step; reading it waits for the device.
        norm: reads the norm of its gradient.
    """

    fabric: Fabric
    model: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    settings: TrainingSettings
    seed: int
    state: Checkpoint
    average: WeightAverage | None = None
    cooldown: int = 0
    saved: int | None = None
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))
    norm: Callable[[], float] = lambda: 0.0

    @property
    def end(self) -> int:
        """Steps after which training ends, as far as is known by now."""
        began = self.state.cooldown_from
        return self.settings.steps if began is None else began + self.cooldown

    def scale(self, step: int) -> LearningRateScale:
        """Factors on the learning rate at a step."""
        began, schedule = self.state.cooldown_from, self.settings.schedule
        if began is None:
            return learning_rate_scale(step, self.settings.steps, schedule)
        reached = learning_rate_scale(began, self.settings.steps, schedule)
        return cooled(reached, step - began, self.cooldown)

    def check_finite(self, step: int) -> None:
        """Look at loss and gradient of the last step, ``step``.

        Raises:
            MisfmError: they are not finite.
        """
        loss, norm = self.loss.item(), self.norm()
        if not (math.isfinite(loss) and (math.isfinite(norm) or may_overflow(self.fabric))):
            raise MisfmError(
                f"Loss {loss:g} with gradient {norm:g} at step {step}: start again with a lower "
                "training.optimizer.lr, or with training.precision float32."
            )


def fit(
    model: nn.Module,
    objective: Objective,
    batches: Dataset[Any],
    settings: TrainingSettings,
    run: RunFolder,
    *,
    seed: int,
    validation: Validation | None = None,
) -> nn.Module:
    """Train ``model`` from the run's last checkpoint, or from its present weights where there is none.

    Args:
        model: trained in place.
        objective: see :class:`Objective`.
        batches: ``batches[i]`` is raw batch ``i``, a (nested) tuple of tensors.
        settings: steps, optimiser, schedule, precision, and how often to log, validate and save.
        run: the folder for metrics and checkpoints.
        seed: of the run.
        validation: judged every ``validate_every`` steps and after the last.

    Returns:
        The trained model on the CPU, in eval mode, with averaged weights if ``settings.ema`` is on.

    Raises:
        Interrupted: a stop was requested (:mod:`misfm.signals`); says what is saved.
        WeightsError: the last checkpoint is damaged, as is the one before it, or is of another run.
        MisfmError: the loss is not finite.
    """
    session = begin_session(model, objective, settings, run, seed)
    state = session.state
    session.cooldown = round(settings.steps * (validation.cooldown if validation else 0))
    with (
        MetricsLog(run, settings.steps, state.logged, state.metrics) as log,
        deferred(),
        batch_stream(batches, state.step * settings.accumulate, settings) as stream,
        computed(model, settings),
    ):
        try:
            train(session, stream, run, log, validation)
        except Interrupted as stopped:
            if str(stopped):
                raise
            raise Interrupted(
                f"Stopped in step {state.step + 1}, which takes long; the last checkpoint is in {run.path}"
            ) from None
        if requested():
            raise stopped_after(session, run)
    if validation is not None and state.best_step is not None:
        logger.info("best %s %.4g after step %d", validation.key, state.best_score, state.best_step)
    if session.average is not None:
        session.average.swap()
    return model.cpu().eval()


def train(
    session: Session,
    stream: Iterator[Any],
    run: RunFolder,
    log: MetricsLog,
    validation: Validation | None,
) -> None:
    """Take all steps that are left; arguments as in :func:`fit`.

    Raises:
        Interrupted: a stop was requested; what is saved is said, but for a step that was interrupted.
    """
    state, settings = session.state, session.settings
    began, first = time.perf_counter(), state.step
    if state.unjudged is not None and validation is not None:
        judge(session, state.unjudged, validation, run, log)
        save(session, run, log)
    check_patience(session, validation)
    while state.step < (end := session.end):
        log.steps = end
        validated = validation is not None and is_due(state.step + 1, settings.validate_every, end)
        due = validated or is_due(state.step + 1, settings.checkpoint_every, end)
        logged = validated or is_due(state.step + 1, settings.log_every, end)
        report = train_step(session, stream, read=logged or due)
        state.step += 1
        if logged:
            samples = report.pop("batch_size") * settings.accumulate * (state.step - first)
            report[SPEED] = samples / (time.perf_counter() - began)
            if validation is not None and validated:
                judge(session, report, validation, run, log)
            else:
                log.write(state.step, report)
            check_patience(session, validation)
            began, first = time.perf_counter(), state.step
        if (stopping := requested()) or due:
            session.check_finite(state.step)
            save(session, run, log)
        if stopping:
            raise stopped_after(session, run)


def stopped_after(session: Session, run: RunFolder) -> Interrupted:
    """Say where a run was stopped that has saved its state."""
    return Interrupted(f"Stopped after step {session.state.step}; the state is saved in {run.path}")


def save(session: Session, run: RunFolder, log: MetricsLog) -> None:
    """Save the state to resume from."""
    with uninterrupted():
        log.sync()
        session.state.metrics = log.checksum
        step, is_new = session.state.step, session.saved not in (None, session.state.step)
        save_checkpoint(run.last, checkpoint_of(session), run.previous if is_new else None)
        session.saved = step


def judge(
    session: Session, report: dict[str, float], validation: Validation, run: RunFolder, log: MetricsLog
) -> None:
    """Validate, and log the numbers with those of the step.

    Raises:
        Interrupted: a stop was requested; the state is saved as one whose validation is to be done.
    """
    with uninterrupted():
        session.state.unjudged = None
        try:
            numbers = validate(session, validation, run)
        except Interrupted:
            session.state.unjudged = report
            save(session, run, log)
            raise stopped_after(session, run) from None
        log.write(session.state.step, {**report, **numbers})


def begin_session(
    model: nn.Module, objective: Objective, settings: TrainingSettings, run: RunFolder, seed: int
) -> Session:
    """Choose device and precision, and restore the last checkpoint if there is one."""
    keep_freed_memory()
    fabric = Fabric(accelerator="auto", devices=1, precision=fabric_precision(settings.precision))
    optimizer = build_optimizer(made_ready(model, settings), settings.optimizer, fused=is_fused(fabric))
    state = Checkpoint(
        step=0, model={}, optimizer={}, best_score=None, best_step=None, run=run.settings_checksum()
    )
    wrapped, optimizer = fabric.setup(model.train(), optimizer)
    average = WeightAverage(model, settings.ema) if settings.ema else None
    if (found := load_latest(run.last, run.previous)) is not None:
        state, path = found
        own = run.settings_checksum()
        if None not in (own, state.run) and own != state.run:
            raise WeightsError(
                f"{path} was saved by a run with other settings than {run.config} tells: put back its own, "
                f"or delete {path.parent} to start the run again."
            )
        restore(state, path, model, optimizer, average)
        restore_scale(fabric, state.scaler)
        logger.info("resuming after step %d", state.step)
    session = Session(fabric, wrapped, optimizer, objective, settings, seed, state, average)
    session.saved = state.step if found is not None and found[1] == run.last else None
    return session


def train_step(session: Session, stream: Iterator[Any], *, read: bool) -> dict[str, float]:
    """Take one optimiser step, and the weights after it into their average.

    Returns:
        What to log, or nothing unless ``read``: reading a number waits for the device.

    Raises:
        MisfmError: the loss or the gradient was read and is not finite; the step is not taken.
    """
    settings, seed, step = session.settings, session.seed, session.state.step
    scale = session.scale(step)
    set_learning_rate(session.optimizer, settings.optimizer.lr, scale)
    torch.manual_seed(derive_seed(seed, "network", step))  # dropout and drop path
    report: dict[str, float] = {}
    loss = torch.zeros(())
    for part in range(settings.accumulate):
        raw = with_images_on(next(stream), session.fabric.device)
        batch = session.objective.prepare(raw, Draws((seed, "prepare", step, part)))
        with exact_convolutions(session.fabric.device):
            outputs = session.model(batch.inputs, *batch.context)
        terms = session.objective.loss(outputs, batch)
        share = torch.stack(list(terms.values())).sum() / settings.accumulate
        session.fabric.backward(share)
        loss = loss.to(share.device) + share.detach()
        if read and part == settings.accumulate - 1:
            report = {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}}
            report.update(session.objective.score(outputs, batch), batch_size=len(batch.inputs))
    session.loss, session.norm = loss, clip_gradients(session)
    if read:
        session.check_finite(step + 1)
        report.update(lr=settings.optimizer.lr * scale.decoder, gradient_norm=session.norm())
    session.optimizer.step()
    session.optimizer.zero_grad()
    session.objective.after_step(session.model)
    if session.average is not None:
        session.average.update(step)
    return report


def clip_gradients(session: Session) -> Callable[[], float]:
    """Clip the norm of all gradients; return a way to read the norm as it was before."""
    limit = session.settings.optimizer.clip_norm or math.inf
    norm = session.fabric.clip_gradients(
        session.model, session.optimizer, max_norm=limit, error_if_nonfinite=False
    )
    return lambda: float(norm) if norm is not None else math.nan


def validate(session: Session, validation: Validation, run: RunFolder) -> Mapping[str, float]:
    """Judge the model, with averaged weights if there are any, and keep it if it is the best so far."""
    session.model.eval()
    with session.average.applied() if session.average is not None else nullcontext():
        with torch.inference_mode(), exact_convolutions(session.fabric.device), interruptible():
            numbers = validation.run(session.model, session.state.step)
        score, best = numbers[validation.key], session.state.best_score
        is_better = best is None or (score < best if validation.lower_is_better else score > best)
        if is_better and not math.isnan(score):
            session.state.best_score, session.state.best_step = score, session.state.step
            save_checkpoint(run.best, replace(checkpoint_of(session), average={}, metrics=None))
    session.model.train()
    return numbers


def check_patience(session: Session, validation: Validation | None) -> None:
    """Begin the cooldown if the best validation is long ago, and not all steps are sooner taken than that."""
    state, settings = session.state, session.settings
    if validation is None or validation.patience is None or state.best_step is None:
        return
    if state.cooldown_from is not None or state.step % settings.validate_every:
        return
    without = (state.step - state.best_step) // settings.validate_every
    if without >= validation.patience and state.step + session.cooldown < settings.steps:
        state.cooldown_from = state.step
        logger.info(
            "no better %s in %d validations: training ends after step %d, its rate falling to zero",
            *(validation.key, without, session.end),
        )


def checkpoint_of(session: Session) -> Checkpoint:
    """Return the present state of the run."""
    return replace(
        session.state,
        model=session.model.state_dict(),
        optimizer=session.optimizer.state_dict(),
        scaler=session.fabric.strategy.precision.state_dict(),
        average=session.average.values if session.average is not None else {},
    )


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether something done every ``every`` steps and at the end is done after ``step`` steps."""
    return step % every == 0 or step == steps


def best_device() -> torch.device:
    """Return the device that training would choose."""
    return Fabric(accelerator="auto", devices=1).device
