"""Commands that label, score and hand over."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from misfm.cli.app import app
from misfm.cli.options import Json, Scheduler, Triple, Workers, numbers
from misfm.cli.output import finish, say, say_dice
from misfm.terminal import Progress


@app.command()
def predict(
    run: Annotated[
        list[str], typer.Option(help="Run, weights file or folder of folds; several label together.")
    ],
    inputs: Annotated[list[Path], typer.Option("--input", help="Files, DICOM folders or trees of scans.")],
    output: Annotated[Path, typer.Option(help="Folder for the label maps and predictions.json.")],
    mask_format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="nifti, nrrd, dicom-seg or rtstruct.")
    ] = "nifti",
    overlap: Annotated[float, typer.Option(help="Overlap of windows.", min=0, max=0.9)] = 0.5,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over mirrors, along axes mirrored in training.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write probabilities, too: CASE.npz, as nnU-Net does.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Label scans, too, that are not of the kind the weights are for.")
    ] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also write CASE_uncertainty.nii.gz: how unsure, by voxel.")
    ] = False,
    precision: Annotated[
        str, typer.Option(help="auto (16 bits where the device is fast at them), float32, bfloat16, float16.")
    ] = "auto",
    workers: Workers = 0,
    scheduler: Scheduler = None,
    devices: Annotated[
        str | None, typer.Option(metavar="N|auto", help="GPUs to use, a process for each.")
    ] = None,
    more_inputs: Annotated[list[Path] | None, typer.Argument(hidden=True)] = None,
    as_json: Json = False,
) -> None:
    """Write a label map for each scan, on the scan's own grid; --input takes several paths."""
    from misfm.commands.predict import predict_files
    from misfm.inference.case_work import PredictionOptions
    from misfm.inference.precision import check_precision
    from misfm.parallel import Where

    with Progress("Predicting") as progress:
        paths = [*inputs, *(more_inputs or [])]
        options = PredictionOptions(
            overlap=overlap,
            tta=tta,
            format=mask_format,
            probabilities=probabilities,
            force=force,
            uncertainty=uncertainty,
            precision=check_precision(precision),
        )
        where = Where(workers=workers, scheduler=scheduler, devices=devices)
        prediction = predict_files(run, paths, output, options, where=where, progress=progress.update)
    failed = f", {len(prediction.failed)} scan(s) failed" if prediction.failed else ""
    say(f"{output}: {len(prediction.written)} label map(s){failed}")
    written = {case: str(path) for case, path in prediction.written.items()}
    warnings = {case: list(of) for case, of in prediction.warnings.items()}
    finish({"written": written, "failed": dict(prediction.failed), "warnings": warnings}, as_json)
    if prediction.failed:
        raise typer.Exit(1)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Option(help="Folder of predicted label maps.")],
    references: Annotated[Path, typer.Option(help="Folder of reference label maps of the same names.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    tolerance: Annotated[
        float | None, typer.Option(help="Mm, of the surface Dice; default one voxel diagonal.", min=0)
    ] = None,
    workers: Workers = 0,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Score label maps: Dice, HD95, ASSD, surface Dice, with intervals."""
    from misfm.commands.evaluate import evaluate as run
    from misfm.parallel import Where

    with Progress("Evaluating") as progress:
        result = run(
            predictions,
            references,
            out,
            tolerance_mm=tolerance,
            where=Where(workers, scheduler),
            progress=progress.update,
        )
    for folder, absent in result["missing"].items():
        if absent:
            say(f"Not scored, {folder} missing: {', '.join(absent)}")
    say_dice(result)
    shown = ("mean", "interval95", "warnings")
    finish({"out": str(out), **{name: result[name] for name in shown}}, as_json)


@app.command()
def export(
    source: Annotated[str, typer.Argument(metavar="RUN_OR_WEIGHTS", help="Run folder, file or name.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="nnunet, safetensors, onnx or one you added.")],
    out: Annotated[Path, typer.Option(help="File to write; for nnunet a folder.")],
    dataset: Annotated[
        Path | None, typer.Option(help="For nnunet: the dataset's folder in nnUNet_preprocessed.")
    ] = None,
    patch_size: Triple = None,
    as_json: Json = False,
) -> None:
    """Hand weights over to nnU-Net or ONNX, or convert a published checkpoint to a weights file."""
    from misfm.commands.export import export as run

    size = None if patch_size is None else numbers(patch_size, int, "--patch-size")
    result = run(source, to, out, dataset=dataset, patch_size=size)
    for line in (*result["notes"], *(f"Written: {path}" for path in result["written"])):
        say(line)
    finish(result, as_json)
