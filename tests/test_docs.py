"""The documentation is true: its programs run as written, its tables say what the package says, the site builds."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recstack.data.datasets.about import all_sets

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, title, text) of each fenced block."""
    return FENCE.findall(page.read_text("utf8"))


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def program(page: Path, folder: Path) -> str:
    """All Python blocks of a page as one program; blocks with a title are written as files first."""
    parts = []
    for language, title, text in blocks(page):
        if title:
            path = folder / title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf8")
        elif language == "python":
            parts.append(text)
    return "\n".join(parts)


RUNNABLE = [p for p in PAGES if p.name != "README.md" and any(b[0] == "python" and not b[1] for b in blocks(p))]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_a_page_runs_as_written(page, tmp_path):
    """Its blocks, one after another, in a process and folder of their own; a page that writes a model has its own package."""
    if any(title.startswith("src/") for _, title, _ in blocks(page)):
        shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "page.py").write_text(program(page, tmp_path), "utf8")
    run("page.py", tmp_path)


SMALL = """import recstack as rs

market = rs.simulator.simulate(users=120, items=150, impressions=12_000, list_size=5, ctr=0.25)
schema = market.schema().without("position")
clicks = market.events.filter(market.events["click"] == 1).drop("click")
small = rs.Log(clicks, schema, users=market.users, items=market.items, implicit=True)
"""


@pytest.mark.slow
def test_the_ten_lines_of_the_readme_run(tmp_path):
    """As written, but for the log: a small market's clicks, implicit as MovieLens' are, in place of a million rows."""
    text = "".join(t for language, _, t in blocks(ROOT / "README.md") if language == "python")
    assert len(text.splitlines()) <= 10
    assert text.count("rs.datasets.movielens_1m()") == 1
    page = SMALL + text.replace("rs.datasets.movielens_1m()", "small") + "print(rs.load('page/').recommend(7, k=3))\n"
    (tmp_path / "readme.py").write_text(page, "utf8")
    printed = run("readme.py", tmp_path)
    assert "ranker" in printed
    assert "MMR" in printed


@pytest.mark.slow
def test_a_model_is_one_file(tmp_path):
    """The guide's file, and nothing else, makes a model that the face, the catalogue and the command line know."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    program(ROOT / "docs" / "add-a-model.md", tmp_path)
    (tmp_path / "ask.py").write_text(
        "import recstack as rs\nfrom recstack import catalog\nentry = catalog.model('nfm')\n"
        "print(rs.ranking.NFM.__module__, entry.venue, entry.year, entry.call)"
    )
    expected = "recstack.models.ranking.nfm SIGIR 2017 rs.ranking.NFM(schema, dim=64, hidden=(64,), dropout=0.2)"
    assert run("ask.py", tmp_path).strip() == expected


def run(script: str, folder: Path) -> str:
    """What a script prints, run in `folder` with the package that is copied there, or this one (and its compiled kernels)."""
    package = folder / "src"
    env = {**os.environ, "PYTHONPATH": str(package if package.exists() else ROOT / "src")}
    done = subprocess.run([sys.executable, script], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


SRC = ROOT / "src" / "recstack"
OWN = ("models", "losses", "metrics")  # whose examples their own tests run
SLOW = ("cascade", "testing")
EXAMPLES = [
    pytest.param(place, marks=[pytest.mark.slow] if place.parts[0] in SLOW else [], id=str(place))
    for place in (p.relative_to(SRC) for p in sorted(SRC.rglob("*.py")) if ">>>" in p.read_text("utf8"))
    if place.parts[0] not in OWN
]


@pytest.mark.parametrize("place", EXAMPLES)
def test_examples_in_docstrings_run_as_printed(place):
    parts = ("recstack", *place.with_suffix("").parts)
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted, "an example that doctest does not see"


def test_every_set_is_on_the_page_with_its_terms():
    text = (ROOT / "docs" / "data.md").read_text("utf8")
    for about in all_sets().values():
        row = f"| {about.name} | `{about.loader}` | {about.rows} | {about.what} | {about.terms} |"
        assert row in text, row


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf8")):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_public_names_on_a_page_exist(page):
    """Whatever is written ``rs.a.b`` can be reached that way, unless the page itself makes it."""
    import recstack as rs

    made = set(re.findall(r"^class (\w+)", page.read_text("utf8"), re.MULTILINE))
    for dotted in set(re.findall(r"\brs((?:\.[A-Za-z]\w*)+)", page.read_text("utf8"))):
        if dotted.split(".")[-1] in made:
            continue
        value = rs
        for part in dotted.split(".")[1:]:
            assert hasattr(value, part), f"{name(page)} names rs{dotted}"
            value = getattr(value, part)
            if callable(value):
                break


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_on_a_page_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z-]+)", page.read_text("utf8")))
    named |= set(re.findall(r"^(?:\$ )?make ([a-z-]+)", page.read_text("utf8"), re.MULTILINE))
    assert named <= targets


def commands(page: Path) -> list[list[str]]:
    """The ``recstack ...`` lines of a page's shell blocks, as words."""
    shell = [text for language, _, text in blocks(page) if language in ("bash", "console")]
    lines = [line.removeprefix("$ ") for text in shell for line in text.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("recstack ")]
    return [w[: w.index(">")] if ">" in w else w for w in words]


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=name)
def test_commands_on_a_page_exist(page):
    """Each names a command of the command line, and options that it has."""
    from typer.main import get_command

    from recstack.cli.app import app

    group = get_command(app)
    for words in commands(page):
        command = group if words[1].startswith("-") else group.commands[words[1]]
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        assert {w for w in words[1:] if w.startswith("-")} <= known, " ".join(words)


@pytest.mark.slow
def test_the_configuration_of_the_page_trains(tmp_path):
    """As it is written, but for the data: a small market in place of the reader's store."""
    from recstack.cli import train

    (text,) = [t for language, _, t in blocks(ROOT / "docs" / "cli.md") if language == "yaml"]
    text, places = re.subn("store: store/.*", "dataset: simulator\n  users: 60\n  items: 40\n  impressions: 3000", text)
    assert places == 1
    (tmp_path / "din.yaml").write_text(text, "utf8")
    train.train(tmp_path / "din.yaml", tmp_path / "din", False, False)
    assert (tmp_path / "din" / "manifest.json").is_file()


@pytest.mark.slow
def test_the_site_builds_without_a_network(tmp_path):
    """Strictly, and no page asks for a script, style or font from elsewhere."""
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        asked = re.findall(
            r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)|<link[^>]+rel="(?:stylesheet|preload|preconnect)"[^>]+href="(https?:[^"]+)',
            page.read_text("utf8"),
        )
        assert not asked, f"{page.name}: {asked}"


def test_the_version_is_written_once_more_in_the_citation_only():
    import recstack

    assert f"\nversion: {recstack.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf8")
    assert f"## {recstack.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf8")
