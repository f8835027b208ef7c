"""Published weights by name: where they are, what they saw, what their licence is, how to tell them.

An entry says only what could be read in public; what could not be looked up is marked in its notes. Data that
weights have seen make a poor test set for them, hence it stands here, too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misfm.errors import WeightsError
from misfm.weights.hub import SCHEME, Address, parse_address

BUILTIN = "builtin"
UNKNOWN_LICENCE = "unknown"
"""What a description says where nobody recorded a licence."""
_RESTRICTED = re.compile(r"\bnc\b|non-?commercial|research[- ](use[- ])?only", re.IGNORECASE)


@dataclass(frozen=True)
class Published:
    """Weights that somebody published.

    Attributes:
        name: what to pass to ``--weights``.
        source: address on the hub, or the page from which a person downloads the file.
        file: name of the file.
        network: name for :func:`misfm.models.create`.
        pretext: pretext task.
        data: the scans it was trained on: their name, a colon, and what they are.
        licence: as its publisher states it.
        citation: the paper.
        sha256: hash of the file, where known.
        notes: what else to know, in sentences.
    """

    name: str
    source: str
    file: str
    network: str
    pretext: str
    data: str
    licence: str
    citation: str
    sha256: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def on_hub(self) -> bool:
        """Whether a program can download it."""
        return self.source.startswith(SCHEME)

    @property
    def address(self) -> Address:
        """Where it is on the hub.

        Raises:
            WeightsError: only a person can download it.
        """
        if not self.on_hub:
            raise WeightsError(
                f"{self.name} cannot be downloaded by a program: fetch {self.file} from {self.source} by "
                "hand and give its path."
            )
        return parse_address(self.source)

    @property
    def summary(self) -> str:
        """One line for a list."""
        return (
            f"{self.network}, {self.pretext} on {self.data.partition(':')[0]}; {self.licence}; {self.source}"
        )


NOT_SEEN = "The address follows those of its siblings; the page itself could not be looked up."
BY_OTHERS = "The address was found in the code of others; the page itself could not be looked up."
HASH_BY_OTHERS = "The sha256 is the one that users of the file report."


def _openmind(
    network: str, method: str, pretext: str, sha256: str | None = None, notes: tuple[str, ...] = ()
) -> Published:
    """Weights of the OpenMind benchmark, all laid out alike."""
    prefix = {"resenc-l": "ResEncL", "primus-m": "PrimusM"}[network]
    cited = "Wald et al., An OpenMind for 3D medical vision self-supervised learning, arXiv:2412.17041"
    primus = "; Wald et al., Primus, arXiv:2503.01835" if network == "primus-m" else ""
    return Published(
        name=f"openmind/{network}-{method.lower()}",
        source=f"{SCHEME}MIC-DKFZ/{prefix}-OpenMind-{method}/checkpoint_final.pth",
        file="checkpoint_final.pth",
        network=network,
        pretext=pretext,
        data="OpenMind: 114,570 head and neck MR volumes of OpenNeuro studies",
        licence="CC-BY-4.0",
        citation=f"{cited}{primus}",
        sha256=sha256,
        notes=notes,
    )


_MIS_FM = "https://drive.google.com/drive/folders/13OQh2eM0QFnwBRwBcKCqhKa46CnDojrD"
_MIS_FM_LICENCE = "Apache-2.0 as stated for the repository openmedlab/MIS-FM"

WEIGHTS = (
    _openmind(
        "resenc-l",
        "MAE",
        "mae",
        "7a847af785635335c00e711d16ff4d225d86ecd5992b14c059df2b520e3ee933",
        (HASH_BY_OTHERS,),
    ),
    _openmind("resenc-l", "VF", "openmind-vf"),
    _openmind("resenc-l", "VoCo", "voco", notes=(BY_OTHERS,)),
    _openmind("resenc-l", "MG", "models-genesis", notes=(NOT_SEEN,)),
    _openmind("resenc-l", "SimCLR", "simclr"),
    _openmind("resenc-l", "SwinUNETR", "swinunetr"),
    _openmind("resenc-l", "S3D", "s3d", notes=(BY_OTHERS,)),
    _openmind("primus-m", "MAE", "mae", "b866ac5f61d7e90d3a6cbb00a759ffc9d73beb5e63baa6b3cd654671ebc9a552"),
    _openmind("primus-m", "SimMIM", "simmim"),
    _openmind(
        "primus-m",
        "MG",
        "models-genesis",
        "22a9510c9ea4708e8244188b70116245d650837726f4cd227206426287987f47",
    ),
    _openmind("primus-m", "VF", "openmind-vf"),
    _openmind("primus-m", "VoCo", "voco", notes=(NOT_SEEN,)),
    _openmind(
        "primus-m", "SimCLR", "simclr", "39bb8cc0a5b806d19b97791d676beb450a9114ec6d8031bb412614f606ebee70"
    ),
    _openmind("primus-m", "SwinUNETR", "swinunetr", notes=(NOT_SEEN,)),
    Published(
        name="mis-fm/pctnet-ct10k-volf",
        source=_MIS_FM,
        file="pctnet_ct10k_volf.pt",
        network="pctnet",
        pretext="volume-fusion",
        data=(
            "CT10k: 10,137 public CT (Head-Neck-PET-CT, OPC-Radiomics, HNSCC, QIN-HeadNeck, TCGA-HNSC, LUNA, "
            "TCIA Covid19, LIDC-IDRI, FLARE22, AbdomenCT-1K, ACRIN 6664, TotalSegmentator)"
        ),
        licence=_MIS_FM_LICENCE,
        citation="Wang et al., MIS-FM, arXiv:2306.16925",
        notes=("Which variant of Volume Fusion made it is not stated.",),
    ),
    Published(
        name="mis-fm/fmunet-abk1k-volf",
        source=_MIS_FM,
        file="fmunet_abk1k_volf.pt",
        network="fmunet",
        pretext="volume-fusion",
        data="AbdomenCT-1K: abdominal CT",
        licence=_MIS_FM_LICENCE,
        citation="Wang et al., Volume Fusion-based Self-Supervised Pretraining, 2025",
        notes=("A demo of its authors calls the file fmunet_abd1k_volf.pt.",),
    ),
    Published(
        name=BUILTIN,
        source="this package",
        file="builtin.safetensors",
        network="unet",
        pretext="phantom-anatomy",
        data="generated anatomy: trunks and heads that look like CT, and no patient's scan",
        licence="Apache-2.0",
        citation="misfm itself",
    ),
)
"""All entries, in the order in which they are listed."""


def by_name(name: str) -> Published | None:
    """The entry of this name."""
    return next((entry for entry in WEIGHTS if entry.name == name), None)


def recognised(source: str) -> Published | None:
    """The entry that a name, an address on the hub or the name of a downloaded file means."""
    if source.startswith(SCHEME):
        repos = parse_address(source).repos
        return next((entry for entry in WEIGHTS if entry.on_hub and entry.address.repo in repos), None)
    file = Path(source).name
    telling = (entry for entry in WEIGHTS if not entry.on_hub and entry.file == file)
    return by_name(source) or next(telling, None)


def suggestion(name: str) -> str:
    """How to go on after an unknown name, for the end of a message: the nearest name, or where all are."""
    near = difflib.get_close_matches(name.lower()[:100], [entry.name for entry in WEIGHTS], n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else " (`misfm info published` lists them)"


def notices(source: str, known: Mapping[str, Any]) -> list[str]:
    """What to know before weights are trained on, in sentences: their licence and what they have seen.

    Weights of others carry no fingerprints of their scans. Hence their overlap with a test set can be pointed
    out by the name of the data only.

    Args:
        source: the weights as given.
        known: what :func:`misfm.weights.describe` says of them.
    """
    found = []
    entry = recognised(source)
    licence = known.get("licence", UNKNOWN_LICENCE)
    if licence == UNKNOWN_LICENCE and entry is not None:
        licence = entry.licence
    # Whoever trained weights with misfm knows how they may be used; those of others come with terms.
    by_others = entry is not None or source.startswith(SCHEME) or known.get("format") != "misfm"
    if licence == UNKNOWN_LICENCE and by_others:
        found.append(
            f"The licence of {source} is not recorded: ask its publisher before you pass on what comes of it."
        )
    elif _RESTRICTED.search(licence):
        found.append(f"The licence of {source} is restricted ({licence}), and what comes of it with it.")
    if entry is not None:
        found.append(f"{source} has seen {entry.data}. Test images among these would flatter the results.")
    return found
