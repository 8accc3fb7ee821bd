"""Going on with another run's weights on new data: tables may have grown in between, nothing else may differ."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recstack import bundle
from recstack.bundle import Bundle, Piece
from recstack.errors import SchemaError, TrainingError
from recstack.features.tables import Arena, carry, load_grown
from recstack.schema import Categorical
from recstack.training import checkpoints
from recstack.training.optimizers import RowOptimizer
from recstack.training.turns import Turn


def tables(model: nn.Module) -> dict[str, dict[str, int]]:
    """{path of an arena: {table: rows, padding included}}, in the order of their rows."""
    return {path: dict(m.sizes) for path, m in model.named_modules() if isinstance(m, Arena)}


def vocabularies(schema: Any) -> dict[str, dict[str, Any]]:
    """{feature with a learned vocabulary: {"ids": their number, "values": a hash of a thousand of their values}}."""
    encoder = getattr(schema, "encoder", None)
    if schema is None or encoder is None:
        return {}
    learned = {
        f.name: f.size
        for f in schema.features
        if isinstance(f, Categorical) and f.buckets is None and f.size is not None
    }
    return {name: {"ids": size, "values": _values(encoder, name, size)} for name, size in learned.items()}


def same_ids(schema: Any, name: str, old: Mapping[str, Any]) -> bool:
    """Whether the ids that `vocabularies` told of mean the same in a schema that has as many or more; True where it has fewer."""
    size = schema.feature(name).size
    return size is None or size < old["ids"] or _values(schema.encoder, name, old["ids"]) == old["values"]


def _values(encoder: Any, name: str, size: int) -> str:
    ids = np.unique(np.linspace(2, size - 1, 1000).astype(np.int64)) if size > 2 else np.zeros(0, np.int64)
    return hashlib.sha256(repr(encoder.decode(name, ids).tolist()).encode()).hexdigest()


def start(folder: str | Path, model: nn.Module, turns: Sequence[Turn]) -> None:
    """Load weights, and of a checkpoint the optimisers' state, into a model whose tables may have grown.

    Raises:
        TrainingError: nothing there; a table that shrank; weights or optimisers that do not fit.
    """
    folder = Path(folder)
    if (folder / "manifest.json").exists():
        saved: Bundle | None = bundle.read(folder)
    else:
        saved = checkpoints.Checkpoints(folder).latest()
    if saved is None or "model" not in saved.pieces:
        raise TrainingError(f"start_from={str(folder)!r} holds neither a checkpoint nor a saved model.")
    _check_values(model, saved)
    state, own = dict(saved.piece("model").tensors), model.state_dict()
    for name in state:
        if name not in own:
            raise _unfit(saved, f"has {name!r}, which this model does not have")
    try:
        sizes = load_grown(model, state)  # type: ignore[arg-type]
    except SchemaError as e:
        raise TrainingError(f"start_from={str(saved.path)!r} does not fit: {e}") from e
    if "optimizers-0" in saved.pieces:
        _load_state(model, saved, turns, sizes)


def _check_values(model: nn.Module, saved: Bundle) -> None:
    """An encoder fitted anew gives ids to other values; its tables would be filled with the rows of strangers."""
    schema = getattr(model, "schema", None)
    before, now = saved.meta.get("vocabularies"), vocabularies(schema)
    if before is None and "encoder" in saved.pieces:
        piece = saved.piece("encoder")
        encoder = bundle.resolve(piece.class_path).from_piece(piece)  # type: ignore[attr-defined]
        before = vocabularies(encoder.schema)
    for name, old in (before or {}).items():
        grew = name in now and old["ids"] <= now[name]["ids"]
        if grew and _values(schema.encoder, name, old["ids"]) != old["values"]:  # type: ignore[union-attr]
            raise TrainingError(
                f"The ids of {name!r} mean other values than in {str(saved.path)!r}. Build the model from "
                "encoder.grown(log), which keeps them, and not from an encoder that was fitted anew."
            )


def _load_state(model: nn.Module, saved: Bundle, turns: Sequence[Turn], sizes: Mapping[str, Mapping[str, int]]) -> None:
    before = saved.meta["settings"]["optimizers"]
    classes = {(key.rpartition("/")[0], n): g["class"] for key, g in before.items() for n in g["parameters"]}
    homes = {
        f"{path}.weight".lstrip("."): (path, m) for path, m in model.named_modules() if isinstance(m, nn.Embedding)
    }
    for path, was in saved.meta["tables"].items():
        if list(was) != list(sizes[path]):
            raise _unfit(
                saved, f"has the tables {', '.join(was)} in this order; declare their features in the same one"
            )
    for i, turn in enumerate(turns):
        for group in turn.groups:
            for name in group.params:
                was, now = classes.get((turn.head[:-1], name)), type(group.optimizer).__name__
                if was != now:
                    raise _unfit(
                        saved,
                        f"trained {name!r} with {was or 'nothing in this turn'}, and this run has {now}, "
                        "whose state is another. Use the same optimiser, or start from a saved model, which has none",
                    )
        piece = saved.piece(f"optimizers-{i}")
        state: dict[str, Any] = {}
        for full, tensor in piece.tensors.items():
            assert isinstance(tensor, Tensor)
            key, _, name = full.partition(":")
            group = next(g for g in turn.groups if name in g.params)
            if name in homes and tensor.dim():
                path, table = homes[name]
                old, tensor = tensor, _fresh(group.optimizer, group.params[name], key)
                carry(table, old, sizes[path], tensor)
            state[full] = tensor
        checkpoints.unpack(turn.groups, Piece(piece.class_path, piece.config, state))


def _fresh(optimizer: torch.optim.Optimizer, p: nn.Parameter, key: str) -> Tensor:
    """State of `p` as it is before its first step; zeros in torch's own optimisers."""
    if isinstance(optimizer, RowOptimizer):
        group = next(g for g in optimizer.param_groups if any(p is q for q in g["params"]))
        return optimizer.begin(p.detach(), group)[key].cpu()
    return torch.zeros(p.shape, dtype=p.dtype)


def _unfit(saved: Bundle, what: str) -> TrainingError:
    return TrainingError(f"start_from={str(saved.path)!r} {what}.")
