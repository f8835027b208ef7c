"""Weights on the Hugging Face hub: an address becomes a checked file in the cache of ``huggingface_hub``.

The hub is asked first, so that a branch is as new as it can be; whatever it answers, or if it cannot be
reached, a file that an earlier call left in the cache serves. Where the cache is, and which server is meant,
is the hub client's own affair (``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``).
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from misfm.errors import WeightsError
from misfm.settings import shown
from misfm.weights.containers import PLAN_FILE
from misfm.weights.file import FILE_NAME
from misfm.weights.reading import reading

SCHEME = "hf://"
PREFERRED = (FILE_NAME, "checkpoint_final.pth")
"""What is taken without a question: our own file, then the one that nnssl releases."""
SUFFIXES = (".safetensors", ".pth", ".pt")
OWNERS = {"AnonRes": "MIC-DKFZ", "MIC-DKFZ": "AnonRes"}
"""An owner of published weights under its other name: OpenMind was anonymous until its paper was accepted."""
TIMEOUT = 10.0
"""Seconds in which the hub has to begin to answer."""

MOST_BYTES, MOST_PLAN_BYTES = 2**35, 2**26
"""Of weights: thirty times the largest that anybody has published for scans. Of the plan beside them."""
LONGEST_NAME, LONGEST_REPO = 200, 96

_REPO = re.compile(r"\w([\w.-]*\w)?/\w([\w.-]*\w)?")
_NAME = re.compile(r"[\w.+ /-]+")
_ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^/@]+))?(/(?P<file>[^@]+))?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger("misfm")


@dataclass(frozen=True)
class Address:
    """``hf://owner/repo[@revision][/file]``; a slash within the revision is written ``%2F``."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"{SCHEME}{self.repo}{revision}" + (f"/{self.file}" if self.file else "")

    @property
    def repos(self) -> tuple[str, ...]:
        """The repository as given, then under the other name of its owner."""
        owner, name = self.repo.split("/")
        return (self.repo, f"{OWNERS[owner]}/{name}") if owner in OWNERS else (self.repo,)

    @property
    def url(self) -> str:
        """Where a person finds the file, or the list of files where none is named."""
        if self.file:
            return hf_hub_url(self.repo, self.file, revision=self.revision)
        revision = quote(self.revision or constants.DEFAULT_REVISION, safe="")
        return f"{constants.ENDPOINT}/{self.repo}/tree/{revision}"


def parse_address(text: str) -> Address:
    """Read an address.

    Raises:
        WeightsError: not of this form.
    """
    match = _ADDRESS.fullmatch(text)
    if match is not None:
        revision = unquote(match["revision"]) if match["revision"] else None
        if _is_repo(match["repo"]) and _is_safe(revision) and _is_safe(match["file"]):
            return Address(match["repo"], revision, match["file"])
    raise WeightsError(
        f"{shown(text)} is no address on the hub: write hf://owner/repo, hf://owner/repo@revision or "
        "hf://owner/repo/file."
    )


@functools.lru_cache
def fetch(address: Address, sha256: str | None = None) -> Path:
    """Download a file, or find it in the cache; one process sees one version of it.

    Args:
        address: without a file, our own weights file is taken, else nnssl's, else the only one there is. An
            adaptation plan is fetched along with a checkpoint, since some need it.
        sha256: what the content must hash to; by default what the hub says, where it does.

    Raises:
        WeightsError: no such repository, revision or file; no access; no network and nothing cached; content
            that is not what was expected.
    """
    try:
        path = _download(address)
    except WeightsError:
        raise
    except Exception as error:  # which one a failed connection raises depends on the hub's HTTP client
        cached = find_cached(address)
        if cached is None:
            raise WeightsError(_explained(error, address)) from error
        _log.info("%s is taken from the cache: %s.", address, _reason(error))
        path = cached
    check(path, sha256)
    return path


def find_cached(address: Address) -> Path | None:
    """The file in the cache, if an earlier call left it there; asks no server and checks no content."""
    for repo in address.repos:
        folder: str | None
        try:
            folder = snapshot_download(repo, revision=address.revision, local_files_only=True)
        except LocalEntryNotFoundError as error:
            folder = getattr(error, "snapshot_path", None)  # set where other files of the snapshot lack
        except (OSError, ValueError):  # a damaged cache holds nothing
            continue
        if folder is None:
            continue
        names = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
        try:
            return Path(folder, choose(names, address))
        except WeightsError:
            continue
    return None


