"""The house stands: imports only fall, rooms on one floor do not know each other, serving stays light."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "recstack"
FLOORS = {
    1: ("errors", "_lazy"),
    2: ("schema", "kernels", "candidates", "bundle"),
    3: ("nn", "losses", "metrics", "index", "calibration", "rules"),
    4: ("features", "data", "fusion"),
    5: ("training",),
    6: ("models",),
    7: ("cascade",),
    8: ("serving",),
    9: ("catalog", "testing", "cli", "__main__"),
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
TOP = ("catalog", "testing", "cli", "__main__")  # the top floor is a stair: each may use those before it
FILES = sorted(SRC.rglob("*.py"))
MODELS = [p for p in FILES if SRC / "models" in p.parents and p.name != "__init__.py"]
STAGES = [["models", p.name] for p in (SRC / "models").iterdir() if p.is_dir()]
EACH = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf8"))


def module_of(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def nodes(tree: ast.AST, top_level: bool = False) -> Iterator[ast.AST]:
    """Every node that runs: not what only type checkers see; with `top_level`, not what functions keep for later."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield other
                yield from nodes(other, top_level)
            continue
        yield child
        if not (top_level and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield from nodes(child, top_level)


def imports(tree: ast.AST, module: str, package: bool, top_level: bool = False) -> set[str]:
    """Full names that a file imports, at every depth: "recstack.data.Encoder", "numpy", and text given to import_module."""
    home = module.split(".") if package else module.split(".")[:-1]
    found: set[str] = set()
    for node in nodes(tree, top_level):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{prefix}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.add(name.value if not name.value.startswith(".") else f"recstack{name.value}")
    return found


@functools.cache
def imports_of(path: Path, top_level: bool = False) -> set[str]:
    return imports(tree_of(path), module_of(path), path.name == "__init__.py", top_level)


def room(name: str) -> str:
    """The room of a full name; "" for the face and what it shows (``recstack.Trainer``)."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOOR else ""


def may(here: str, there: str) -> bool:
    """Whether a room may import another."""
    if here == there:
        return True
    if not there:  # the face shows all rooms: only what stands above all of them may use it
        return here in TOP[1:]
    if FLOOR[here] == 9 == FLOOR[there]:
        return TOP.index(there) < TOP.index(here)
    return FLOOR[there] < FLOOR[here]


# -- the laws ---------------------------------------------------------------------------------------------------------
def test_every_room_has_a_floor():
    rooms = {p.relative_to(SRC).parts[0].removesuffix(".py") for p in FILES} - {"__init__"}
    assert rooms <= set(FLOOR), f"No floor for {sorted(rooms - set(FLOOR))}."
    assert not {"utils", "util", "common", "helpers"} & {p.stem for p in FILES}


@EACH
def test_imports_only_fall(path):
    here = room(module_of(path)) or "_lazy"
    wrong = sorted(n for n in imports_of(path) if n.split(".")[0] == "recstack" and not may(here, room(n)))
    assert not wrong, f"{here} stands on floor {FLOOR[here]} and may not import {', '.join(wrong)}."


@pytest.mark.parametrize("path", MODELS, ids=lambda p: p.stem)
def test_a_paper_never_imports_another(path):
    """Not its sibling, and no other stage; base.py and what stands beside it know no paper either."""
    papers = {n for n in imports_of(path) if len(n.split(".")) > 2 and n.split(".")[1:3] in STAGES}
    assert not papers, f"{papers}: a block that two papers need lives in nn/."


@pytest.mark.parametrize(
    ("rooms", "packages"),
    [
        (("schema", "errors"), {"torch", "numpy", "polars"}),
        (("nn", "losses"), {"numpy", "polars", "recstack.schema"}),
        (("serving",), {"recstack.training"}),
        (("training",), {"recstack.models"}),
    ],
    ids=lambda x: "+".join(sorted(x)),
)
def test_rooms_keep_out_what_is_not_theirs(rooms, packages):
    for path in FILES:
        if room(module_of(path)) in rooms:
            wrong = {n for n in imports_of(path) if any(f"{n}.".startswith(f"{p}.") for p in packages)}
            assert not wrong, f"{path.relative_to(SRC)} imports {sorted(wrong)}."


@EACH
def test_heavy_packages_wait_until_they_are_needed(path):
    """At module level nobody imports what costs seconds; polars only where tables are read."""
    heavy = {"sklearn", "scipy", "pandas", "matplotlib", "numba", "faiss", "lightgbm", "tensorboard", "uvicorn"}
    place = path.relative_to(SRC)
    if place.parts[0] not in ("data", "cli"):
        heavy = heavy | {"polars", "pyarrow", "narwhals"}
    wrong = {n for n in imports_of(path, top_level=True) if n.split(".")[0] in heavy}
    assert not wrong, f"Import {sorted(wrong)} inside the function that needs it."


@pytest.mark.parametrize("name", ["encoder", "columns", "store", "vocabulary", "raw", "profiles"])
def test_what_serving_encodes_with_needs_numpy_only(name):
    path = SRC / "data" / f"{name}.py"
    outside = {n.split(".")[0] for n in imports_of(path, top_level=True)} - set(sys.stdlib_module_names)
    assert outside <= {"recstack", "numpy", "torch"}
    assert not {
        n for n in imports_of(path, top_level=True) if n.startswith(("recstack.data.log", "recstack.data.frames"))
    }


@EACH
def test_nothing_evaluates_text_or_unpickles(path):
    tree = tree_of(path)
    calls = {ast.unparse(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    assert not calls & {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "os.system"}
    assert not {c for c in calls if c.startswith("yaml.") and ("unsafe" in c or "full" in c)}
    packages = {n.split(".")[0] for n in imports_of(path)}
    assert not packages & {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
    loose = [
        ast.unparse(n)
        for n in ast.walk(tree)
        if isinstance(n, ast.Call)
        and any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in n.keywords)
    ]
    assert not loose


@pytest.mark.slow
def test_scoring_a_bundle_needs_no_training_code(tmp_path):
    """A process that loads a bundle and scores raw rows has neither the Trainer nor pandas, scikit-learn or matplotlib."""
    import recstack as rs

    train, _, _ = rs.split.by_time(rs.simulator.small())
    encoder = rs.Encoder(train.schema).fit(train)
    rs.ranking.DeepFM(encoder.schema, hidden=(8,)).save(tmp_path / "bundle")
    item, user = train.schema.item, train.schema.user
    row = {f.name: [] for f in train.schema.histories}
    row |= {f.name: None for f in train.schema.features if f.role in ("user", "context", "domain", "item", "pair")}
    row |= {f.name: 0.0 for f in train.schema.features if isinstance(f, rs.Numeric)}
    row |= {item: int(train.events[item][0]), user: int(train.events[user][0])}
    code = f"""
import sys
import recstack as rs
model = rs.load({str(tmp_path / "bundle")!r})
encoder, row = model.schema.encoder, {row!r}
items = {{n: v[None] for n, v in encoder.items([row], roles=("item", "pair")).items()}}
page = model.predict({{**encoder.requests([row]), **items}})
assert page["click"].shape == (1, 1), page
print(*[m for m in ("recstack.training", "pandas", "sklearn", "matplotlib", "polars") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# -- the reader of imports is itself tested ---------------------------------------------------------------------------
def test_an_import_counts_at_every_depth_but_not_for_type_checkers():
    tree = ast.parse(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from recstack.data import Log\n"
        "else:\n    import recstack.kernels.rows\n"
        "def f():\n    from ..training import Trainer\n    import_module('recstack.cascade')\n"
    )
    found = {n for n in imports(tree, "recstack.models.base", package=False) if n.startswith("recstack")}
    assert found == {"recstack.kernels.rows", "recstack.training.Trainer", "recstack.cascade"}
    assert "recstack.training.Trainer" not in imports(tree, "recstack.models.base", package=False, top_level=True)


@pytest.mark.parametrize(
    ("here", "there", "allowed"),
    [
        ("nn", "kernels", True),
        ("nn", "losses", False),
        ("features", "data", False),
        ("models", "training", True),
        ("training", "models", False),
        ("serving", "cascade", True),
        ("cascade", "serving", False),
        ("cli", "", True),
        ("models", "", False),
        ("catalog", "cli", False),
    ],
)
def test_the_stairs(here, there, allowed):
    assert may(here, there) is allowed
