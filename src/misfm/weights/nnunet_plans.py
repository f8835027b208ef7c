"""Plans with which nnU-Net builds the network of a ResEnc and prepares scans as its weights want them.

nnU-Net orders the axes of an array as the file stores them, which for axial scans is (D, H, W); it may then
put the axis of the thickest slices first. These plans leave the axes where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from misfm.data.intensity import IntensityRule, Kind, ct_normalisation
from misfm.documents import read_json
from misfm.errors import DataError
from misfm.models.resenc import ResEnc
from misfm.settings import PositiveShape, Spacing
from misfm.volume import Shape, triple
from misfm.weights.file import WeightsInfo

PLANS_NAME = "misfmPlans"
CONFIGURATION = "3d_fullres"
CHECKPOINT, STEPS_FILE = "checkpoint_final.pth", "next_steps.txt"
PLACEHOLDER = "Dataset000_NAME"
"""Name of the dataset in plans made without one."""

KNOWN_PLANS = ("nnUNetPlans", *(f"nnUNetResEncUNet{size}Plans" for size in ("", "M", "L", "XL")))
"""What nnU-Net's own planners call their plans."""

CT, Z_SCORE = "CTNormalization", "ZScoreNormalization"
SCHEMES: Mapping[Kind, str] = {
    "ct": CT,
    "mr": Z_SCORE,
    "pet": Z_SCORE,
    "nonorm": "NoNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}
"""nnU-Net's name of how each kind of channel is normalised, or of what comes nearest."""
AXES = (0, 1, 2)
BATCH_SIZE = 2
MEDIANS = ("original_median_spacing_after_transp", "original_median_shape_after_transp")

RESAMPLING = {"order_z": 0, "force_separate_z": None}
PREPARATION: dict[str, Any] = {
    "preprocessor_name": "DefaultPreprocessor",
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, **RESAMPLING},
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, **RESAMPLING},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, **RESAMPLING},
    "batch_dice": False,
}
"""What nnU-Net plans for every dataset; plans of the dataset itself have precedence."""


class _Checked(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class _Whole(_Checked):
    """What is used of a dataset's plans: any of it may be damaged."""

    dataset_name: Annotated[str, Field(pattern=r"^[^/\\\"`$\x00-\x1f]+$")]
    """Part of a path, and of commands to be copied."""
    original_median_spacing_after_transp: Spacing
    original_median_shape_after_transp: Spacing
    foreground_intensity_properties_per_channel: dict[str, Any] = {}
    image_reader_writer: str = ""


class _Configuration(_Checked):
    patch_size: PositiveShape
    spacing: Spacing
    normalization_schemes: Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True)
class DatasetPlans:
    """What nnU-Net planned for a dataset, its axes put back in the order of the files.

    Attributes:
        name: of the dataset, ``DatasetXXX_Name``.
        top: everything but the configurations.
        configuration: that of :data:`CONFIGURATION`.
        schemes: how each channel is normalised.
        spacing: mm along (D, H, W).
        patch_size: voxels along (D, H, W).
    """

    name: str
    top: Mapping[str, Any]
    configuration: Mapping[str, Any]
    schemes: tuple[str, ...]
    spacing: Spacing
    patch_size: Shape

    @classmethod
    def read(cls, folder: Path) -> DatasetPlans:
        """Read the plans of a dataset in nnU-Net's folder of preprocessed data.

        Raises:
            DataError: no plans there, none for 3D, or damaged ones.
        """
        path = next((path for name in KNOWN_PLANS if (path := folder / f"{name}.json").is_file()), None)
        if path is None:
            raise DataError(
                f"{folder} holds no plans of nnU-Net such as nnUNetPlans.json: run `nnUNetv2_plan_and_"
                "preprocess -d ID --no_pp` and give the dataset's folder in nnUNet_preprocessed."
            )
        try:
            plans = read_json(path)
            configuration = plans["configurations"][CONFIGURATION]
            _Whole.model_validate(plans)
            _Configuration.model_validate(configuration)
            order = plans["transpose_forward"]
            top = {key: value for key, value in plans.items() if key != "configurations"}
            for key in MEDIANS:
                top[key] = in_file_order(plans[key], order)
            patch_size = triple(in_file_order(configuration["patch_size"], order))
            spacing = triple(in_file_order(configuration["spacing"], order))
            schemes = tuple(configuration["normalization_schemes"])
            return cls(plans["dataset_name"], top, configuration, schemes, spacing, patch_size)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            else:
                reason = f"{error!r}"
            raise DataError(
                f"{path} has no complete plan for {CONFIGURATION} ({reason}): plan the dataset again with "
                "nnU-Net 2.5 or newer."
            ) from error


