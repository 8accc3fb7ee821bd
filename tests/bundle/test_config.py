"""Constructor arguments are remembered, and only trusted code is imported."""

from __future__ import annotations

import functools
import json
import sys
import types

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recstack import bundle, errors
from recstack.errors import BundleError

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text().filter(lambda key: not key.startswith("$")), inner, max_size=4)
    ),
    max_leaves=12,
)


class Outer:
    class Inner:
        pass


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["a", "b", "type", "items"]), plain))
def test_plain_arguments_survive_json(arguments):
    assert bundle.decode_config(json.loads(json.dumps(bundle.encode_config(arguments)))) == arguments


def test_classes_partials_schemas_and_numpy_scalars():
    schema = object()
    arguments = {
        "cls": errors.DataError,
        "nested": (functools.partial(errors.RequestError, status=400, field=errors.DataError),),
        "schema": schema,
        "n": np.int64(3),
        "x": np.float32(0.5),
    }
    encoded = json.loads(json.dumps(bundle.encode_config(arguments, schema)))
    assert encoded["schema"] == {"$schema": 1}
    assert encoded["nested"] == [
        {"$": "recstack.errors:RequestError", "status": 400, "field": {"$": "recstack.errors:DataError"}}
    ]
    back = bundle.decode_config(encoded, schema=schema)
    assert back["cls"] is errors.DataError
    assert back["schema"] is schema
    assert back["n"] == 3
    assert type(back["n"]) is int
    assert back["x"] == 0.5
    assert back["nested"][0].func is errors.RequestError
    assert back["nested"][0].keywords == {"status": 400, "field": errors.DataError}


def local_class():
    class Local:
        pass

    return Local


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "'x' is nan"),
        (float("inf"), "'x' is inf"),
        (lambda: 1, "'x' is a function"),
        (np.zeros(3), "'x' is a ndarray"),
        (object(), "'x' is a object"),
        ({1: 2}, "key 1"),
        ({"$": "os:system"}, r"key '\$'"),
        ((1, {2, 3}), r"'x\[1\]' is a set"),
        ({"deep": object()}, r"'x\.deep'"),
        (functools.partial(errors.DataError, "positional"), "'x' is a partial"),
        (functools.partial(len), "'x' is a partial"),
        (local_class(), "inside a function"),
    ],
)
def test_what_cannot_be_remembered_is_named(value, message):
    with pytest.raises(BundleError, match=message):
        bundle.encode_config({"x": value})


def test_a_schema_that_was_not_saved_is_said_so():
    with pytest.raises(BundleError, match="schema"):
        bundle.decode_config({"schema": {"$schema": 1}})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("os:system", "trust"),
        ("subprocess:Popen", r"trust=\('subprocess',\)"),
        ("recstackevil:Model", "trust"),
        ("recstack.bundle.store:Path", "trust"),  # a class that a trusted module imported
        ("recstack.bundle.store:os.system", "does not name a class"),
        ("recstack.errors:unknown", "does not name a class"),
        ("recstack.errors:RecStackError.__init__.__globals__", "class"),
        ("recstack.errors:Missing", "does not exist"),
        ("recstack.nothing:Missing", "cannot be imported"),
        ("recstack.errors", "not a class path"),
        ("recstack.errors:", "not a class path"),
        ("../x:Y", "not a class path"),
        (3, "not a class path"),
    ],
)
def test_untrusted_or_missing_classes_are_refused(path, message):
    with pytest.raises(BundleError, match=message):
        bundle.resolve(path)
    with pytest.raises(BundleError, match=message):
        bundle.decode_config({"$": path})


def test_an_untrusted_module_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BundleError, match="evil_package"):
        bundle.resolve("evil_package:Model")
    assert "evil_package" not in sys.modules


def test_trust_opens_a_package_and_nothing_beside_it(monkeypatch):
    for name in ("mine", "mine.models", "mineral"):
        module = types.ModuleType(name)
        module.Model = type("Model", (), {"__module__": name})
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(sys.modules["mine"], "models", sys.modules["mine.models"], raising=False)
    assert bundle.resolve("mine.models:Model", trust=("mine",)) is sys.modules["mine.models"].Model
    assert bundle.resolve("mine:Model", trust="mine") is sys.modules["mine"].Model
    with pytest.raises(BundleError, match="mineral"):
        bundle.resolve("mineral:Model", trust=("mine",))


def test_a_nested_class_has_a_path():
    path = bundle.class_path(Outer.Inner)
    assert path.endswith(":Outer.Inner")
    assert bundle.resolve(path, trust=(Outer.__module__,)) is Outer.Inner
