"""A small market as files, and the commands in this process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

import recstack as rs
from recstack.cli.app import app

SIZE = {"users": 50, "items": 40, "impressions": 3000, "list_size": 5, "categories": 5, "ctr": 0.25, "days": 7.0}


@pytest.fixture
def size() -> dict:
    """Options of the simulator for a market that is made in a moment."""
    return dict(SIZE)


@pytest.fixture
def invoke():
    """Runs a command; the result has exit_code, stdout and stderr."""
    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture(scope="session")
def market(tmp_path_factory) -> SimpleNamespace:
    """The simulator's log: as Log, and as files with a schema in `folder`."""
    folder: Path = tmp_path_factory.mktemp("market")
    made = rs.simulator.simulate(**SIZE)
    made.events.select("user_id", "item_id", "time", "position", "click").write_parquet(folder / "events.parquet")
    made.users.write_csv(folder / "users.csv")
    made.items.write_csv(folder / "items.csv")
    made.schema().save(folder / "schema.yaml")
    return SimpleNamespace(log=made.log(), folder=folder)


@pytest.fixture
def configure(tmp_path):
    """Writes a file for `recstack train`: the small market, one epoch, with sections replaced."""

    def write(name: str = "config.yaml", **sections) -> Path:
        base = {
            "data": {"dataset": "simulator", **SIZE},
            "model": {"name": "LR"},
            "trainer": {"epochs": 1},
            "out": str(tmp_path / "out"),
        }
        merged = {k: v for k, v in (base | sections).items() if v is not None}
        path = tmp_path / name
        path.write_text(yaml.safe_dump(merged), "utf8")
        return path

    return write


@pytest.fixture(scope="session")
def retriever(market, tmp_path_factory) -> Path:
    """A bundle of Popularity fitted on the training part."""
    path = tmp_path_factory.mktemp("bundles") / "popularity"
    train, _, _ = rs.split.by_time(market.log)
    rs.retrieval.Popularity().fit(train).save(path)
    return path


@pytest.fixture
def user_file(tmp_path) -> Path:
    """A file of users, one of them never met."""
    path = tmp_path / "some_users.csv"
    pl.DataFrame({"user_id": [5, 7, 99999]}).write_csv(path)
    return path
