"""What a public data set is: its size, its terms, where its files lie and where the originals come from."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from recstack.data.datasets.files import has_file, resolve_data_dir
from recstack.errors import DataError, unknown


@dataclass(frozen=True)
class Remote:
    """One file on the network.

    Args:
        url: where it is.
        checksum: "sha256:...", "md5:..." or "git:..." (the object id of a file in a git repository); None where no
            published one is known.
        keep: the files to take out of it, by their last name, if it is a .zip or .tar.gz (also one inside the other);
            empty for a file that is wanted as it is.
    """

    url: str
    checksum: str | None = None
    keep: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The files it leaves in the set's folder."""
        return self.keep or (self.url.rsplit("/", 1)[-1],)


@dataclass(frozen=True)
class About:
    """One public set.

    Args:
        name: as `download` takes it.
        loader: the call that reads it.
        rows: how many, and of what.
        what: one line.
        terms: of use, as their owners state them.
        folders: under the data folder; the first that has the files is read, the first of all is what `download` writes.
        needs: a folder without any of these files or folders is not taken for the set's.
        remotes: the originals.
        get: how to come by it where `download` cannot.
    """

    name: str
    loader: str
    rows: str
    what: str
    terms: str
    folders: tuple[str, ...]
    needs: tuple[str, ...]
    remotes: tuple[Remote, ...] = ()
    get: str = ""

    def here(self, data_dir: str | Path | None = None) -> Path | None:
        """Where its files lie; None if they do not."""
        root = resolve_data_dir(data_dir)
        for folder in (root / f for f in self.folders):
            if any(has_file(folder, need) or (folder / need).is_dir() for need in self.needs):
                return folder
        return None

    def folder(self, data_dir: str | Path | None = None) -> Path:
        """Where its files lie.

        Raises:
            DataError: nowhere; it says where it looked and how to get it.
        """
        found = self.here(data_dir)
        if found is not None:
            return found
        folder = resolve_data_dir(data_dir) / self.folders[0]
        how = f"rs.datasets.download({self.name!r}) fetches it" if self.remotes else self.get
        raise DataError(
            f"No data set {self.name!r}: there is no {' or '.join(self.needs)} in {str(folder)!r}. If you have it "
            f"elsewhere, give data_dir= or set RECSTACK_DATA to the folder that holds {self.folders[0]!r}. Otherwise {how}."
        )


def all_sets() -> dict[str, About]:
    """{name: About} of every set that a file of this package declares."""
    package = importlib.import_module(__package__ or "")
    found: dict[str, About] = {}
    for module in pkgutil.iter_modules(package.__path__):
        found |= {a.name: a for a in getattr(importlib.import_module(f"{__package__}.{module.name}"), "ABOUT", ())}
    return found


def about(name: str) -> About:
    """One of them.

    Raises:
        ConfigError: no such set; it guesses.
    """
    sets = all_sets()
    if name not in sets:
        raise unknown("data set", name, sets)
    return sets[name]


def describe(data_dir: str | Path | None = None) -> pl.DataFrame:
    """A row per set: name, rows, terms, what it is, the call that reads it, whether it is here, whether `download` has it.

    >>> describe().select("name", "rows").row(0)
    ('census-income', '299,285 persons')
    """
    return pl.DataFrame(
        [
            {
                "name": a.name,
                "rows": a.rows,
                "terms": a.terms,
                "what": a.what,
                "loader": a.loader,
                "here": a.here(data_dir) is not None,
                "download": bool(a.remotes),
            }
            for _, a in sorted(all_sets().items())
        ]
    )
