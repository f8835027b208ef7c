"""Scans and labelled cases into a store: read, orient, crop, resample, fit intensities, compress, add."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from misfm.data.appearance import appearance_of
from misfm.data.channels import JoinedScan, join_channels, scans_in
from misfm.data.checks import usable
from misfm.data.dataset import Case, Dataset
from misfm.data.dataset_fingerprint import DatasetFingerprint
from misfm.data.fingerprint import fingerprint
from misfm.data.forecast import Forecast
from misfm.data.intensity import IntensityRule, Kind, fit
from misfm.data.intensity_text import parse_intensity, rules_for
from misfm.data.preprocess import canonical, content_box, resample
from misfm.data.pseudonyms import give_pseudonyms, without_names
from misfm.data.quarantine import Doubtful, Refusal, refuse
from misfm.data.readers import read_volume
from misfm.data.record import Entry, IngestSettings, Origin, anonymise, make_entry
from misfm.data.scan import ScanSource, find_scans
from misfm.data.store import Store
from misfm.data.volume_files import VolumeFiles
from misfm.errors import ConfigError, DataError, MisfmError
from misfm.memory import most_bytes_so_far
from misfm.parallel import check_workers, pool
from misfm.text import one_line, path_text
from misfm.volume import Box, Volume, bounding_box

__all__ = ["IngestEvent", "IngestReport", "IngestSettings", "ingest", "ingest_dataset", "prepare"]

Outcome = Literal["added", "skipped", "duplicate", "quarantined"]


@dataclass(frozen=True)
class IngestEvent:
    """One source is done.

    Attributes:
        source: its path, or its pseudonym.
        outcome: "added", "skipped" (unchanged since it was ingested), "duplicate" or "quarantined".
        reason: why it was quarantined, what it duplicates, or what reading it had to repair; else empty.
        done: sources done so far.
        total: all sources.
    """

    source: str
    outcome: Outcome
    reason: str
    done: int
    total: int


@dataclass(frozen=True)
class IngestReport:
    """Numbers of sources by outcome; the quarantined ones of this run with their reasons, and those that were
    repaired when they were read, with what was done; how many were added as CT, MR, …, and those of them that
    may be of another kind, with what speaks for that."""

    added: int
    skipped: int
    duplicates: int
    quarantined: tuple[tuple[str, str], ...]
    repaired: tuple[tuple[str, str], ...] = ()
    kinds: Mapping[str, int] = field(default_factory=dict)
    doubtful: tuple[tuple[str, str], ...] = ()


def ingest(
    sources: Sequence[str | Path],
    store_path: str | Path,
    settings: IngestSettings,
    *,
    workers: int = 0,
    progress: Callable[[IngestEvent], None] | None = None,
    scheduler: str | None = None,
    pseudonyms: str | Path | None = None,
) -> IngestReport:
    """Bring all scans of ``sources`` into a store; run it again to resume or to add what is new.

    Args:
        sources: see ``find_scans``.
        store_path: folder of the store, made where missing.
        settings: spacing and intensity; must be those of an existing store.
        workers: processes on this machine; up to 1 works in this process.
        progress: called after every source.
        scheduler: address of a dask scheduler to use instead, whose workers see the same files and write
            into the folder of the store: no volume travels between processes.
        pseudonyms: key file, see ``give_pseudonyms``; what is told of scans and kept of them then names none.

    Raises:
        DataError: a source is missing or empty, or the store cannot be written. A scan that cannot be used is
            no error: it is quarantined with its reason.
        ConfigError: the store was made with other settings, with names instead of pseudonyms or the reverse;
            or there are far more workers than processors.
    """
    if len(parse_intensity(settings.intensity)) > 1 and settings.channels == "apart":
        raise ConfigError(
            f"The intensity '{settings.intensity}' gives each channel a rule of its own: add --channels "
            "together, or give one rule."
        )
    if scheduler is None:
        check_workers(workers, "--workers")  # before a folder is made
    scans = find_scans(sources, by_name=pseudonyms is None)
    if settings.channels == "together":
        scans = join_channels(scans)
    if pseudonyms is not None:
        scans = give_pseudonyms(scans, Path(pseudonyms), Path(store_path))
    counts: Counter[Outcome] = Counter()
    quarantined, repaired, doubtful = [], [], []
    kinds: Counter[str] = Counter()

    def finish(
        scan: ScanSource, outcome: Outcome, reason: str = "", result: Entry | Refusal | None = None
    ) -> None:
        counts[outcome] += 1
        if outcome == "added" and isinstance(result, Entry):
            kinds["+".join(result.record.channel_kinds)] += 1
            if result.doubt:
                doubtful.append((scan.source, result.doubt))
        if outcome == "quarantined":
            quarantined.append((scan.source, reason))
        elif outcome == "added" and reason:
            repaired.append((scan.source, reason))
        if progress:
            progress(IngestEvent(scan.source, outcome, reason, counts.total(), len(scans)))

    with (
        Store.writing(store_path, settings, pseudonymous=pseudonyms is not None) as store,
        pool(workers, scheduler) as workplace,
    ):
        # On a cluster no voxels pass the scheduler: workers leave files in the store's folder.
        parked_in = VolumeFiles(Path(store_path).absolute() / "volumes") if workplace.is_cluster else None
        prepared = partial(prepare_scan, settings=settings, parked_in=parked_in)
        released = {(one.source, one.stamp) for one in store.released()}
        scans = [replace(scan, is_released=(scan.source, scan.stamp) in released) for scan in scans]
        known = []
        for scan in scans:
            if store.has(scan.source, scan.stamp):
                known.append(scan)
                finish(scan, "skipped")
        there = {scan.source for scan in known}
        pending = [scan for scan in scans if scan.source not in there]
        forecast = Forecast(pending, Path(store_path), at_once=workplace.at_once)
        for scan, result in workplace.map(prepared, pending, _lost):
            forecast.note(scan, result)
            finish(scan, *_put(store, scan, result), result)
        # Copies of a volume that went, for its own file holds something else now: they were the known ones.
        orphans = [scan for scan in known if pending and not store.is_known(scan.source, scan.stamp)]
        counts["skipped"] -= len(orphans)
        for scan, result in workplace.map(prepared, orphans, _lost):
            finish(scan, *_put(store, scan, result), result)
    return IngestReport(
        counts["added"],
        counts["skipped"],
        counts["duplicate"],
        quarantined=tuple(quarantined),
        repaired=tuple(repaired),
        kinds=kinds,
        doubtful=tuple(doubtful),
    )


def _put(store: Store, scan: ScanSource, result: Entry | Refusal) -> tuple[Outcome, str]:
    """Bring a prepared scan into the store, or quarantine it; returns what became of it, and why."""
    source = scan.source
    if isinstance(result, Refusal):
        reason = without_names(result.reason, scan) if scan.pseudonym else result.reason
        store.quarantine(source, reason, result.evidence)
        return "quarantined", reason
    twin = store.find(result.record.fingerprint)
    unmasked = twin is not None and result.record.anonymised and not twin.anonymised
    moved = twin is not None and twin.source == source and twin.id != result.record.id
    if twin is None or unmasked or moved or store.faults_of(twin):
        record = store.add(result, scan.stamp)
        if twin is not None and unmasked:  # the mask counts, whichever copy of a scan it came with
            store.add_duplicate(twin.source, "", record)
        notes = "; ".join(result.notes)
        return "added", without_names(notes, scan) if scan.pseudonym else notes
    store.discard(result)
    store.add_duplicate(source, scan.stamp, twin)
    return ("skipped", "") if twin.source == source else ("duplicate", twin.source)


def ingest_dataset(
    dataset: Dataset,
    cases: Iterable[Case],
    store_path: str | Path,
    settings: IngestSettings,
    *,
    images: DatasetFingerprint | None = None,
    progress: Callable[[IngestEvent], None] | None = None,
) -> Store:
    """Bring labelled cases into a store, image and label map side by side; unchanged cases are skipped.

    Args:
        dataset: the dataset the cases belong to; its channel names decide what they are under "auto".
        cases: those to add, each with a label map.
        store_path: folder of the store, made where missing.
        settings: spacing and intensity; must be those of an existing store.
        images: what is known of the dataset's images, whose voxels need not be read again where it kept them.
        progress: called after every case.

    Raises:
        DataError: a case that cannot be used (``Dataset.read_case``): unlike a scan without labels it was
            asked for by name, so it is not passed over.
        ConfigError: the store was made with other settings.
    """
    rules = rules_for(settings.intensity, dataset.kinds)
    cases = list(cases)
    with Store.writing(store_path, settings) as store:
        for done, case in enumerate(cases, start=1):
            source, stamp = _state_of(case, dataset)
            outcome: Outcome = "skipped"
            if not store.has(source, stamp):
                with usable(case.image_paths[0]):
                    known = images.scan(case) if images else None
                    image, label = dataset.read_case(case, images.read if images else read_volume)
                    origin = Origin(case.name, source, known or fingerprint(image))
                    entry = prepare(origin, image, label, rules, settings)
                store.add(entry, stamp)
                outcome = "added"
            if progress:
                progress(IngestEvent(source, outcome, "", done, len(cases)))
    return store


def _state_of(case: Case, dataset: Dataset) -> tuple[str, str]:
    """What stands for a labelled case in a store, and a stamp of all that its volume depends on."""
    if case.label_path is None:
        raise DataError(f"Case {case.name} of {dataset.path} has no label map; add it or leave out the case.")
    stamps = [ScanSource(path, case.name).stamp for path in (*case.image_paths, case.label_path)]
    if case.name in dataset.annotated:  # read again when the list changes, to be checked against it
        stamps.append(f"labels {sorted(dataset.annotated[case.name])}")
    return path_text(case.image_paths[0].absolute()), "; ".join(stamps)


def prepare(
    origin: Origin,
    image: Volume,
    label: Volume | None,
    rules: Sequence[IntensityRule],
    settings: IngestSettings,
    anonymised: Volume | None = None,
) -> Entry:
    """Turn a scan as read into an entry of a store.

    Args:
        origin: where it came from.
        image: (C, D, H, W) on its own grid.
        label: (1, D, H, W) on the same grid, or None; cropping never removes a labelled voxel.
        rules: one for each channel.
        settings: those of the store.
        anonymised: (1, D, H, W) uint8 on the same grid, 1 where voxels were removed, or None.

    Raises:
        DataError: nothing of the patient is left.
    """
    kinds = [rule.kind for rule in rules]
    image = canonical(image)
    normalisation = tuple(
        fit(rule, Volume(channel[None], image.affine))
        for rule, channel in zip(rules, image.data, strict=True)
    )
    box = content_box(image, kinds)
    patient = box
    if label is not None:
        label = canonical(label)
        box = _around_labels(box, label)
        label = resample(label.crop(box), settings.spacing, label=True)
    if anonymised is not None:
        anonymised = resample(canonical(anonymised).crop(box), settings.spacing, label=True)
    is_whole = image.data.dtype.kind in "iu"
    image = resample(image.crop(box), settings.spacing)
    if is_whole and all(kind == "ct" for kind in kinds):
        # One HU is far below the noise of any CT, and int16 halves the store.
        image = image.with_data(np.rint(image.data).astype(np.int16))
    entry = make_entry(origin, image, label, kinds, normalisation, settings)
    if box != patient:
        entry = replace(entry, record=entry.record.model_copy(update={"labels_apart": True}))
    return entry if anonymised is None else anonymise(entry, anonymised)


def prepare_scan(
    scan: ScanSource, settings: IngestSettings, parked_in: VolumeFiles | None = None
) -> Entry | Refusal:
    """The entry of a scan, or why it cannot be used; runs in the workers.

    Raises:
        DataError: its files cannot be parked, which is no fault of the scan.
    """
    result = _read_scan(scan, settings)
    if isinstance(result, Refusal):
        return result
    result = replace(result, memory=most_bytes_so_far())
    return parked_in.park(result) if parked_in else result


def _read_scan(scan: ScanSource, settings: IngestSettings) -> Entry | Refusal:
    volume: Volume | None = None
    try:
        with usable(scan.path):
            volume = scan.read()
            _check_scan(volume, scan)
            kinds = scan.kinds(volume)
            rules = rules_for(settings.intensity, kinds)
            names = scan.names if isinstance(scan, JoinedScan) else ()
            origin = Origin(scan.case, scan.source, fingerprint(volume), names, scans_in(volume))
            entry = prepare(origin, volume, None, rules, settings, scan.read_anonymised(volume))
            parts = scan.channels if isinstance(scan, JoinedScan) else (scan,)
            doubts = map(_doubt, volume.data, parts, kinds) if settings.intensity == "auto" else ()
            doubt = next(filter(None, doubts), "")
            return replace(entry, notes=tuple(scan.notes), doubt=doubt)
    except MisfmError as error:
        return refuse(scan, str(error), volume=volume, judged=isinstance(error, Doubtful))


def _doubt(voxels: NDArray[Any], scan: ScanSource, kind: Kind) -> str:
    """What speaks against the kind that a scan was taken for, in a sentence, if its dataset does not say.

    Args:
        voxels: (D, H, W).
        scan: that they are of.
        kind: what it was taken for.
    """
    if scan.kind is not None:
        return ""
    seen, said = appearance_of(voxels), (scan.modality or "").strip().upper()
    odd = seen.doubt
    if said == "CT":
        odd = "" if kind == "ct" else "its header says CT and its values are no HU"
    elif said:
        odd = "it looks like CT in HU" if seen.is_ct and not seen.doubt else ""
    return f"taken for {kind.upper()}, though {odd}; say --intensity if that is wrong" if odd else ""


def _check_scan(volume: Volume, scan: ScanSource) -> None:
    """Refuse what would only mislead pretraining: nothing to see, or a label map lying beside its image.

    Of several channels some may be empty, for they were not taken.
    """
    shown = [channel for channel in volume.data if channel.min() < channel.max()]
    if not shown:
        value = volume.data.flat[0]
        raise DataError(f"{scan.path} shows nothing: all its voxels are {value:g}; export the scan again.")
    if not scan.is_released and any(map(_looks_like_labels, shown)):
        raise Doubtful(
            f"{scan.path} looks like a label map; leave it out, give a dataset in nnU-Net format, or, if it "
            "is a scan, release it by misfm info STORE --release."
        )


def _looks_like_labels(data: NDArray[Any]) -> bool:
    """Whether voxels (D, H, W), not all alike, are those of a label map."""
    lowest = data.min()
    some = data[tuple(slice(None, None, max(1, side // 64)) for side in data.shape)]
    if not np.array_equal(some, np.rint(some)):
        return False
    # In label maps nearly all neighbours are equal, in scans hardly any outside of their background. That
    # need not be the lowest value: around brains without skulls, within the corners of a CT. One of the two
    # values of a mask has to be looked at.
    values, counts = np.unique(some, return_counts=True)
    background = data == lowest
    if len(values) > 2:
        background |= data == values[counts.argmax()]
    inside = ~(background[..., :-1] | background[..., 1:])
    return bool(inside.any() and (data[..., :-1] == data[..., 1:])[inside].mean() > 0.7)


def _around_labels(box: Box, label: Volume) -> Box:
    """The smallest box with all of ``box`` and all labelled voxels."""
    labelled = bounding_box(label.data[0] != 0)
    return box if labelled is None else box.around(labelled)


def _lost(scan: ScanSource) -> Refusal:
    reason = f"{scan.path} ended the process that read it, mostly for want of memory; use fewer workers."
    return refuse(scan, one_line(reason))