def in_file_order(values: Sequence[Any], transpose_forward: Sequence[int]) -> list[Any]:
    """Values of axes that nnU-Net has transposed, in the order of the axes of the file."""
    ordered = dict(zip(transpose_forward, values, strict=True))
    return [ordered[axis] for axis in AXES]


def plan(
    backbone: ResEnc, info: WeightsInfo, patch_size: Sequence[int], dataset: DatasetPlans | None
) -> dict[str, Any]:
    """Write plans for :data:`CONFIGURATION` with exactly the topology of ``backbone``.

    Args:
        backbone: the network.
        info: description of the weights; the spacing and intensities they were trained with are planned.
        patch_size: voxels (D, H, W) of a training patch; rounded up to what nnU-Net accepts.
        dataset: what nnU-Net planned for the dataset: fills in what the weights do not say. Without it the
            plans bear the name :data:`PLACEHOLDER`.
    """
    size = trainable(patch_size, backbone)
    spacing = info.spacing or (dataset.spacing if dataset else (1.0, 1.0, 1.0))
    schemes, properties = _intensities(info, dataset)
    top = {
        **dict(zip(MEDIANS, (list(spacing), size), strict=True)),
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        **(dataset.top if dataset else {}),
    }
    old_spacing, shape = (top[key] for key in MEDIANS)
    planned = dataset.configuration if dataset else {}
    configuration = {
        **{key: planned.get(key, value) for key, value in PREPARATION.items()},
        "data_identifier": f"{PLANS_NAME}_{CONFIGURATION}",
        "batch_size": BATCH_SIZE,
        "patch_size": size,
        "median_image_size_in_voxels": [
            n * a / b for n, a, b in zip(shape, old_spacing, spacing, strict=True)
        ],
        "spacing": list(spacing),
        "normalization_schemes": schemes,
        "use_mask_for_norm": planned.get("use_mask_for_norm", [False] * len(schemes)),
        "architecture": architecture(backbone),
    }
    return {
        **top,
        "dataset_name": dataset.name if dataset else PLACEHOLDER,
        "plans_name": PLANS_NAME,
        "transpose_forward": list(AXES),
        "transpose_backward": list(AXES),
        "experiment_planner_used": "misfm export",
        "foreground_intensity_properties_per_channel": properties,
        "configurations": {CONFIGURATION: configuration},
    }


