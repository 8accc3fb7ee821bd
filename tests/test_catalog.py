"""The catalogue says what the files say, and what is generated from it is up to date."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import pytest

from recstack import catalog
from recstack.errors import ConfigError

ROOT = Path(__file__).parents[1]
ENTRIES = catalog.models()
EACH = pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)


def test_a_model_exists_because_its_file_does():
    stems = {f"recstack.models.{p.parent.name}.{p.stem}" for p in catalog.MODELS.glob("*/[a-z]*.py")}
    assert {e.module for e in ENTRIES} == stems


def test_the_spine_has_a_model_in_every_stage():
    assert {e.stage for e in ENTRIES} == set(catalog.STAGES)
    spine = "Popularity ItemCF Swing DSSM LightGCN SASRec COLD LR FM DeepFM DCNv2 DIN MMoE ESMM STAR PRM"
    assert set(spine.split()) <= {e.name for e in ENTRIES}


def test_a_name_belongs_to_one_model_of_a_stage():
    names = [(e.stage, e.name.lower()) for e in ENTRIES]
    assert len(names) == len(set(names))
    assert all(catalog.model(e.key) == e for e in ENTRIES)
    with pytest.raises(ConfigError, match=r"several stages; write retrieval\.STAMP or ranking\.STAMP"):
        catalog.model("stamp")


@EACH
def test_every_model_says_which_paper_it_is(entry):
    assert all((entry.title, entry.authors, entry.venue)), entry
    assert 1990 <= entry.year <= 2100
    assert entry.link.startswith("https://")
    assert entry.summary.endswith((".", ":"))


@EACH
def test_the_catalogue_reads_what_python_sees(entry):
    """Options and defaults, read without an import, are those of the signature."""
    cls = getattr(importlib.import_module(entry.module), entry.name)
    seen = list(inspect.signature(cls.__init__).parameters.values())[1:]
    seen = [p for p in seen if p.name != "schema"]
    assert [o.name for o in entry.options] == [p.name for p in seen]
    for option, parameter in zip(entry.options, seen, strict=True):
        assert (option.default is None) == (parameter.default is parameter.empty)
        if isinstance(parameter.default, int | float | str | bool | None) and not isinstance(parameter.default, type):
            module = vars(inspect.getmodule(cls))
            assert option.default is None or eval(option.default, dict(module)) == parameter.default


def test_the_equation_is_that_of_the_docstring():
    assert catalog.model("FM").equation == (r"z = b + \sum_i w_i x_i + \sum_{i<j} \langle v_i, v_j \rangle x_i x_j")
    missing = [e.name for e in ENTRIES if not e.equation]
    assert not missing
    assert catalog.model("DLRM").equation.splitlines()[0].startswith(r"e_0 = \mathrm{MLP}")  # two lines, as written


def test_what_was_measured_is_of_models_that_exist():
    assert set(catalog.measured()) <= {e.key for e in ENTRIES}
    assert catalog.model("DeepFM").measured[0].startswith("Frappe_x1: test AUC")


def test_entries_are_plain_values():
    rows = [e.to_dict() for e in ENTRIES]
    again = json.loads(json.dumps(rows))
    assert len(again) == len(rows)
    assert {"name", "stage", "title", "venue", "year", "link", "module", "options"} <= set(again[0])


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("Deep Sets (Zaheer et al., NeurIPS 2017).", ("Deep Sets", "Zaheer et al.", "NeurIPS", 2017)),
        ("Deep & Wide: a title, long (Li, Chen and Wu, WWW 2019; code by Li).", ("Deep & Wide: a title, long", "Li, Chen and Wu", "WWW", 2019)),
        ("On arXiv only (Yang et al., 2020).", ("On arXiv only", "Yang et al.", "arXiv", 2020)),
        ("No paper at all.", ("No paper at all", None, None, None)),
    ],
)  # fmt: skip
def test_the_first_paragraph_is_title_authors_venue_year(tmp_path, head, expected):
    path = tmp_path / "one.py"
    path.write_text(f'"""{head}\n\nhttps://arxiv.org/abs/1.2\n"""\n\n\nclass One(Model):\n    """It is one. More."""\n')
    (entry,) = catalog.read(path)
    assert (entry.title, entry.authors, entry.venue, entry.year) == expected
    assert (entry.link, entry.summary, entry.options) == ("https://arxiv.org/abs/1.2", "It is one.", ())


def test_a_class_without_constructor_has_its_base_s_options(tmp_path):
    path = tmp_path / "two.py"
    path.write_text(
        "class A(Model):\n    def __init__(self, schema, *, dim: int = 8): ...\n\n\nclass B(A):\n    pass\n"
    )
    assert [e.call for e in catalog.read(path)] == [f"rs.{tmp_path.name}.{n}(schema, dim=8)" for n in "AB"]


def test_unknown_names_guess():
    with pytest.raises(ConfigError, match="Did you mean 'DeepFM'"):
        catalog.model("DeepFN")
    with pytest.raises(ConfigError, match="Did you mean 'ranking'"):
        catalog.models("rankin")


def test_the_page_has_a_section_and_a_call_for_each_model():
    page = catalog.page()
    headings = [line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")]
    assert headings == [e.name for e in ENTRIES]
    calls = page.split("```text\n")[1:]
    assert [c.split("\n```\n")[0].split("(")[0] for c in calls] == [f"rs.{e.stage}.{e.name}" for e in ENTRIES]
    assert ":math:" not in page


def test_generated_files_are_fresh():
    stale = [str(p.relative_to(ROOT)) for p, text in catalog.generated(ROOT).items() if p.read_text("utf8") != text]
    assert not stale, f"Run `make stubs`: {', '.join(stale)} no longer say what the model files say."
