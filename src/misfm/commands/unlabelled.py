"""Unlabelled scans that a fine-tuning learns from beside its labelled cases."""

from __future__ import annotations

import math
from collections.abc import Sequence

from misfm.config import CompleteSettings
from misfm.data.channels import same_names
from misfm.data.dataset import Dataset
from misfm.data.intensity_text import rules_for
from misfm.data.patches import LabelledPatches, UnlabelledPatches
from misfm.data.record import Record
from misfm.data.records import Records
from misfm.data.store import Store
from misfm.errors import ConfigError
from misfm.models import SegmentationModel
from misfm.seeding import derive_seed
from misfm.settings import as_option
from misfm.training.mean_teacher import MeanTeacher, MeanTeacherObjective, PairedPatches
from misfm.training.objectives import SegmentationObjective
from misfm.training.session import Objective

SPACING_TOLERANCE = 1e-3
"""Relative difference below which spacings are the same; options are written with a few digits."""


def unlabelled_patches(settings: CompleteSettings, dataset: Dataset) -> UnlabelledPatches | None:
    """Return the source of unlabelled batches, or None where none are asked for.

    Raises:
        ConfigError: a store made with other spacing, intensities or channels than the fine-tuning uses.
        DataError: no store there.
    """
    if settings.unlabelled is None:
        return None
    store = Store.open(settings.unlabelled.store)
    records = store.records()
    wanted = f"--spacing {as_option(settings.spacing)} --intensity {settings.intensity}"
    if len(dataset.channel_names) > 1:
        wanted += " --channels together"
    if not records or not fits(store, records, settings, dataset):
        held = store.settings
        raise ConfigError(
            f"The store {store.path} with {len(records)} volumes at --spacing {as_option(held.spacing)} "
            f"--intensity {held.intensity} --channels {held.channels} does not fit the fine-tuning: make one "
            f"with `misfm ingest SCANS --store DIR {wanted}`."
        )
    return UnlabelledPatches(
        store,
        records,
        settings.patch_size,
        num_patches=1,
        batch_size=settings.unlabelled.batch_size,
        seed=derive_seed(settings.seed, "unlabelled"),
    )


def fits(store: Store, records: Sequence[Record], settings: CompleteSettings, dataset: Dataset) -> bool:
    """Whether a store's volumes have the channels of the fine-tuning, prepared as its cases are."""
    theirs, ours = store.settings.spacing, settings.spacing
    if theirs == "native" or ours == "native":
        alike = theirs == ours
    else:
        alike = all(math.isclose(a, b, rel_tol=SPACING_TOLERANCE) for a, b in zip(theirs, ours, strict=True))
    wanted = rules_for(settings.intensity, dataset.kinds)
    looks, _ = Records.of(records).looks
    return alike and all(
        len(look.kinds) == len(wanted)
        and rules_for(store.settings.intensity, look.kinds) == wanted
        and same_names(look.names, dataset.channel_names)
        for look in looks
    )


def with_unlabelled(
    model: SegmentationModel,
    objective: SegmentationObjective,
    labelled: LabelledPatches,
    settings: CompleteSettings,
    unlabelled: UnlabelledPatches | None,
) -> tuple[SegmentationModel | MeanTeacher, Objective, LabelledPatches | PairedPatches]:
    """Return what to train, for what and on which batches; the arguments where nothing is unlabelled."""
    if settings.unlabelled is None or unlabelled is None:
        return model, objective, labelled
    return (
        MeanTeacher(model, settings.unlabelled.decay),
        MeanTeacherObjective(objective, settings.unlabelled, settings.training.steps),
        PairedPatches(labelled, unlabelled),
    )