def trainable(patch_size: Sequence[int], backbone: ResEnc) -> list[int]:
    """``patch_size`` rounded up to whole voxels at the coarsest level, and at least two of them.

    nnU-Net pads no patches, and its instance norm refuses a single voxel.
    """
    counts = [-(-side // divisor) for side, divisor in zip(patch_size, backbone.min_divisor, strict=True)]
    if max(counts) == 1:
        counts = [2, 2, 2]
    return [count * divisor for count, divisor in zip(counts, backbone.min_divisor, strict=True)]


def architecture(backbone: ResEnc) -> dict[str, Any]:
    """The network in the form of nnU-Net's plans."""
    options = backbone.options
    num_levels = len(options["channels"])
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": {
            "n_stages": num_levels,
            "features_per_stage": list(options["channels"]),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [list(kernel) for kernel in options["kernel_sizes"]],
            "strides": [[1, 1, 1], *(list(stride) for stride in options["strides"])],
            "n_blocks_per_stage": list(options["blocks"]),
            "n_conv_per_stage_decoder": [options["convs_per_level"]] * (num_levels - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def next_steps(planned: Mapping[str, Any], notes: Sequence[str], checkpoint: str) -> str:
    """What to run with the exported files, and what to know about them.

    Args:
        planned: the plans, from :func:`plan`.
        notes: sentences about the weights.
        checkpoint: path of their file in the folder.
    """
    name, configuration = planned["dataset_name"], planned["configurations"][CONFIGURATION]
    number = name.removeprefix("Dataset").split("_")[0].lstrip("0") or "ID"
    unnamed = (
        "0. Plan your dataset (nnUNetv2_plan_and_preprocess -d ID --no_pp) and export again with\n"
        "   --dataset $nnUNet_preprocessed/DatasetXXX_NAME. Or write its name for dataset_name in\n"
        f"   {PLANS_NAME}.json, check spacing and image_reader_writer there, and use name and ID below.\n"
    )
    patch, spacing = (
        " x ".join(f"{value:g}" for value in configuration[key]) for key in ("patch_size", "spacing")
    )
    lines = [
        "Run in this folder, with nnUNet_raw, nnUNet_preprocessed and nnUNet_results set:",
        "",
        f'{unnamed if name == PLACEHOLDER else ""}1. cp {PLANS_NAME}.json "$nnUNet_preprocessed/{name}/"',
        f"2. nnUNetv2_preprocess -d {number} -plans_name {PLANS_NAME} -c {CONFIGURATION}",
        f"3. nnUNetv2_train {number} {CONFIGURATION} 0 -p {PLANS_NAME} -pretrained_weights {checkpoint}",
        "",
        f"Patches of {patch} voxels in batches of {configuration['batch_size']}, spacing {spacing} mm, "
        f"intensities by {', '.join(configuration['normalization_schemes'])}.",
        "Training takes encoder and decoder, never the segmentation layers, with the learning rate it has",
        "without pretraining. nnU-Net leaves the axes as files store them; misfm trains with slices first,",
        "which is the same where files store axial slices.",
        *notes,
    ]
    return "\n".join(lines) + "\n"


def _intensities(info: WeightsInfo, dataset: DatasetPlans | None) -> tuple[list[str], dict[str, Any]]:
    """Normalisation and foreground statistics of each channel.

    nnU-Net's CT normalisation clips, shifts and scales by statistics of the plans, hence a window of HU is
    planned exactly. Weights of CT leave the other channels of a dataset to its own plans.
    """
    rules = info.rules
    number = len(dataset.schemes) if dataset else info.in_channels
    each: Sequence[IntensityRule | None] = [None] * number
    if len(set(rules)) == 1:
        each = [rules[0]] * number
    elif len(rules) == number:
        each = rules
    schemes = [SCHEMES[rule.kind] if rule else Z_SCORE for rule in each]
    if dataset:
        pairs = zip(each, schemes, dataset.schemes, strict=True)
        schemes = [theirs if rule is None or scheme == CT else scheme for rule, scheme, theirs in pairs]
    measured = dataset.top.get("foreground_intensity_properties_per_channel", {}) if dataset else {}
    properties: dict[str, Any] = {}
    for channel, (rule, scheme) in enumerate(zip(each, schemes, strict=True)):
        properties[str(channel)] = measured.get(str(channel), {})
        if rule and rule.kind == "ct" and scheme == CT:
            window = ct_normalisation(rule)
            properties[str(channel)] = {
                "percentile_00_5": window.lower,
                "percentile_99_5": window.upper,
                "mean": window.shift,
                "std": window.scale,
            }
    return schemes, properties
