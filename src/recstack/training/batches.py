"""Whatever a person hands to `fit`, as batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from recstack.errors import ConfigError

Batch = dict[str, Tensor]


def encoded(data: Any, model: Any) -> Any:
    """A raw Log as Columns, by the encoder that fitted the model's schema; anything else as it is."""
    if isinstance(data, list | tuple):
        return data
    from recstack.data import Log

    if not isinstance(data, Log):
        return data
    encoder = getattr(getattr(model, "schema", None), "encoder", None)
    if encoder is None:
        raise ConfigError(
            "The model's schema has no encoder, so raw rows cannot be read. Build the model from encoder.schema, "
            "or pass encoder.encode(log)."
        )
    return encoder.encode(data)


def batches(
    data: Any,
    model: Any,
    *,
    batch_size: int,
    shuffle: bool,
    seed: int,
    negatives: int,
    part: tuple[int, int] = (0, 1),
    device: torch.device | None = None,
) -> Iterable[Batch]:
    """Log, Columns (here or on a device), Loader, or anything that can be read again and again and gives batches.

    A Loader that is made here copies batches to a `device` beside the computation.

    A Loader that is made here gives `part`, (rank, processes), of each batch if it can do so without moving a request to
    another batch; others give whole batches, of which `distributed.World.sliced` takes the part.
    """
    data = encoded(data, model)
    if isinstance(data, list | tuple):
        return data
    from recstack.data import Columns, Loader
    from recstack.data.resident import Resident

    if isinstance(data, Columns | Resident):
        if shuffle and isinstance(data, Columns):
            data.check_labels()
        options: dict[str, Any] = {"shuffle": shuffle, "seed": seed, "negatives": negatives if data.implicit else 0}
        if device is not None and device.type != "cpu":
            options["device"] = device
        loader = Loader(data, batch_size, **options)
        short = loader.state_dict()["requests"] % batch_size
        return loader if part[1] == 1 or 0 < short < part[1] else Loader(data, batch_size, **options, part=part)
    if not isinstance(data, Iterable):
        raise ConfigError(f"Expected a Log, Columns, a Loader or batches; got {type(data).__name__}.")
    if isinstance(data, Iterator):
        raise ConfigError("An iterator can be read only once. Pass a list of batches or a Loader.")
    return data


def example(loader: Iterable[Batch]) -> tuple[Batch | None, int]:
    """A batch as large as the loader's, and how many times over it counts (negatives); None where asking would use one up."""
    if isinstance(loader, list | tuple):
        return (loader[0], 1) if loader and isinstance(loader[0], Mapping) else (None, 1)
    columns, size = getattr(loader, "columns", None), getattr(loader, "batch_size", None)
    if columns is None or size is None:
        return None, 1
    return columns.batch(slice(0, min(size, columns.n_requests))), 1 + getattr(loader, "negatives", 0)


def length(loader: Iterable[Batch]) -> int | None:
    """Batches per epoch, if known."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:
        return None


def moved(batch: Any, device: torch.device) -> Any:
    """The batch on `device`."""
    if not isinstance(batch, Mapping):
        return batch
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def requests(batch: Any) -> int:
    """R. Jagged columns have as many rows as values, so labels and the mask are asked first."""
    if not isinstance(batch, Mapping):
        return 1
    if "@empty" in batch:  # of a process that has no rows of this batch; see `distributed.blank`
        return 0
    for key, value in batch.items():
        if key.endswith("@label") or key == "@mask":
            return value.shape[0]
    for key, value in batch.items():
        if "@" not in key and f"{key}@offsets" not in batch:
            return value.shape[0]
    return 1


def windows(loader: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches, the last one shorter; never reads ahead of what it gives."""
    window: list[Batch] = []
    for batch in loader:
        window.append(batch)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def shares(window: list[Batch], model: Any, summed: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
    """For each batch of a window, each task's share of the window's live (weighted) rows; "" is the share of requests.

    A task's loss is a mean over its live rows, and a mean of such means is not the mean over the window: clicks come
    unevenly. Scaled by these shares the window is one large batch, `summed` over all processes. Tasks' shares are tensors, which no device waits for.
    """
    schema = getattr(model, "schema", None)
    counts: list[dict[str, Any]] = []
    for batch in window:
        count: dict[str, Any] = {"": float(requests(batch))}
        live = requests(batch) > 0
        if schema is not None:
            from recstack.features import tasks

            for name, (_, where, weight) in tasks.targets(batch, schema).items():
                count[name] = (where if weight is None else where * weight).sum(dtype=torch.float64) * live
        counts.append(count)
    total = summed({name: sum(c[name] for c in counts) for name in counts[0]})
    return [{name: _share(n, total[name]) for name, n in c.items()} for c in counts]


def _share(n: Any, total: Any) -> Any:
    if isinstance(total, Tensor):
        return torch.where(total > 0, n / total, 0.0).float()
    return n / total if total else 0.0
