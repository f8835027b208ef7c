"""Weights of MIS-FM's PCT-Net, as PyMIC saves them or as a plain mapping with the same names.

The published network builds a stem and a finest decoder for each anisotropy and runs one of them; a file
therefore holds three, of which one is trained. It also holds a norm that is never applied and the position
index itself. What our network has no place for keeps its foreign name, so that a report lists it as unused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor

from misfm.errors import WeightsError
from misfm.models import Backbone
from misfm.models.anisotropy import STEPS
from misfm.models.pctnet import FIRST_PCT_LEVEL, PCTNet
from misfm.weights.containers import named_tensors
from misfm.weights.file import NetworkInfo, WeightsInfo
from misfm.weights.formats import FORMATS, Translation

WITHIN_BLOCKS = (
    (".attn.relative_position_bias_table", ".attention.bias_table"),
    (".attn.qkv.", ".attention.qkv."),
    (".attn.proj.", ".attention.proj."),
    (".mlp.fc1.", ".mlp.0."),
    (".mlp.fc2.", ".mlp.3."),
)


def stored_tensors(content: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a PyMIC checkpoint, or of a mapping that holds nothing else."""
    state = content.get("model_state_dict", content)
    if not isinstance(state, Mapping):
        return {}
    return named_tensors(state)


def described(
    network: NetworkInfo, kernel: Tensor, bias: Tensor, content: Mapping[str, object]
) -> WeightsInfo:
    """What a PyMIC checkpoint tells about its weights.

    Args:
        network: as its shapes say.
        kernel: of the first convolution, which tells the channels of the image.
        bias: of the last convolution, which tells the classes.
        content: of the file.
    """
    steps = content.get("iteration")
    return WeightsInfo(
        network=network,
        in_channels=kernel.shape[1],
        num_classes=len(bias),
        patch_size=None,
        spacing=None,
        steps=steps if isinstance(steps, int) else None,
        data=None,
        versions={},
    )


@contextmanager
def told_by_shapes(network: str) -> Iterator[None]:
    """Say what is wrong where tensors that shall tell the settings of ``network`` are missing or odd."""
    try:
        yield
    except KeyError as error:
        raise WeightsError(f"These {network} weights are incomplete: they lack {error}.") from error
    except (IndexError, TypeError, ValueError) as error:
        raise WeightsError(
            f"These weights have {network}'s names but not its shapes, so they are damaged or another's."
        ) from error


def prefixes(anisotropy: int) -> dict[str, str]:
    """Their module -> ours, for the stem, finest decoder and heads of one anisotropy."""
    stem, finest = f"embeddings.{anisotropy}", f"pred_heads.{anisotropy}"
    encoder, decoder = "backbone.encoder", "backbone.decoder"
    pairs = {
        f"{stem}.proj.": f"{encoder}.project.",
        f"{stem}.conv0.conv_conv.": f"{encoder}.conv0.",
        f"{stem}.down1.conv.": f"{encoder}.down1.1.",
        f"{stem}.conv1.conv_conv.": f"{encoder}.conv1.",
        f"{stem}.down2.conv.": f"{encoder}.down2.1.",
        "pyramid_ct.down3.conv.": f"{encoder}.down3.1.",
        "pyramid_ct.down4.conv.": f"{encoder}.down4.1.",
        # they name the steps up by the coarser of the two levels, we by the finer one
        "pyramid_ct.up4.": f"{decoder}.up3.",
        "pyramid_ct.up3.": f"{decoder}.up2.",
        f"{finest}.up2.": f"{decoder}.up1.",
        f"{finest}.conv1.conv_conv.": f"{decoder}.conv1.",
        f"{finest}.up1.": f"{decoder}.up0.",
        f"{finest}.conv0.conv_conv.": f"{decoder}.conv0.",
        f"{finest}.out_conv0.conv.": "head.levels.0.",
        f"{finest}.out_conv1.conv.": "head.levels.1.",
        "pyramid_ct.out_conv2.conv.": "head.levels.2.",
        "pyramid_ct.out_conv3.conv.": "head.levels.3.",
    }
    for theirs, ours in (
        ("e2", f"{encoder}.block2"),
        ("e3", f"{encoder}.block3"),
        ("e4", f"{encoder}.block4"),
        ("d3", f"{decoder}.block3"),
        ("d2", f"{decoder}.block2"),
    ):
        pairs[f"pyramid_ct.convtrans_{theirs}.conv.conv_conv."] = f"{ours}.conv."
        pairs[f"pyramid_ct.convtrans_{theirs}.trans.blocks."] = f"{ours}.transformer."
    return pairs


