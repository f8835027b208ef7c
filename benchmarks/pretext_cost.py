"""What a step of each pretext task costs, and how many steps a given compute buys.

    OMP_NUM_THREADS=1 python benchmarks/pretext_cost.py --store STORE --seconds 300 RECIPE[:KEY=VALUE]...

Counts processor seconds of this process, so another program beside it disturbs little. The steps printed are
the settings with which `misfm compare` gives each recipe equal pretraining compute.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

from misfm.commands.pretrain import pretrain
from misfm.commands.trials import Trial, pretrain_settings
from misfm.config import CompareSettings
from misfm.files import write_json

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Measure each recipe and print its steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--store", required=True)
    parser.add_argument("--seconds", type=float, default=300.0, help="compute of a pretraining")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--steps", type=int, nargs=2, default=(4, 24), help="lengths of the two timed runs")
    arguments = parser.parse_args()
    logging.getLogger("misfm").setLevel(logging.ERROR)
    costs = {}
    for text in arguments.recipes:
        recipe, _, own = text.partition(":")
        assignments = [*arguments.set, *([f"{recipe}:{own}"] if own else [])]
        costs[recipe] = cost_of(recipe, arguments.store, assignments, *arguments.steps)
        steps = round(arguments.seconds / costs[recipe])
        print(f"{costs[recipe]:7.3f} s   --set-pretrain {recipe}:training.steps={steps}", flush=True)
    result = {"seconds": arguments.seconds, "processor_seconds_per_step": costs}
    write_json(RESULTS / "pretext_cost.json", result)


def cost_of(recipe: str, store: str, assignments: list[str], few: int, many: int) -> float:
    """Processor seconds of one step: the difference between a longer and a shorter pretraining.

    A first run generates anatomy for the tasks that learn from it; that is not counted.
    """
    seconds = []
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        for steps in (1, few, many):
            settings = CompareSettings(
                store=store,
                dataset="",
                recipes=(recipe,),
                pretrain=(*assignments, f"training.steps={steps}", "validation_batches=1"),
            )
            began = time.process_time()
            pretrain(pretrain_settings(settings, Trial("unet", recipe)), run)
            seconds.append(time.process_time() - began)
            rmtree(run)
    return (seconds[2] - seconds[1]) / (many - few)


if __name__ == "__main__":
    main()
