"""The file that `recstack train` reads: what is printed can be trained, and each mistake is named with a guess."""

from __future__ import annotations

import functools
import json

import pytest
import yaml

import recstack as rs
from recstack import catalog
from recstack.cli import config as configs
from recstack.cli import sources
from recstack.errors import ConfigError

NAMES = [m.key for m in catalog.models()]


@functools.cache
def schema_of(config: str) -> rs.Schema:
    """Fitted; four sorts of markets serve all models."""
    return sources.of_config(json.loads(config)).encoder.schema


@pytest.mark.parametrize("name", NAMES)
def test_the_printed_file_of_every_model_builds_it_with_its_defaults(name, size, tmp_path):
    path = tmp_path / "printed.yaml"
    path.write_text(configs.template(name), "utf8")
    config = configs.read(path)
    config["data"] |= size
    cls = configs.model_class(catalog.model(name))
    options = configs.arguments(
        cls, {k: v for k, v in config["model"].items() if k != "name"}, "model", leave=["schema"]
    )
    assert ("trainer" in config) == configs.has_trainer(cls)
    if configs.is_counted(cls):
        plain, given = cls(), cls(**options)
    else:
        schema = schema_of(json.dumps({"data": config["data"], "split": config["split"]}))
        plain, given = cls(schema), cls(schema, **options)
    if configs.has_trainer(cls):
        trainer = configs.arguments(rs.Trainer, config["trainer"], "trainer", leave=configs.OWN_TRAINER)
        assert rs.Trainer(given, **trainer).epochs == rs.Trainer(plain).epochs
    assert given.config == plain.config


def test_print_config_guesses_the_model(invoke):
    result = invoke("train", "--print-config", "DINN")
    assert result.exit_code == 2
    assert "Unknown model 'DINN'. Did you mean 'DIN'?" in result.stderr


def test_numbers_as_people_write_them(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "data: {dataset: simulator}\nmodel: {name: LR}\ntrainer: {lr: 1e-3, clip: 2E2, min_delta: -1.5e+1}\n"
    )
    assert configs.read(path)["trainer"] == {"lr": 0.001, "clip": 200.0, "min_delta": -15.0}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"trainr": {}}, "Unknown section of config.yaml: 'trainr'. Did you mean 'trainer'?"),
        ({"model": None}, "config.yaml has no section 'model'"),
        ({"model": {"dim": 4}}, "model has no name"),
        ({"model": {"name": "DeepFN"}}, "Unknown model 'DeepFN'. Did you mean 'DeepFM'?"),
        ({"model": {"name": "DIN", "hiden": [4]}}, "Unknown key in model: 'hiden'. Did you mean 'hidden'?"),
        ({"model": {"name": "DIN", "dim": "big"}}, "model.dim is 'big'; expected int."),
        ({"model": {"name": "DIN", "hidden": [4, "x"]}}, "model.hidden is [4, 'x']; expected int."),
        ({"model": {"name": "DIN", "history": "atention"}}, "Did you mean 'attention'?"),
        ({"model": {"name": "DIN", "history": 3}}, "model.history is 3; expected str."),
        ({"trainer": {"epoch": 3}}, "Unknown key in trainer: 'epoch'. Did you mean 'epochs'?"),
        ({"trainer": {"epochs": "three"}}, "trainer.epochs is 'three'; expected int."),
        ({"trainer": {"epochs": 0}}, "epochs= must be at least 1; got 0."),
        ({"trainer": {"callbacks": []}}, "Unknown key in trainer: 'callbacks'."),
        ({"trainer": {"optimizer": "adamm"}}, "Did you mean 'adam'?"),
        ({"trainer": [1]}, "trainer is [1]; it has to be a mapping"),
        ({"data": {"dataset": "simulater"}}, "Unknown data.dataset 'simulater'. Did you mean 'simulator'?"),
        ({"data": {"dataset": "simulator", "user": 3}}, "Unknown key in data: 'user'. Did you mean 'users'?"),
        ({"data": {"dataset": "simulator", "users": "many"}}, "data.users is 'many'; expected int."),
        ({"data": {"dataset": "movielens-1m", "taks": "liked"}}, "Unknown key in data: 'taks'. Did you mean 'task'?"),
        ({"data": {}}, "data has none of dataset, events, store"),
        ({"data": {"dataset": "simulator", "store": "x"}}, "data has dataset and store"),
        ({"data": {"events": "e.csv"}}, "data.events needs schema:"),
        ({"data": {"events": "e.csv", "item": "i"}, "schema": {"features": []}}, "'item'. Did you mean 'items'?"),
        ({"data": {"store": "s", "usrs": 1}}, "Unknown key in data: 'usrs'."),
        ({"schema": "s.yaml"}, "schema: goes with data.events"),
        ({"split": {"by": "by_tim"}}, "Unknown split.by: 'by_tim'. Did you mean 'by_time'?"),
        ({"split": {"by": "random", "seeds": 1}}, "Unknown key in split: 'seeds'. Did you mean 'seed'?"),
        ({"split": {"by": "last_per_user", "test": 0.1}}, "split.test is 0.1; expected int."),
        ({"out": None}, "config.yaml has no out:"),
    ],
)
def test_each_mistake_is_named_before_anything_is_written(invoke, configure, tmp_path, sections, said):
    result = invoke("train", configure(**sections))
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert len([line for line in result.stderr.splitlines() if not line.endswith("...")]) == 1
    assert not (tmp_path / "out").exists()


def test_a_counted_model_takes_no_trainer_and_no_resume(invoke, configure):
    path = configure(model={"name": "Popularity"})
    assert "leave out the section 'trainer'" in invoke("train", path).stderr
    path = configure(model={"name": "Popularity"}, trainer=None)
    assert "nothing to resume" in invoke("train", path, "--resume").stderr


def test_a_file_that_is_no_yaml_and_a_key_that_stands_twice(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: [1")
    with pytest.raises(ConfigError, match=r"is not valid YAML: .* line 1"):
        configs.read(path)
    path.write_text("model: {name: LR}\nmodel: {name: FM}\n")
    with pytest.raises(ConfigError, match="key 'model' stands twice"):
        configs.read(path)
    with pytest.raises(ConfigError, match=r"Cannot read .*nothing\.yaml': No such file"):
        configs.read(tmp_path / "nothing.yaml")


def test_a_set_that_comes_split_takes_no_split(monkeypatch):
    log = rs.simulator.small()
    parts = rs.split.by_time(log)
    monkeypatch.setattr(sources, "dataset", lambda name, options: parts)
    config = {"data": {"dataset": "frappe"}, "split": {"by": "random"}}
    with pytest.raises(ConfigError, match="split: does not go with 'frappe', which comes split"):
        sources.of_config(config)
    assert len(sources.of_config({"data": {"dataset": "frappe"}}).test) == len(parts[2])


def test_the_schema_may_be_written_in_the_file(market):
    schema = yaml.safe_load((market.folder / "schema.yaml").read_text())
    data = {"events": "events.parquet", "users": "users.csv", "items": "items.csv"}
    data = {k: str(market.folder / v) for k, v in data.items()}
    source = sources.of_config({"data": data, "schema": schema})
    train, _, _ = rs.split.by_time(market.log)
    assert source.encoder == rs.Encoder(market.log.schema).fit(train)
