"""What became of each case of a prediction: kept by one process, whoever labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from misfm.errors import DataError
from misfm.inference.case_work import CaseWork, Computed, Elsewhere, Job, Outcome, Read, label_elsewhere
from misfm.inference.predictions import CaseResult, Predictions
from misfm.memory import available_bytes
from misfm.parallel import Overlapped, Pool
from misfm.signals import Interrupted
from misfm.terminal import logger

_ROOM = 8
"""Bytes of memory that must be free to read ahead, for each of the scan that is computed meanwhile."""


class Account:
    """Labels cases, here or elsewhere, and keeps account.

    Args:
        work: labels, if that is done here.
        predictions: gets what there is to know about each case.
        folder: of the label maps, as the user named it.
        progress: called with the number of cases done, the last of them in part, and their total.
        total: how many cases there are.
    """

    def __init__(
        self,
        work: CaseWork,
        predictions: Predictions,
        folder: Path,
        progress: Callable[[float, int], None] | None,
        total: int,
    ) -> None:
        self.written: dict[str, Path] = {}
        self.failed: dict[str, str] = {}
        self.warnings: dict[str, Sequence[str]] = {}
        self.num_found = 0
        self._work = work
        self._predictions = predictions
        self._folder = folder
        self._progress = progress or (lambda done, total: None)
        self._num_done, self._total = 0, total

    def label_here(self, jobs: Sequence[Job]) -> None:
        """Label cases in this process: the next is read and the last written while one is computed."""
        parts = _Here(self, self._work)
        try:
            parts.overlapped.run(self._open(jobs))
        finally:
            self._predictions.remember()

    def label_elsewhere(self, jobs: Sequence[Job], workplace: Pool, how: Elsewhere) -> None:
        """Label cases in other processes."""

        def lost(job: Job) -> Outcome:
            return Outcome(
                failure=f"{job.case.path} ended the process that labelled it, mostly for want of memory: "
                "give fewer --workers, or label it alone."
            )

        def begin() -> Iterator[Job]:
            for job in self._open(jobs):
                self.forget(job)
                yield job

        try:
            for job, outcome in workplace.map(partial(label_elsewhere, how), begin(), lost):
                self.note(job, outcome.result or DataError(outcome.failure))
                self.passed()
        except Interrupted:
            workplace.stop()  # before it is looked at what was not written
            raise
        finally:
            self._predictions.remember()

    def forget(self, job: Job) -> None:
        """The label map that is there is about to be written: it is not looked for any longer."""
        self._predictions.writing(job.path.name)

    def within(self, share: float) -> None:
        """Tell what share of the case after those that are done is done, too."""
        if share < 1:
            self._progress(self._num_done + share, self._total)

    def passed(self) -> None:
        """One more is done."""
        self._num_done += 1
        self._progress(self._num_done, self._total)

    def note(self, job: Job, result: CaseResult | DataError) -> None:
        """Take note of what became of a case."""
        case = job.case
        if isinstance(result, DataError):
            self.failed[case.name] = str(result)
            self._predictions.fail(case.name, str(result))
            logger.warning("%s", result)
            if job.path.exists():
                logger.warning(
                    "%s stays as it was: it is of an earlier command.", self._folder / job.path.name
                )
            return
        self._predictions.add(case.name, result)
        logger.info("%s -> %s: %s", result.of.path, job.path.name, result.more["quality"]["says"])
        self._list(job, result.warnings)
        for warning in result.warnings:
            logger.warning("%s: %s", case.name, warning)

    def _open(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield the cases that are not done yet."""
        for job in jobs:
            found = self._predictions.finished(job.case.name, job.case.source)
            beside = [self._work.probabilities_path(job.path)] if self._work.options.probabilities else []
            beside += [job.map_path] if job.map_path is not None else []
            if found and all(file.is_file() for file in beside):
                self.num_found += 1
                self._list(job, found.get("warnings", []))
                self.passed()
                continue
            try:
                notes = self._predictions.check_mask(job.case.name, job.path.name, job.case.source)
            except DataError as error:
                self.note(job, error)
                self.passed()
                continue
            yield replace(job, notes=tuple(notes))

    def _list(self, job: Job, warnings: Sequence[str]) -> None:
        self.written[job.case.name] = self._folder / job.path.name
        if warnings:
            self.warnings[job.case.name] = warnings


class _Here:
    """The parts of the work on a case, in this process, and the account of it."""

    def __init__(self, account: Account, work: CaseWork) -> None:
        self._account = account
        self._work = work
        self._is_counted: set[str] = set()
        self.read, self.write, self.drop = work.read, work.write, work.drop
        self.overlapped: Overlapped[Job, Read, Computed, CaseResult] = Overlapped(self, _has_room)

    def compute(self, job: Job, read: Read) -> Computed:
        """Run the network; notes meanwhile what was written."""

        def go_on(share: float) -> None:
            self._account.within(share)
            self.overlapped.note()

        try:
            made = self._work.compute(job, read, go_on)
        finally:
            self._count(job)
        self._account.forget(job)
        return made

    def done(self, job: Job, result: CaseResult | DataError) -> None:
        """Take note of what became of a case."""
        self._account.note(job, result)
        self._count(job)  # where it could not be read

    def _count(self, job: Job) -> None:
        if job.case.name not in self._is_counted:
            self._is_counted.add(job.case.name)
            self._account.passed()


def _has_room(read: Read) -> bool:
    """Whether another scan like this one fits beside it."""
    return available_bytes() > _ROOM * read.prepared.scan.data.nbytes
