"""Arrays in a folder: written by appending, complete once the manifest says so, read as memory maps.

.. code-block:: text

    store/
      columns.json              what there is: format, content, the sizes of the files
      arrays-3f0c19a2b7d4/      what the manifest names
        user.i32.npy

A new store goes into a new ``arrays-*`` folder and the manifest is replaced last, so that a crash or a full disk leaves the
store before it as it was. Arrays are appended with `write`, not stored through a map: a full disk is then an error with a
name, where a store into a map would kill the process.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from recstack.bundle.store import sync_folder
from recstack.errors import DataError

FORMAT = 2
MANIFEST = "columns.json"
_FOLDER = re.compile(r"arrays-[0-9a-f]{12}")


class Writer:
    """A new set of arrays for `folder`; used with `with`, which removes what was not finished.

    Raises:
        DataError: a file cannot be written, by name.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder / f"arrays-{uuid.uuid4().hex[:12]}"
        self._files: dict[str, tuple[BinaryIO, np.dtype, tuple[int, ...]]] = {}
        self._rows: dict[str, int] = {}
        self._done = False

    def __enter__(self) -> Writer:
        with named(self.place):
            self.place.mkdir(parents=True)
        return self

    def __exit__(self, *error: object) -> None:
        for stream, _, _ in self._files.values():
            with contextlib.suppress(OSError):  # what a full disk did not take; the files go anyway
                stream.close()
        if not self._done:
            shutil.rmtree(self.place, ignore_errors=True)

    def append(self, name: str, array: np.ndarray) -> None:
        """More rows of an array, which begins with its first rows."""
        path = self.path(name)
        with named(path):
            if name not in self._files:
                stream = open(path, "w+b")  # noqa: SIM115 (closed by __exit__)
                self._files[name], self._rows[name] = (stream, array.dtype, array.shape[1:]), 0
                self._head(name)
            if array.size:
                _write(self._files[name][0], np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            self._rows[name] += len(array)

    def path(self, name: str) -> Path:
        return self.place / f"{name}.npy"

    def mapped(self, name: str) -> np.ndarray:
        """What was appended so far, read back."""
        with named(self.path(name)):
            self._head(name)
            self._files[name][0].flush()
        return _mapped(self.path(name))

    def finish(self, content: dict[str, Any]) -> None:
        """Everything is on the disk, and the manifest says so; arrays that it does not name are removed."""
        sizes = {}
        for name, (stream, _, _) in self._files.items():
            with named(self.path(name)):
                self._head(name)
                stream.flush()
                os.fsync(stream.fileno())
                stream.close()
                sizes[name] = self.path(name).stat().st_size
        manifest = {"format": FORMAT, "folder": self.place.name, "files": sizes, **content}
        draft = self.place / "manifest.tmp"
        with named(self.folder / MANIFEST):
            with open(draft, "wb") as stream:
                _write(stream, json.dumps(manifest, indent=1).encode())
                stream.flush()
                os.fsync(stream.fileno())
            sync_folder(self.place)
            os.replace(draft, self.folder / MANIFEST)
        self._done = True
        for entry in self.folder.iterdir():
            if _FOLDER.fullmatch(entry.name) and entry != self.place:
                shutil.rmtree(entry, ignore_errors=True)

    def _head(self, name: str) -> None:
        """The .npy header, which numpy makes equally long for any number of rows."""
        stream, dtype, shape = self._files[name]
        at = stream.tell()
        stream.seek(0)
        whole = (self._rows[name], *shape)
        np.lib.format.write_array_header_1_0(
            stream, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": whole}
        )
        stream.seek(max(at, stream.tell()))

    @property
    def names(self) -> list[str]:
        """Arrays that were begun."""
        return list(self._files)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """An OSError becomes a DataError that names the file."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{str(path)!r} cannot be written: {error.strerror or error}. What was saved before is as it was; "
            "free some space or give another folder."
        ) from error


def _write(stream: BinaryIO, data: Any) -> None:
    stream.write(data)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The manifest and the mapped arrays of a folder.

    Raises:
        DataError: naming the file that is missing, truncated or of another format.
    """
    manifest = folder / MANIFEST
    try:
        content = json.loads(manifest.read_text("utf8"))
    except FileNotFoundError:
        raise DataError(f"There are no saved columns at {str(folder)!r}: it has no {MANIFEST}.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{str(manifest)!r} cannot be read: {error}.") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise DataError(f"{str(manifest)!r} is not of format {FORMAT} but {found}; encode the data again.")
    if not _FOLDER.fullmatch(str(content.get("folder"))):
        raise DataError(f"{str(manifest)!r} names the folder {content.get('folder')!r}, which is not one of a store.")
    place = folder / content["folder"]
    return content, {name: _checked(place / f"{name}.npy", size) for name, size in content["files"].items()}


def _checked(path: Path, size: int) -> np.ndarray:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{str(path)!r} is missing from the saved columns.") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}.") from error
    if found != size:
        raise DataError(f"{str(path)!r} has {found} bytes in place of {size}; it was truncated or altered.")
    return _mapped(path)


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, EOFError) as error:
        raise DataError(f"{str(path)!r} cannot be read: {error}.") from error
    except ValueError as error:
        if "empty" in str(error):  # an array without entries cannot be mapped
            return np.load(path, allow_pickle=False)
        raise DataError(f"{str(path)!r} is not an array: {error}.") from error


# -- memory -------------------------------------------------------------------------------------------------------------
def release(array: np.ndarray) -> None:
    """Give the pages of an array back, if it is mapped; they are mapped again when they are asked for."""
    if (root := _map(array)) is not None:
        root.base.madvise(mmap.MADV_DONTNEED)


def wanted(array: np.ndarray, start: int, stop: int) -> None:
    """Begin to read these rows from the disk, if the array is mapped."""
    root = _map(array)
    if root is None or stop <= start or not array.size or not array.flags.c_contiguous:
        return
    begin = root.ctypes.data - root.offset % mmap.ALLOCATIONGRANULARITY  # where the map begins
    first = (array.ctypes.data + start * array.strides[0] - begin) // mmap.PAGESIZE * mmap.PAGESIZE
    last = min(array.ctypes.data + stop * array.strides[0] - begin, len(root.base))
    root.base.madvise(mmap.MADV_WILLNEED, first, last - first)


def _map(array: np.ndarray) -> Any:
    """The np.memmap under an array, whose base is the map; None for an array in memory, or a system without advice."""
    root: Any = array
    while root is not None and not isinstance(root, np.memmap):
        root = getattr(root, "base", None)
    return root if root is not None and isinstance(root.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED") else None
