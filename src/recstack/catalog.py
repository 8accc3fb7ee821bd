"""The catalogue of models: read from their files, nothing imported and nothing registered.

A model exists because its file does. What the catalogue says comes from three places in the file: the module's docstring
(title, authors, venue, year, link), the class's docstring (what it is, its equation, how it departs from the paper) and the
constructor's signature (options and defaults). What was measured of it stands in ``models/measured.json``, which
``benchmarks/measured.py`` writes from the results.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from recstack._lazy import model_classes
from recstack.errors import ConfigError, unknown

MODELS = Path(__file__).parent / "models"
STAGES = {
    "retrieval": "Retrieval",
    "pre_ranking": "Pre-ranking",
    "ranking": "Ranking",
    "multitask": "Multi-task",
    "multidomain": "Multi-domain",
    "reranking": "Re-ranking",
}


@dataclass(frozen=True)
class Option:
    """A constructor argument: `default` and `type` as they are written in the file; `default` None has to be given."""

    name: str
    default: str | None
    type: str | None


@dataclass(frozen=True)
class Entry:
    """One model. `authors`, `venue`, `year` and `link` are None where the module's docstring does not give them."""

    name: str
    stage: str
    title: str
    authors: str | None
    venue: str | None
    year: int | None
    link: str | None
    module: str
    summary: str
    equation: str | None
    departs: str | None
    options: tuple[Option, ...]
    measured: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What `model` finds it by: its name, or stage.name where models of two stages have that name."""
        return f"{self.stage}.{self.name}" if sum(e.name == self.name for e in models()) > 1 else self.name

    @property
    def call(self) -> str:
        """How it is written: ``rs.ranking.DeepFM(schema, dim=10, ...)``."""
        arguments = [o.name if o.default is None else f"{o.name}={o.default}" for o in self.options]
        return f"rs.{self.stage}.{self.name}({', '.join(['schema', *arguments])})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def models(stage: str | None = None) -> list[Entry]:
    """Every model, by stage in the order of the cascade, then by name.

    Raises:
        ConfigError: there is no such stage.

    >>> [m.name for m in models("ranking") if m.name.startswith("Deep")]
    ['DeepCrossing', 'DeepFM']
    """
    if stage is not None and stage not in STAGES:
        raise unknown("stage", stage, STAGES)
    paths = [path for one in ([stage] if stage else STAGES) for path in files(one)]
    entries = [e for path in paths for e in _read(path, path.stat().st_mtime_ns)]
    return sorted(entries, key=lambda e: (list(STAGES).index(e.stage), e.name.lower()))


def model(name: str) -> Entry:
    """The model of this name, in any case; of stage.name where models of several stages have it.

    Raises:
        ConfigError: there is none, and it guesses; or several.

    >>> model("deepfm").year, model("ranking.STAMP").stage
    (2017, 'ranking')
    """
    entries = models()
    found = [e for e in entries if name.lower() in (e.name.lower(), f"{e.stage}.{e.name}".lower())]
    if not found:
        raise unknown("model", name, [e.name for e in entries])
    if len(found) > 1:
        raise ConfigError(f"{found[0].name} is a model of several stages; write {' or '.join(e.key for e in found)}.")
    return found[0]


@cache
def _read(path: Path, changed: int) -> list[Entry]:
    """`read`, once for each state of a file."""
    return read(path)


def files(stage: str) -> list[Path]:
    """The files of a stage."""
    return sorted((MODELS / stage).glob("[a-z]*.py"))


def read(path: Path) -> list[Entry]:
    """The models of one file, without importing it; the stage is the name of its folder."""
    source = path.read_text("utf8")
    tree, lines = ast.parse(source), source.encode().split(b"\n")  # the tree counts in bytes
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    title, authors, venue, year, link = _paper(ast.get_docstring(tree) or "")
    return [
        Entry(
            name=name,
            stage=path.parent.name,
            title=title,
            authors=authors,
            venue=venue,
            year=year,
            link=link,
            module=f"recstack.models.{path.parent.name}.{path.stem}",
            summary=_first(ast.get_docstring(classes[name]) or ""),
            equation=_equation(ast.get_docstring(classes[name]) or ""),
            departs=_departs(ast.get_docstring(classes[name]) or ""),
            options=_options(classes[name], classes, lines),
            measured=tuple(measured().get(f"{path.parent.name}.{name}") or measured().get(name, ())),
        )
        for name in model_classes(path)
    ]


def _paper(docstring: str) -> tuple[str, str | None, str | None, int | None, str | None]:
    """Title, authors, venue, year, link of ``Title (Authors, VENUE YEAR).`` and the first link after it.

    What has no venue but a link to arXiv was published there.
    """
    head = _line(docstring.split("\n\n")[0])
    link = re.search(r"https?://[^\s)>,]+", docstring)
    url = link[0].rstrip(".;") if link else None
    found = re.search(r"\s*\((?P<authors>[^()]+?),(?P<venue> [^(),]+?)?,? (?P<year>\d{4})\b[^()]*\)", head)
    if found is None:
        return head.rstrip("."), None, None, None, url
    venue = (found["venue"] or "").strip() or ("arXiv" if url and "arxiv.org" in url else None)
    return head[: found.start()], found["authors"], venue, int(found["year"]), url


def _first(docstring: str) -> str:
    """The first sentence."""
    line = _line(docstring.split("\n\n")[0])
    return re.split(r"(?<=[.!?:]) (?=[A-Z])", line)[0]


def _equation(docstring: str) -> str | None:
    """The first one, in LaTeX: what stands behind ``.. math::`` and in the lines that are further in."""
    found = re.search(r"^\.\. math::(.*(?:\n(?:[ \t]+.*|[ \t]*(?=\n[ \t])))*)", docstring, re.MULTILINE)
    return inspect.cleandoc(found[1].strip("\n")).strip() or None if found else None


@cache
def measured() -> dict[str, list[str]]:
    """{model: figures in words}, of those that were measured; stage.model where two stages have that name."""
    path = MODELS / "measured.json"
    return json.loads(path.read_text("utf8")) if path.exists() else {}


def _departs(docstring: str) -> str | None:
    for paragraph in docstring.split("\n\n"):
        if paragraph.startswith("Departs from"):
            return _line(paragraph)
    return None


def _line(text: str) -> str:
    return " ".join(text.split())


def _options(node: ast.ClassDef, classes: dict[str, ast.ClassDef], lines: list[bytes]) -> tuple[Option, ...]:
    """Of its constructor, or of the base's that stands in the same file; the schema is no option."""
    init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        bases = [b.id for b in node.bases if isinstance(b, ast.Name) and b.id in classes]
        return _options(classes[bases[0]], classes, lines) if bases else ()
    given = init.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    pairs = [*zip(plain, defaults, strict=True), *zip(given.kwonlyargs, given.kw_defaults, strict=True)]

    def written(node: ast.expr | None) -> str | None:
        if node is None:
            return None
        assert node.end_lineno is not None
        # Not ast.get_source_segment, which splits the whole file again for each of 2,500 options.
        rows = lines[node.lineno - 1 : node.end_lineno]
        rows[-1] = rows[-1][: node.end_col_offset]
        rows[0] = rows[0][node.col_offset :]
        return b"\n".join(rows).decode()

    return tuple(Option(a.arg, written(d), written(a.annotation)) for a, d in pairs if a.arg not in ("self", "schema"))


