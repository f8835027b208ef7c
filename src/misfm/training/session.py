"""What a training consists of: its objective, how it is judged, and one process's share of the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from misfm import world
from misfm.batches import Batch
from misfm.errors import MisfmError, WeightsError
from misfm.seeding import Draws
from misfm.terminal import logger
from misfm.training.batch_norm import share_batch_norms
from misfm.training.checkpoint import Checkpoint, load_latest, restore
from misfm.training.ema import WeightAverage
from misfm.training.engine import average_first_gradients, fabric_for, is_replicated, is_sharded, set_up
from misfm.training.fast import is_fused, made_ready, may_overflow, restore_scale
from misfm.training.memory import keep_freed_memory
from misfm.training.optim import build_optimizer
from misfm.training.precision import fabric_precision
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
        held: what is large of what ``run`` shares out among ranks; they get it once.
    """

    run: Callable[[nn.Module, int], Mapping[str, float]]
    key: str
    lower_is_better: bool = False
    patience: int | None = None
    cooldown: float = COOLDOWN
    held: tuple[Any, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        """Return what ranks need that follow: all but how to judge, which the leader does."""
        return {**vars(self), "run": None}


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
        whole: the network that was given, where devices have shares of a copy of it; else None.
        is_first: whether the next step is the first of several ranks with a whole network each.
        loss: of the last step; reading it waits for the device.
        norm: reads the norm of its gradient.
    """

    fabric: Fabric
    model: Any
    optimizer: torch.optim.Optimizer
    objective: Objective
    settings: TrainingSettings
    seed: int
    state: Checkpoint
    average: WeightAverage | None = None
    cooldown: int = 0
    saved: int | None = None
    whole: nn.Module | None = None
    is_first: bool = False
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

    def backward_alone(self) -> AbstractContextManager[Any]:
        """Context for a backward pass whose gradients are not yet to be averaged over ranks."""
        return self.fabric.no_backward_sync(self.model)

    def end_first_step(self) -> None:
        """Average the gradients of the first step, see :func:`.engine.average_first_gradients`."""
        if not average_first_gradients(self.fabric, self.model.module):
            self.model = set_up(self.fabric, self.model.module)

    def put_together(self) -> Any:
        """Return the network as it is now, to call in any rank by itself; all ranks have to ask."""
        if self.whole is None:
            return self.model
        from misfm.training.sharding import as_set_up, put_together

        put_together(self.model.module, self.whole)
        return as_set_up(self.fabric, self.whole)

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


def begin_session(
    model: nn.Module, objective: Objective, settings: TrainingSettings, run: RunFolder, seed: int
) -> Session:
    """Choose device and precision, and restore the last checkpoint if there is one."""
    keep_freed_memory()
    torch.set_num_threads(world.from_leader(torch.get_num_threads()))
    fabric = fabric_for(fabric_precision(settings.precision))
    found, own = world.led(lambda: (load_latest(run.last, run.previous), run.settings_checksum()))
    state = Checkpoint(step=0, model={}, optimizer={}, best_score=None, best_step=None, run=own)
    share_batch_norms(model)
    trained = deepcopy(model) if is_sharded() else model
    wrapped = set_up(fabric, made_ready(trained, settings).train())
    built = build_optimizer(trained, settings.optimizer, fused=is_fused(fabric))
    optimizer: Any = fabric.setup_optimizers(built)
    average = WeightAverage(trained, settings.ema) if settings.ema else None
    if found is not None:
        state, path = found
        if None not in (own, state.run) and own != state.run:
            raise WeightsError(
                f"{path} was saved by a run with other settings than {run.config} tells: put back its own, "
                f"or delete {path.parent} to start the run again."
            )
        restore(state, path, trained, optimizer, average)
        restore_scale(fabric, state.scaler)
        logger.info("resuming after step %d", state.step)
    session = Session(fabric, wrapped, optimizer, objective, settings, seed, state, average)
    session.whole = model if trained is not model else None
    session.is_first = is_replicated(fabric)
    session.saved = state.step if found is not None and found[1] == run.last else None
    return session


def checkpoint_of(session: Session) -> Checkpoint:
    """Return the present state of the run."""
    checkpoint = replace(
        session.state,
        model=session.model.state_dict(),
        optimizer=session.optimizer.state_dict(),
        scaler=session.fabric.strategy.precision.state_dict(),
        average=session.average.values if session.average is not None else {},
    )
    if session.whole is None:
        return checkpoint
    from misfm.training.sharding import gathered

    return gathered(checkpoint)
