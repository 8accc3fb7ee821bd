"""The format of everything saved: one folder, JSON and safetensors, checksums, one atomic writer. Knows no model.

A bundle is a set of named pieces. A piece is a class path, a JSON configuration and tensors; what they mean is for the
class to say. Nothing here is pickled, and reading imports no code: :func:`resolve` does, and only from trusted packages.
"""

from recstack.bundle.config import class_path, decode_config, encode_config, resolve
from recstack.bundle.store import FORMAT, Bundle, Piece, read, write

__all__ = ["FORMAT", "Bundle", "Piece", "class_path", "decode_config", "encode_config", "read", "resolve", "write"]