# -- what is generated ------------------------------------------------------------------------------------------------
def stub(stage: str) -> str:
    """``__init__.pyi`` of a stage: what a type checker reads, where the package itself looks at its files."""
    return "".join(f"from .{p.stem} import {name} as {name}\n" for p in files(stage) for name in model_classes(p))


def page() -> str:
    """The catalogue as a page of the documentation (Markdown)."""
    out = [
        "# Models",
        "Generated from the files under `src/recstack/models` by `make stubs`; `recstack models --json` prints the same.\n"
        "Each model takes the fitted schema first (`encoder.schema`), then its options, shown here with their defaults.",
    ]
    for stage, heading in STAGES.items():
        entries = models(stage)
        out += [f"## {heading}"] if entries else []
        for e in entries:
            when = " ".join(str(x) for x in (e.venue, e.year) if x)
            paper = f"[{e.title}]({e.link})" if e.link else e.title
            out += [f"### {e.name}", _markdown(e.summary), ", ".join(x for x in (paper, e.authors, when) if x) + "."]
            out += [f"```latex\n{e.equation}\n```"] if e.equation else []
            out += [_markdown(e.departs)] if e.departs else []
            out += ["\n".join(["```text", *_wrapped(e), "```"])]
            out += ["Measured: " + "; ".join(e.measured) + "."] if e.measured else []
    return "\n\n".join(out) + "\n"


def _markdown(text: str) -> str:
    """Literals and formulas of docstrings as Markdown's code."""
    return re.sub(r":math:`([^`]*)`", r"`\1`", re.sub(r"``([^`]+)``", r"`\1`", text))


def _wrapped(entry: Entry, width: int = 100) -> list[str]:
    if len(entry.call) <= width:
        return [entry.call]
    arguments = [o.name if o.default is None else f"{o.name}={o.default}" for o in entry.options]
    return [f"rs.{entry.stage}.{entry.name}(", "    schema,", *(f"    {a}," for a in arguments), ")"]


def generated(root: Path) -> dict[Path, str]:
    """{path: content} of all generated files of a checkout at `root`."""
    package = root / "src" / "recstack" / "models"
    return {package / s / "__init__.pyi": stub(s) for s in STAGES} | {root / "docs" / "catalog.md": page()}


if __name__ == "__main__":
    for target, text in generated(Path(__file__).parents[2]).items():
        target.write_text(text, "utf8")
        print(target)
