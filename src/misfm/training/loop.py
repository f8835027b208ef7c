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
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from misfm import world
from misfm.batches import BatchShares, Share, with_images_on
from misfm.seeding import Draws, derive_seed
from misfm.signals import Interrupted, deferred, interruptible, requested, uninterrupted
from misfm.terminal import logger
from misfm.training.batch_stream import batch_stream
from misfm.training.checkpoint import save_checkpoint
from misfm.training.engine import fabric_for
from misfm.training.fast import computed
from misfm.training.logging import SPEED, MetricsLog, NoLog
from misfm.training.optim import set_learning_rate
from misfm.training.precision import exact_convolutions, judging
from misfm.training.run import RunFolder
from misfm.training.session import Objective, Session, Validation, begin_session, checkpoint_of
from misfm.training.settings import TrainingSettings


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
    return world.together(_fit, model, objective, batches, settings, run, seed=seed, validation=validation)


def _fit(
    model: nn.Module,
    objective: Objective,
    batches: Dataset[Any],
    settings: TrainingSettings,
    run: RunFolder,
    *,
    seed: int,
    validation: Validation | None,
) -> nn.Module:
    """Do a rank's part of :func:`fit`; ranks but the leader have copies of what it was given."""
    session = begin_session(model, objective, settings, run, seed)
    state = session.state
    session.cooldown = round(settings.steps * (validation.cooldown if validation else 0))
    with (
        open_log(session, run) as log,
        deferred(),
        batch_stream(own_share(batches), state.step * settings.accumulate, settings) as stream,
        computed(session.model.module, settings),
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
    session.put_together()
    return model.cpu().eval()


def own_share(batches: Any) -> Dataset[Any]:
    """Return this rank's share of each batch.

    Raises:
        ConfigError: batches that cannot be shared out evenly.
    """
    return BatchShares(batches, Share(world.rank(), world.size())) if world.is_entered() else batches


def open_log(session: Session, run: RunFolder) -> NoLog:
    """Open the log of the run, which the leader alone writes."""
    state = session.state
    if not world.is_leader():
        return NoLog()
    return MetricsLog(run, session.settings.steps, state.logged, state.metrics)


def train(
    session: Session,
    stream: Iterator[Any],
    run: RunFolder,
    log: NoLog,
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
            samples = report.pop("samples") * (state.step - first)
            report[SPEED] = samples / (time.perf_counter() - began)
            if validation is not None and validated:
                judge(session, report, validation, run, log)
            else:
                log.write(state.step, report)
            check_patience(session, validation)
            began, first = time.perf_counter(), state.step
        if (stopping := world.anywhere(requested())) or due:
            session.check_finite(state.step)
            save(session, run, log)
        if stopping:
            raise stopped_after(session, run)


def stopped_after(session: Session, run: RunFolder) -> Interrupted:
    """Say where a run was stopped that has saved its state."""
    return Interrupted(f"Stopped after step {session.state.step}; the state is saved in {run.path}")


def save(session: Session, run: RunFolder, log: NoLog) -> None:
    """Save the state to resume from."""
    with uninterrupted():
        log.sync()
        session.state.metrics = log.checksum
        step, is_new = session.state.step, session.saved not in (None, session.state.step)
        checkpoint = checkpoint_of(session)
        if world.is_leader():
            save_checkpoint(run.last, checkpoint, run.previous if is_new else None)
        session.saved = step


def judge(
    session: Session, report: dict[str, float], validation: Validation, run: RunFolder, log: NoLog
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
    draws = (world.rank(),) if world.rank() else ()
    torch.manual_seed(derive_seed(seed, "network", step, *draws))  # dropout and drop path
    report: dict[str, float] = {}
    loss = torch.zeros(())
    for part in range(settings.accumulate):
        is_last = part == settings.accumulate - 1
        raw = with_images_on(next(stream), session.fabric.device)
        batch = session.objective.prepare(raw, Draws((seed, "prepare", step, part)))
        is_alone = world.is_entered() and (session.is_first or not is_last)
        with session.backward_alone() if is_alone else nullcontext():
            with exact_convolutions(session.fabric.device):
                outputs = session.model(batch.inputs, *batch.context)
            terms = session.objective.loss(outputs, batch)
            share = torch.stack(list(terms.values())).sum() / settings.accumulate
            session.fabric.backward(share)
        loss = loss.to(share.device) + share.detach()
        if read and is_last:
            report = {"loss": loss.item(), **{name: term.item() for name, term in terms.items()}}
            report.update(session.objective.score(outputs, batch))
            report["samples"] = len(batch.inputs) * world.size() * settings.accumulate
    if session.is_first:
        session.end_first_step()
        session.is_first = False
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
    norm: Any = session.fabric.clip_gradients(
        session.model, session.optimizer, max_norm=limit, error_if_nonfinite=False
    )
    if norm is not None and session.whole is not None:
        norm = norm.full_tensor()
    return lambda: float(norm) if norm is not None else math.nan


def validate(session: Session, validation: Validation, run: RunFolder) -> Mapping[str, float]:
    """Judge the model, with averaged weights if there are any, and keep it if it is the best so far."""
    session.model.eval()

    def judged() -> Mapping[str, float]:
        with judging(session.fabric.device), interruptible():
            return validation.run(model, session.state.step)

    averaged = session.average.applied() if session.average is not None else nullcontext()
    with averaged, world.holding(model := session.put_together(), *validation.held):
        numbers = world.led(judged)
        score, best = numbers[validation.key], session.state.best_score
        is_better = best is None or (score < best if validation.lower_is_better else score > best)
        if is_better and not math.isnan(score):
            session.state.best_score, session.state.best_step = score, session.state.step
            kept = replace(checkpoint_of(session), average={}, metrics=None)
            if world.is_leader():
                save_checkpoint(run.best, kept)
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


def is_due(step: int, every: int, steps: int) -> bool:
    """Whether something done every ``every`` steps and at the end is done after ``step`` steps."""
    return step % every == 0 or step == steps


def best_device() -> torch.device:
    """Return the device that training would choose for this process."""
    return fabric_for("32-true").device
