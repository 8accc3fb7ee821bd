"""The frame of the command line: help, speed of starting, exit codes, and how errors are said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import recstack
from recstack import catalog
from recstack.errors import (
    BundleError,
    ConfigError,
    DataError,
    RecStackError,
    RequestError,
    SchemaError,
    TrainingError,
)

COMMANDS = ("demo", "prepare", "train", "evaluate", "recommend", "serve", "models")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(invoke, command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Example" in result.stdout
    assert f"recstack {command}" in result.stdout


def test_the_commands_stand_in_the_order_of_work(invoke):
    shown = invoke("--help").stdout
    places = [shown.index(f"│ {c} ") for c in COMMANDS]
    assert places == sorted(places)


def test_version(invoke):
    import recstack

    assert invoke("--version").stdout.strip() == recstack.__version__


def test_the_package_runs_as_the_script():
    done = subprocess.run([sys.executable, "-m", "recstack", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(recstack.__version__)


def test_help_and_models_import_neither_torch_nor_polars():
    code = (
        "import sys\n"
        "from recstack.cli.app import app\n"
        "for args in (['--help'], ['train', '--help'], ['models', '--json']):\n"
        "    try: app(args)\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'polars', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["models", "--json"], 0, ""),
        (["models", "--stage", "rankin"], 2, "Error: Unknown stage 'rankin'. Did you mean 'ranking'?"),
        (["mdels"], 2, "mdels"),
        (["recommend", "nowhere", "--user", "1"], 4, "Error: There is no bundle at 'nowhere'"),
    ],
)
def test_the_script_exits_with_a_code_that_means_something(args, code, said, tmp_path):
    script = Path(sys.executable).with_name("recstack")
    done = subprocess.run([script, *args], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError, 2),
        (RequestError, 2),
        (SchemaError, 3),
        (DataError, 3),
        (BundleError, 4),
        (TrainingError, 5),
        (RecStackError, 1),
        (PermissionError, 1),
        (KeyboardInterrupt, 130),
    ],
)
def test_each_kind_of_error_has_its_code_and_one_line(invoke, monkeypatch, error, code):
    def fail(stage):
        raise error("It went wrong.")

    monkeypatch.setattr(catalog, "models", fail)
    result = invoke("models")
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr == ("Interrupted.\n" if error is KeyboardInterrupt else "Error: It went wrong.\n")


def test_what_nobody_expected_keeps_its_traceback(invoke, monkeypatch):
    monkeypatch.setattr(catalog, "models", lambda stage: 1 / 0)
    result = invoke("models")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize("args", [["--debug", "models", "--stage", "x"], ["models", "--stage", "x", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(invoke, args):
    result = invoke(*args)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.rstrip().splitlines()[-1].startswith("Error: Unknown stage 'x'.")


# -- models -----------------------------------------------------------------------------------------------------------
def test_models_as_json_says_all_of_each_model(invoke):
    found = json.loads(invoke("models", "--json").stdout)
    assert [m["name"] for m in found] == [m.name for m in catalog.models()]
    assert {"name", "stage", "title", "venue", "year", "link", "module", "options"} <= set(found[0])
    din = next(m for m in found if m["name"] == "DIN")
    assert (din["stage"], din["year"], din["link"]) == ("ranking", 2018, "https://arxiv.org/abs/1706.06978")


def test_models_of_one_stage_as_a_table(invoke):
    shown = invoke("models", "--stage", "reranking").stdout
    assert "PRM" in shown
    assert "DIN" not in shown


def test_a_new_file_is_listed_without_any_edit(invoke, monkeypatch, tmp_path):
    (tmp_path / "ranking").mkdir()
    (tmp_path / "ranking" / "mine.py").write_text(
        '"""A Model of Mine (Me, KDD 2030).\n\nhttps://example.org/mine\n"""\nclass Mine(Model):\n    """Short."""\n'
    )
    monkeypatch.setattr(catalog, "MODELS", tmp_path)
    found = json.loads(invoke("models", "--json").stdout)
    assert [(m["name"], m["year"], m["link"]) for m in found] == [("Mine", 2030, "https://example.org/mine")]