def choose(names: Iterable[str], address: Address) -> str:
    """The weights file among the files of a repository.

    Raises:
        WeightsError: none, not the wanted one, or several.
    """
    known = sorted(names)
    for wanted in (address.file,) if address.file else PREFERRED:
        if wanted in known:
            return wanted
    candidates = [name for name in known if name.endswith(SUFFIXES)]
    shown = ", ".join(candidates[:8]) + (", ..." if len(candidates) > 8 else "")
    if address.file:
        raise WeightsError(f"{address.repo} has no file {address.file}; it has {shown or 'no weights'}.")
    if not candidates:
        raise WeightsError(f"{address} holds no file of weights ({', '.join(SUFFIXES)}).")
    if len(candidates) > 1:
        raise WeightsError(
            f"{address} holds several files of weights ({shown}); say which: {address}/{candidates[0]}."
        )
    return candidates[0]


def check(path: Path, sha256: str | None = None) -> None:
    """Compare the content with ``sha256`` and with what the hub said it would be.

    Raises:
        WeightsError: another content.
    """
    with reading(path, "cannot be read", "delete it and run again to download it anew"):
        recorded = _recorded_sha256(path)
        if sha256 is None and recorded is None:
            return
        actual = _sha256_of(path, path.stat().st_mtime_ns)
    if recorded is not None and actual != recorded:
        raise WeightsError(
            f"{path} is damaged (sha256 {actual}, the hub says {recorded}): delete {path.resolve()} and run "
            "again to download it anew."
        )
    if sha256 is not None and actual != sha256:
        raise WeightsError(
            f"{path} is not the file that misfm knows (sha256 {actual} instead of {sha256}): delete "
            f"{path.resolve()} and run again; if its publisher has replaced it and you trust that, give its "
            "hf:// address instead of the name."
        )


def _is_repo(name: str) -> bool:
    """Whether a repository can be called so; names become folders of the cache."""
    forbidden = any(part in name for part in ("..", "--")) or name.endswith(".git")
    return not forbidden and len(name) <= LONGEST_REPO and _REPO.fullmatch(name) is not None


def _is_safe(name: str | None) -> bool:
    """Whether a revision or file of a repository stays within the folder that the cache has for it."""
    if name is None:
        return True
    parts = name.split("/")
    return len(name) <= LONGEST_NAME and _NAME.fullmatch(name) is not None and not {"", ".", ".."} & {*parts}


def _download(address: Address) -> Path:
    repo, sizes = _list_files(address)
    name = choose(sizes, address)
    _refuse_size(address, name, sizes[name], MOST_BYTES)
    plan = PLAN_FILE if Path(name).parent == Path() else f"{Path(name).parent.as_posix()}/{PLAN_FILE}"
    if plan in sizes and not name.endswith(".safetensors"):
        _refuse_size(address, plan, sizes[plan], MOST_PLAN_BYTES)
        hf_hub_download(repo, plan, revision=address.revision)
    return Path(hf_hub_download(repo, name, revision=address.revision))


def _refuse_size(address: Address, name: str, size: int | None, most: int) -> None:
    if size is not None and size > most:
        raise WeightsError(
            f"{name} of {address} has {size:,} bytes and files of its kind {most:,} at the most: fetch it by "
            "other means and give its path if you trust it."
        )


def _list_files(address: Address) -> tuple[str, dict[str, int | None]]:
    """The repository under the name that the hub knows, and the sizes of its files, None where unknown."""
    refusals = []
    for repo in address.repos:
        try:
            found = HfApi().model_info(repo, revision=address.revision, timeout=TIMEOUT, files_metadata=True)
        except RepositoryNotFoundError as error:
            refusals.append(error)
            continue
        siblings = found.siblings or []
        return repo, {one.rfilename: one.size for one in siblings if _is_safe(one.rfilename)}
    raise refusals[0]


def _explained(error: Exception, address: Address) -> str:
    """Why there is no file, and what to do, in one sentence."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RevisionNotFoundError):
        return (
            f"{address.repo} has no revision '{address.revision}'; give a branch, a tag or a full commit, or "
            "none for the newest."
        )
    if isinstance(error, GatedRepoError) or status == 403:
        return (
            f"{address.repo} is open to those only whom its owner lets in: ask on "
            f"{constants.ENDPOINT}/{address.repo}, run `hf auth login`, and try again."
        )
    if isinstance(error, RepositoryNotFoundError) or status == 401:
        return (
            f"The hub shows no model {address.repo}: check owner and name, or run `hf auth login` if it is "
            "private."
        )
    return (
        f"{address} is not in the cache and could not be downloaded ({_reason(error)}): try again, or fetch "
        f"{address.url} by other means and give the path of the file instead."
    )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".:") if lines else type(error).__name__


def _recorded_sha256(path: Path) -> str | None:
    """The hash that the hub gave a large file: its cache links to contents named by it."""
    name = Path(os.readlink(path)).name if path.is_symlink() else ""
    return name if _SHA256.fullmatch(name) else None


@functools.lru_cache
def _sha256_of(path: Path, modified: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
