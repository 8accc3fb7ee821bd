"""Modules and parameters under names that users chose."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


class ByName(nn.Module):
    """A mapping from any text to a module. Names are data: a column may be called ``type``, ``items`` or ``a.b``.

    >>> ByName({"a.b": nn.Identity()})["a.b"]
    Identity()
    """

    def __init__(self, modules: dict[str, nn.Module] | None = None):
        super().__init__()
        self._names: dict[str, str] = {}
        for name, module in (modules or {}).items():
            self[name] = module

    def __setitem__(self, name: str, module: nn.Module) -> None:
        # "@" never occurs in a user's name, so an escaped name is unique and cannot meet an attribute of nn.Module
        plain = bool(name) and "." not in name and (name in self._names or not hasattr(self, name))
        self._names.setdefault(name, name if plain else "@" + name.replace(".", "@"))
        self.add_module(self._names[name], module)

    def __getitem__(self, name: str) -> nn.Module:
        return self._modules[self._names[name]]  # type: ignore[return-value]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        return ((name, self[name]) for name in self._names)
