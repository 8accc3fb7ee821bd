"""Tensors as safetensors files, streamed: https://github.com/huggingface/safetensors#format.

The library's writers build the whole file in memory and refuse tensors that share storage (tied weights, tables of one
arena); this one does neither, and hands every block to a caller that hashes it. The library reads the result.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from recstack.errors import BundleError

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def serialise(tensors: Mapping[str, Tensor | np.ndarray]) -> Iterator[bytes | memoryview]:
    """The blocks of a safetensors file with these tensors, one tensor in memory at a time."""
    entries = [(name, *_describe(name, value)) for name, value in tensors.items()]
    entries.sort(key=lambda entry: (-entry[3], entry[0]))  # widest first: every tensor stays aligned to its own width
    header, start = {}, 0
    for name, kind, shape, width in entries:
        end = start + width * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name, *_ in entries:
        yield _raw(tensors[name])


def _describe(name: str, value: Tensor | np.ndarray) -> tuple[str, list[int], int]:
    if not isinstance(name, str) or name == "__metadata__":
        raise BundleError(f"{name!r} cannot be the name of a saved tensor.")
    if isinstance(value, Tensor):
        dense, width = value.layout == torch.strided and not value.is_quantized, value.element_size()
    elif isinstance(value, np.ndarray):
        dense, width = True, value.dtype.itemsize
    else:
        raise BundleError(f"Tensor {name!r} is a {type(value).__name__}; give a torch tensor or a numpy array.")
    kind = str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else value.dtype.name
    if not dense or kind not in _NAMES:
        raise BundleError(f"Tensor {name!r} has type {kind}, which cannot be saved; known: {', '.join(_NAMES)}.")
    return _NAMES[kind], list(value.shape), width


def _raw(value: Tensor | np.ndarray) -> memoryview:
    if isinstance(value, Tensor):
        return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    array = np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("<"))
    return array.reshape(-1).view(np.uint8).data


def load(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. They may be backed by the file: writing to them never alters it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, RuntimeError) as error:  # torch maps the file, and has its own error for that
        raise BundleError(
            f"{os.fspath(path)!r} is not a readable safetensors file: {str(error).splitlines()[0]}."
        ) from error
