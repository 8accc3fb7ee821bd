"""Bundles on disk: written so that a crash at any moment leaves the old one or the new one, never half of each.

.. code-block:: text

    page/
      manifest.json             what there is: format, versions, sizes, SHA-256, the pieces' classes and configurations
      files-3f0c19a2b7d4/       what the manifest names
        model.safetensors
        schema.json

Replacing a folder that is not empty is not atomic, replacing a file is. So the files of a new bundle go into a new
``files-*`` folder, everything is synced to the disk, and the manifest is replaced last: that is the moment of saving. What
the manifest does not name (the previous files, the rests of a writer that was killed) is removed by the next writer.
Foreign files in the folder are left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from torch import Tensor

from recstack.bundle import tensors as safetensors
from recstack.errors import BundleError

FORMAT = 1
_MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_FOLDER = re.compile(r"files-[0-9a-f]{12}")
_DRAFT = re.compile(r"\.manifest-[0-9a-f]{12}\.tmp")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Piece:
    """One part of a bundle: the class that made it (``"module:Class"``), its JSON configuration and its tensors.

    Tensors may be given as torch tensors (any device) or numpy arrays; they come back as torch tensors on the CPU.
    """

    class_path: str
    config: dict[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor | np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """What :func:`read` found: named pieces, `meta`, and the text files saved beside them."""

    pieces: dict[str, Piece]
    meta: dict[str, Any]
    files: dict[str, str]
    path: Path
    version: str

    def piece(self, name: str) -> Piece:
        """The piece called `name`; a BundleError says what there is instead."""
        if name not in self.pieces:
            raise BundleError(f"{str(self.path)!r} has no piece {name!r}; it has {', '.join(sorted(self.pieces))}.")
        return self.pieces[name]


class _File(msgspec.Struct):
    sha256: str
    size: int


class _Entry(msgspec.Struct):
    class_: str = msgspec.field(name="class")
    config: dict[str, Any]


class _Manifest(msgspec.Struct):
    format: int
    recstack: str
    folder: str
    files: dict[str, _File]
    pieces: dict[str, _Entry]
    meta: dict[str, Any]


def write(
    path: str | os.PathLike[str],
    pieces: Mapping[str, Piece],
    meta: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Save a bundle at `path`, replacing a previous one atomically. Returns the path.

    `meta` is JSON-able; numbers that are not finite become null. `files` are texts to be read by people (schema.json).
    Raises BundleError for what cannot be saved, OSError when the disk fails; then the previous bundle is as it was.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise BundleError(f"{str(path)!r} is a file; a bundle is a folder.")
    content: dict[str, Iterable[bytes | memoryview]] = {}
    for name, piece in pieces.items():
        _check_name(name)
        if piece.tensors:
            content[f"{name}.safetensors"] = safetensors.serialise(piece.tensors)
    for name, text in (files or {}).items():
        _check_name(name)
        if name.endswith(".safetensors") or name == _MANIFEST:
            raise BundleError(f"The text file {name!r} has a name that the bundle itself uses.")
        content[name] = [text.encode()]
    entries = {
        name: {"class": piece.class_path, "config": _plain(piece.config, f"piece {name!r}", strict=True)}
        for name, piece in pieces.items()
    }
    manifest = {"format": FORMAT, "recstack": _version(), "meta": _plain(meta or {}, "meta", strict=False)}

    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent)
    with locked(path):
        token = uuid.uuid4().hex[:12]
        folder, draft = path / f"files-{token}", path / f".manifest-{token}.tmp"
        try:
            folder.mkdir()
            sums = {name: _write_file(folder / name, blocks) for name, blocks in content.items()}
            sync_folder(folder)
            manifest |= {"folder": folder.name, "files": sums, "pieces": entries}
            manifest["sha256"] = _fingerprint(manifest)
            _write_file(draft, [json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False).encode()])
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        os.replace(draft, path / _MANIFEST)
        sync_folder(path)  # the old files may go only when the new manifest cannot be lost any more
        _sweep(path, keep=folder.name)
    return path


def read(path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
    """The bundle at `path`, with the checksum of every file verified (`verify=False`: only the sizes).

    Reading while another process saves gives the old bundle or the new one. Raises BundleError, in one sentence, for what is
    missing, truncated, altered, or written in another format.
    """
    path = Path(path)
    while True:
        text = _manifest_text(path)
        try:
            return _read(path, _parse(path, text), verify)
        except BundleError:
            if _manifest_text(path) == text:  # else a writer replaced the bundle under our hands
                raise


def _read(path: Path, manifest: _Manifest, verify: bool) -> Bundle:
    folder = path / manifest.folder
    for name, expected in manifest.files.items():
        _check_file(folder / name, expected, verify)
    try:
        pieces = {
            name: Piece(
                entry.class_,
                entry.config,
                safetensors.load(folder / f"{name}.safetensors") if f"{name}.safetensors" in manifest.files else {},
            )
            for name, entry in manifest.pieces.items()
        }
        texts = {
            name: (folder / name).read_bytes().decode() for name in manifest.files if not name.endswith(".safetensors")
        }
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"A file of the bundle {str(path)!r} cannot be read: {error}.") from error
    return Bundle(pieces, manifest.meta, texts, path, manifest.recstack)


def _manifest_text(path: Path) -> bytes:
    try:
        return (path / _MANIFEST).read_bytes()
    except FileNotFoundError:
        raise BundleError(f"There is no bundle at {str(path)!r}: it has no {_MANIFEST}.") from None
    except OSError as error:
        raise BundleError(f"The bundle {str(path)!r} cannot be read: {error}.") from error


def _parse(path: Path, text: bytes) -> _Manifest:
    what = f"The manifest of {str(path)!r}"
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{what} is not JSON ({error}); it was truncated or altered.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("format"), int):
        raise BundleError(f"{what} does not say its format; it was not written by RecStack.")
    if raw["format"] != FORMAT:
        raise BundleError(
            f"{what} has format {raw['format']}, and RecStack {_version()} reads format {FORMAT}; "
            f"read it with RecStack {raw.get('recstack', 'of that format')}."
        )
    if raw.pop("sha256", None) != _fingerprint(raw):
        raise BundleError(f"{what} was altered: its checksum does not match.")
    try:
        manifest = msgspec.convert(raw, _Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f"{what} is malformed: {error}.") from error
    if not _FOLDER.fullmatch(manifest.folder):
        raise BundleError(f"{what} names the folder {manifest.folder!r}, which is not one of a bundle.")
    for name in (*manifest.files, *manifest.pieces):
        _check_name(name)
    return manifest


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BundleError(f"{name!r} is not a name for a part of a bundle; use letters, digits, '_', '-' and '.'.")


def _check_file(file: Path, expected: _File, verify: bool) -> None:
    try:
        size = file.stat().st_size
        if size != expected.size:
            raise BundleError(
                f"{str(file)!r} has {size} bytes in place of {expected.size}; it was truncated or altered."
            )
        if verify and _sha256(file) != expected.sha256:
            raise BundleError(f"{str(file)!r} was altered: its checksum does not match.")
    except FileNotFoundError:
        raise BundleError(f"{str(file)!r} is missing from the bundle.") from None
    except OSError as error:
        raise BundleError(f"{str(file)!r} cannot be read: {error}.") from error


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _write_file(file: Path, blocks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with open(file, "wb") as stream:
        for block in blocks:
            for start in range(0, len(block), _BLOCK):
                part = block[start : start + _BLOCK]
                stream.write(part)
                digest.update(part)
                size += len(part)
        stream.flush()
        os.fsync(stream.fileno())
    return {"sha256": digest.hexdigest(), "size": size}


def sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows has no handle of a folder to sync
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One writer at a time: the second would sweep away the files of the first. A killed writer lets go by itself."""
    if os.name == "nt":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _sweep(path: Path, keep: str) -> None:
    """Remove what earlier writers left. The bundle is saved by now, so that a failure here only leaves rests behind."""
    for entry in path.iterdir():
        if _FOLDER.fullmatch(entry.name) and entry.name != keep:
            shutil.rmtree(entry, ignore_errors=True)
        elif _DRAFT.fullmatch(entry.name):
            with contextlib.suppress(OSError):
                entry.unlink()


def _plain(value: Any, where: str, strict: bool) -> Any:
    """`value` as plain JSON types: numpy scalars and tuples unwrapped; not finite is an error if `strict`, else null."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if strict and not math.isfinite(value):
            raise BundleError(f"The configuration of {where} holds {value}; only finite numbers can be saved.")
        return value if math.isfinite(value) else None
    if isinstance(value, tuple | list):
        return [_plain(item, where, strict) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, where, strict) for key, item in value.items()}
    raise BundleError(f"{where} holds a {type(value).__name__}, which is not JSON; give plain values with text keys.")


def _version() -> str:
    try:
        return metadata.version("recstack")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "0"
