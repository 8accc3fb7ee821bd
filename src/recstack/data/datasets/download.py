"""Fetching the originals of public data sets, for those who have a network."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path
from typing import IO

from recstack.data.datasets.about import Remote, about
from recstack.data.datasets.files import has_file, resolve_data_dir
from recstack.errors import ConfigError, DataError

TIMEOUT = 60  # seconds without a byte


def download(name: str, data_dir: str | Path | None = None, *, force: bool = False) -> Path:
    """Fetch a set's original files, check them, and put them where its loader looks.

    Files that are already there are kept, unless `force`. A file is written under another name first, so a broken-off
    download leaves nothing that looks like data. The set's terms are printed: they bind you. This was tested against a
    local server only; the addresses and checksums are the publishers', the live hosts were not reached.

    Args:
        name: as `describe` lists it: "ml-1m", "ml-100k", "kuairand-pure", "census-income", "lightgcn-gowalla" ...
        data_dir: the folder of folders; see `resolve_data_dir`.

    Returns:
        The set's folder.

    Raises:
        ConfigError: an unknown set, or one without a public address.
        DataError: no connection, a file cut short, a checksum that does not match, an archive without the file.
    """
    this = about(name)
    if not this.remotes:
        raise ConfigError(f"Data set {name!r} has no address to download from; {this.get}.")
    folder = resolve_data_dir(data_dir) / this.folders[0]
    print(f"{this.name}: {this.what} Terms: {this.terms}")
    for remote in this.remotes:
        if force or not all(has_file(folder, n) for n in remote.names):
            fetch(remote, folder)
    return folder


def fetch(remote: Remote, folder: Path) -> None:
    """Fetch one file into `folder`, check it, and take out of it what is wanted.

    Raises:
        DataError: no connection, a file cut short, a checksum that does not match, an archive without the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{os.getpid()}.part"
    try:
        _stream(remote.url, part)
        _check(remote, part)
        if not remote.keep:
            os.replace(part, folder / remote.names[0])
            return
        missing = set(remote.keep)
        with part.open("rb") as file:
            _unpack(file, remote.url, missing, folder)
        if missing:
            raise DataError(f"{remote.url} holds no file {sorted(missing)[0]!r}.")
    finally:
        part.unlink(missing_ok=True)


def _stream(url: str, path: Path) -> None:
    print(f"fetching {url}")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, path.open("wb") as out:
            shutil.copyfileobj(answer, out, 1 << 20)
            due = answer.headers.get("Content-Length")
    except (OSError, HTTPException) as e:  # URLError and timeouts are OSErrors
        raise DataError(f"Cannot fetch {url}: {getattr(e, 'reason', None) or e}.") from e
    if due is not None and path.stat().st_size != int(due):
        raise DataError(f"{url} was cut short: {path.stat().st_size} of {due} bytes came. Try again.")


def _check(remote: Remote, path: Path) -> None:
    if remote.checksum is None:
        print(f"no published checksum is known for {remote.url}; computed sha256:{_digest(path, 'sha256')}; pin it")
        return
    kind, _, due = remote.checksum.partition(":")
    came = _digest(path, kind)
    if came != due:
        raise DataError(
            f"{remote.url} is not the published file: its {kind} is {came}, and {due} was due. Nothing was kept; try "
            "again, and if it stays so, the file was replaced at its source."
        )


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        if kind != "git":
            return hashlib.file_digest(file, kind).hexdigest()
        return hashlib.sha1(b"blob %d\0" % path.stat().st_size + file.read(), usedforsecurity=False).hexdigest()


def _unpack(file: IO[bytes], source: str, missing: set[str], folder: Path) -> None:
    """Take the files in `missing`, and no other, out of an archive or one inside it; by last name, so no path escapes."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for info in archive.infolist():
                    if not info.is_dir():
                        with archive.open(info) as member:
                            _take(member, info.filename, source, missing, folder)
            return
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            for info in archive:
                member = archive.extractfile(info) if info.isfile() else None
                if member is not None:
                    _take(member, info.name, source, missing, folder)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError) as e:
        raise DataError(f"{source} is a damaged archive: {e}.") from e


def _take(member: IO[bytes], path: str, source: str, missing: set[str], folder: Path) -> None:
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    if name in missing:
        part = folder / f".{os.getpid()}.{name}.part"
        try:
            with part.open("wb") as out:
                shutil.copyfileobj(member, out, 1 << 20)
            os.replace(part, folder / name)
        finally:
            part.unlink(missing_ok=True)
        missing.discard(name)
    elif name.endswith((".zip", ".tar.gz", ".tgz", ".tar")):
        _unpack(io.BytesIO(member.read()), f"{source} ({name})", missing, folder)
