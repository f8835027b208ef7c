"""Refuse large files: each copy stays in the history, and in every clone, for ever.

Looks at the files that git tracks or has staged, or at those that are named.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 500_000
"""Bytes."""
ALLOWED = {
    "src/misfm/weights/builtin.safetensors": (7_000_000, "the weights that ship with the package"),
    "src/misfm/viewer/page/niivue.js": (2_300_000, "NiiVue, whole, so that the viewer needs no network"),
    "tests/golden/ckpt_pymic_pctnet_5class.pt": (1_700_000, "a published layout, whole"),
    "tests/golden/fmunet_res1.safetensors": (600_000, "what a published network computes"),
    "tests/golden/primus.safetensors": (800_000, "what a published network computes"),
    "tests/golden/resenc.safetensors": (1_700_000, "what a published network computes"),
}
"""Larger files, each with its own limit and the reason why it is here."""


def tracked() -> list[str]:
    """Files in git's index."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name]


def too_large(names: list[str]) -> list[str]:
    """A sentence for each file that is too large."""
    sentences = []
    for name in names:
        path, (limit, _) = ROOT / name, ALLOWED.get(name, (LIMIT, ""))
        if path.is_file() and (size := path.stat().st_size) > limit:
            sentences.append(
                f"{name} has {size:,} bytes, and {limit:,} are allowed: leave it out, or list it "
                "with a reason in .ci/size_guard.py."
            )
    return sentences


def main(names: list[str]) -> int:
    """Say what is too large; 1 if something is."""
    sentences = too_large(names or tracked())
    for sentence in sentences:
        print(sentence, file=sys.stderr)
    return int(bool(sentences))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