def batches_seen(tensors: Mapping[str, Tensor]) -> list[int]:
    """Training batches seen by the stem and finest decoder of each anisotropy; all 0 where not recorded."""
    return [
        sum(
            int(tensor)
            for name, tensor in tensors.items()
            if name.startswith((f"embeddings.{anisotropy}.", f"pred_heads.{anisotropy}."))
            and name.endswith("num_batches_tracked")
        )
        for anisotropy in range(len(STEPS))
    ]


class PymicPctNet:
    """Reader of PCT-Net's weights; see :class:`misfm.weights.formats.ForeignFormat`."""

    title = "MIS-FM PCT-Net (PyMIC)"

    def tensors(self, content: Mapping[str, object]) -> dict[str, Tensor] | None:
        """The state dict of a checkpoint, or a mapping with its names."""
        tensors = stored_tensors(content)
        return tensors if any(name.startswith("pyramid_ct.") for name in tensors) else None

    def info(self, content: Mapping[str, object]) -> WeightsInfo:
        """Widths, heads and windows from shapes; the anisotropy that has seen most training batches."""
        tensors = cast(dict[str, Tensor], self.tensors(content))
        with told_by_shapes("PCT-Net"):
            options = _options(tensors)
            stem, finest = f"embeddings.{options['anisotropy']}", f"pred_heads.{options['anisotropy']}"
            network = NetworkInfo(name="pctnet", options=options)
            kernel, bias = tensors[f"{stem}.proj.weight"], tensors[f"{finest}.out_conv0.conv.2.bias"]
            return described(network, kernel, bias, content)

    def translate(self, tensors: Mapping[str, Tensor], backbone: Backbone) -> Translation:
        """Rename what the backbone's anisotropy uses, unless its stem and decoder were never trained."""
        if not isinstance(backbone, PCTNet):
            return Translation(dict(tensors))
        renames = prefixes(backbone.anisotropy)
        notes: list[str] = []
        seen = batches_seen(tensors)
        if any(seen) and not seen[backbone.anisotropy]:
            trained = ", ".join(str(anisotropy) for anisotropy, count in enumerate(seen) if count)
            notes.append(
                f"The weights were trained with anisotropy {trained}; their stem and finest decoder levels "
                f"for this network's anisotropy {backbone.anisotropy} are untrained and were left out."
            )
            renames = {theirs: ours for theirs, ours in renames.items() if theirs.startswith("pyramid_ct.")}
        return Translation({_rename(name, renames): tensor for name, tensor in tensors.items()}, notes)


def _options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options of the network that ``tensors`` fit."""
    seen = batches_seen(tensors)
    anisotropy = seen.index(max(seen)) if any(seen) else 1
    blocks = [f"pyramid_ct.convtrans_e{level}" for level in range(FIRST_PCT_LEVEL, 5)]
    tables = [tensors[f"{block}.trans.blocks.0.attn.relative_position_bias_table"].shape for block in blocks]
    norms = [f"embeddings.{anisotropy}.conv{level}.conv_conv.0.weight" for level in range(FIRST_PCT_LEVEL)]
    norms += [f"{block}.conv.conv_conv.0.weight" for block in blocks]
    return {
        "channels": tuple(len(tensors[name]) for name in norms),
        "depths": tuple(
            sum(name.startswith(f"{block}.trans.") and name.endswith(".norm1.weight") for name in tensors)
            for block in blocks
        ),
        "num_heads": tuple(heads for _, heads in tables),
        "window_sizes": tuple((round(rows ** (1 / 3)) + 1) // 2 for rows, _ in tables),  # (2 w - 1)^3 rows
        "anisotropy": anisotropy,
        "position_index": "mis-fm",
    }


def _rename(name: str, renames: Mapping[str, str]) -> str:
    for theirs, ours in renames.items():
        if name.startswith(theirs) and not name.endswith(".relative_position_index"):
            renamed = ours + name.removeprefix(theirs)
            for part, replacement in WITHIN_BLOCKS:
                renamed = renamed.replace(part, replacement)
            return renamed
    return name


FORMATS.register("pymic-pctnet")(PymicPctNet())
