"""The contract every pretext task follows; a new task is one new file in this folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Generator, Tensor, nn

from misfm.batches import Batch, Placement
from misfm.models.base import Backbone
from misfm.registry import Registry
from misfm.settings import Settings
from misfm.volume import Shape

Meeting = Literal["nowhere", "in inputs", "in loss"]
"""Where samples of a batch have to do with each other, see :class:`PretextTask`."""


class PretextTask(Settings):
    """A self-supervised task; its fields are its options.

    Attributes:
        num_patches: how many patches of one volume make a sample.
        trains_decoder: whether the decoder learns, too; where not, weights transfer as encoder.
        needs_labels: whether it learns from the label maps that generated volumes come with.
        draws_people: whether it draws images for people's label maps, too; its field ``table``, filled in
            from the store, says what their values mean.
        mixes_generated: whether half of its volumes are generated ones with label maps; in those of scans
            every voxel is :data:`misfm.losses.IGNORE`.
        samples_meet: where samples of a batch have to do with each other. Where they meet ``"nowhere"``, each
            is prepared alone, and each of several processes prepares and trains its own ones. Where they meet
            ``"in inputs"``, as where they are mixed, every process prepares all and keeps its own. Both take
            a loss that is the same however samples are shared out: its sums, counts and vectors go through
            :func:`misfm.world.total` and :func:`misfm.world.gathered`, as in :mod:`misfm.losses`. Where they
            meet ``"in loss"``, every process prepares all, too, and is given the outputs of all.
    """

    num_patches: ClassVar[int] = 1
    trains_decoder: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    draws_people: ClassVar[bool] = False
    mixes_generated: ClassVar[bool] = False
    samples_meet: ClassVar[Meeting] = "nowhere"

    @property
    def transfer(self) -> Literal["all", "encoder"]:
        """What of the weights is worth transferring: an untrained decoder is not."""
        return "all" if self.trains_decoder else "encoder"

    def source_size(self, patch_size: Shape) -> Shape:
        """Voxels along (D, H, W) to cut from a volume for a network input of ``patch_size``."""
        return patch_size

    def margin(self, patch_size: Shape) -> Shape:
        """Voxels of ``source_size`` on each side, along (D, H, W), that surround the patch itself.

        A patch lies within the volume wherever that is large enough; its surroundings may lie outside.
        """
        return (0, 0, 0)

    @abstractmethod
    def prepare(
        self, patches: Tensor, placement: Placement, patch_size: Shape, generator: Generator
    ) -> Batch:
        """Turn raw patches into inputs and targets, on the device the patches are on.

        Args:
            patches: (B, N, C, *source_size) float normalised intensities; never written to.
            placement: where they lie in their volumes, and what of them is padding.
            patch_size: (D, H, W) of the inputs to return.
            generator: a CPU generator, the only source of randomness.
        """

    @abstractmethod
    def build_model(self, backbone: Backbone) -> nn.Module:
        """Put the task's own head on a backbone, which becomes the module's ``backbone``.

        The module is called with a batch's inputs and context; what it returns goes to ``loss``.

        Raises:
            ConfigError: the task does not fit this network; says why.
        """

    @abstractmethod
    def loss(self, outputs: Any, batch: Batch) -> Mapping[str, Tensor]:
        """Named terms whose sum is minimised; each a scalar that carries gradients."""

    @abstractmethod
    def score(self, outputs: Any, batch: Batch) -> Mapping[str, float]:
        """Numbers a person can read, beside what chance would reach."""


PRETEXTS: Registry[type[PretextTask]] = Registry("pretext task", "misfm.pretext")
