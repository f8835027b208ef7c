"""Where raw data are read from: a folder, an archive, a git directory, or the network.

Every source is a function from a path in it to the content of that file.
"""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

Read = Callable[[str], bytes]
"""Returns the content of a file of a source, by its path in there."""


def open_source(path: Path) -> Read:
    """Read from a folder, a tar or zip archive, or a git directory; all may lie in a folder in there."""
    if (path / "HEAD").exists():
        return lambda name: from_git(path, name)
    if path.is_dir():
        files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
        return lambda name: files[find(files, name, path)].read_bytes()
    if zipfile.is_zipfile(path):
        zipped = zipfile.ZipFile(path)
        return lambda name: zipped.read(find(zipped.namelist(), name, path))
    if path.exists() and tarfile.is_tarfile(path):
        tar = tarfile.open(path)  # noqa: SIM115
        members = {member.name: member for member in tar.getmembers() if member.isfile()}
        return lambda name: tar.extractfile(members[find(members, name, path)]).read()  # type: ignore[union-attr]
    raise SystemExit(f"{path} is no folder, tar or zip archive, or git directory.")


def find(names: Iterable[str], name: str, source: Path) -> str:
    """The name of a file in a source, in which all may lie in a folder."""
    for candidate in names:
        if candidate == name or candidate.endswith(f"/{name}"):
            return candidate
    raise SystemExit(f"{source} lacks {name}.")


def from_git(folder: Path, name: str) -> bytes:
    """A file as it was last committed."""
    shown = subprocess.run(["git", f"--git-dir={folder}", "show", f"HEAD:{name}"], capture_output=True)
    if shown.returncode:
        raise SystemExit(f"{folder} lacks {name}: {shown.stderr.decode().strip()}")
    return shown.stdout


def from_address(address: str, folder: Path) -> Read:
    """Download each file below an address when it is read, and keep it in a folder."""

    def read(path: str) -> bytes:
        target = folder / path
        download(f"{address}/{quote(path)}", target)
        return target.read_bytes()

    return read


def download(url: str, target: Path, *, md5: str | None = None, attempts: int = 5) -> None:
    """Download a file unless it is there, going on where an earlier attempt stopped."""
    if target.exists():
        return
    part = target.with_name(f"{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(attempts):
        try:
            download_rest(url, part)
            break
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{url}: {error.code} {error.reason}") from None
        except OSError as error:
            print(f"{url}: {error}", flush=True)
            if attempt == attempts - 1:
                raise SystemExit("Start again later: what has come stays.") from None
    if md5 is not None and hashlib.md5(part.read_bytes()).hexdigest() != md5:
        part.unlink()
        raise SystemExit(f"{url} has another MD5 than {md5}: nothing was kept.")
    part.replace(target)


def download_rest(url: str, part: Path) -> None:
    """Append what is missing of a file, or write it anew where the server sends all of it."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            return
        raise
    with answer, part.open("ab" if answer.status == 206 else "wb") as file:
        expected = answer.headers.get("Content-Length")
        received = 0
        while block := answer.read(1 << 20):
            received += file.write(block)
    if expected is not None and received < int(expected):
        raise OSError(f"broke off after {received} of {expected} bytes")
