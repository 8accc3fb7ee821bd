"""The schema is a value: written by people, checked at once, equal after any journey."""

import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from recstack.errors import SchemaError
from recstack.schema import (
    Categorical,
    Feature,
    History,
    Numeric,
    Schema,
    Task,
    Text,
    Vector,
    is_embedded,
    is_multi,
)

# No value is its default, so that nothing can be lost unseen.
FEATURES = [
    Categorical("user_id", "user", dim=8, group="who", arena="big", min_count=2),
    Categorical("item_id", "item", dim=16, table="things", size=50),
    Categorical("last_id", "user", dim=16, table="things", size=50),
    Categorical("genre", "item", multi=True, max_len=5, pooling="max", buckets=100),
    Numeric("price", "item", fill=1.5, transform="quantile", bins=10, powers=(1.0, 2.0, 0.5)),
    Numeric("age", "user", transform="bucketize", bins=7, dim=4, size=9),
    Text("title", "item", buckets=1000, max_len=9, pooling="sum", group="words"),
    Vector("image", "item", size=3, group="looks"),
    Categorical("country", "domain"),
    Numeric("rank", "pair"),
    Categorical("hour"),
    History("watched", of=("item_id", "genre"), max_len=7, where="click", group="past"),
]
TASKS = [
    Task("click", weight=0.5, metric="gauc", loss="focal"),
    Task("order", given="click", label="bought"),
    Task("paid", given="order"),
    Task("ordered", product=("click", "order", "paid")),
    Task("seconds", kind="regression", given="click", transform="log1p"),
    Task("rating", kind="multiclass", classes=5),
]
SCHEMA = Schema(FEATURES, TASKS, user="user_id", item="item_id", time="at")


@pytest.mark.parametrize("ending", ["json", "yaml", "yml"])
def test_files_lose_nothing(tmp_path, ending):
    path = tmp_path / f"schema.{ending}"
    SCHEMA.save(path)
    assert Schema.load(path) == SCHEMA
    assert Schema.load(str(path)).to_dict() == SCHEMA.to_dict()
    assert Schema.from_dict(json.loads(json.dumps(SCHEMA.to_dict()))) == SCHEMA


def test_a_person_writes_yaml(tmp_path):
    path = tmp_path / "schema.yaml"
    path.write_text(
        """
        features:
          - {kind: categorical, name: user_id, role: user}
          - {kind: categorical, name: item_id, role: item, dim: 16}
          - {kind: numeric, name: price, role: item, transform: log, powers: [1, 2]}
          - {kind: history, name: watched, of: item_id}
        tasks:
          - name: click
          - {name: order, given: click, weight: 0}
        time: at
        """
    )
    by_hand = Schema(
        [
            Categorical("user_id", role="user"),
            Categorical("item_id", role="item", dim=16),
            Numeric("price", role="item", transform="log", powers=(1, 2)),
            History("watched", of=("item_id",)),
        ],
        [Task("click"), Task("order", given="click", weight=0)],
        time="at",
    )
    assert Schema.load(path) == by_hand
    assert yaml.safe_load(yaml.safe_dump(by_hand.to_dict())) == by_hand.to_dict()


NAMES = st.text(min_size=1, max_size=8).filter(lambda n: "@" not in n)


@given(
    st.lists(NAMES, min_size=2, max_size=5, unique=True), st.sampled_from(["user", "item", "context", "domain", "pair"])
)
@settings(max_examples=50, deadline=None)
def test_any_column_name_survives_json(names, role):
    schema = Schema([Categorical(n, role) for n in names[1:]], [Task(names[0])])
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


def test_the_files_are_short():
    assert Schema([Categorical("a", "user")]).to_dict() == {
        "features": [{"kind": "categorical", "name": "a", "role": "user"}],
        "user": "a",
    }


def test_looking_up():
    assert SCHEMA.feature("age").bins == 7
    assert SCHEMA.task("order").column == "bought"
    assert SCHEMA.task("ordered").derived
    assert not SCHEMA.task("order").derived
    assert [f.name for f in SCHEMA.by_role("domain", "pair")] == ["country", "rank"]
    assert [h.name for h in SCHEMA.histories] == ["watched"]
    assert SCHEMA.names[:2] == ("user_id", "item_id")
    assert SCHEMA.tables["things"] == 50
    assert set(SCHEMA.tables) == {"user_id", "things", "genre", "age", "title", "country", "hour"}
    assert (is_embedded(SCHEMA.feature("age")), is_embedded(SCHEMA.feature("price"))) == (True, False)
    assert (is_multi(SCHEMA.feature("title")), is_multi(SCHEMA.feature("hour"))) == (True, False)
    with pytest.raises(SchemaError, match=r"Unknown feature 'prise'\. Did you mean 'price'"):
        SCHEMA.feature("prise")
    with pytest.raises(SchemaError, match=r"Unknown task 'clik'\. Did you mean 'click'"):
        SCHEMA.task("clik")


def test_keys_are_the_first_single_categoricals_unless_named():
    features = [
        Categorical("tags", "user", multi=True),
        Numeric("age", "user"),
        Categorical("a", "user"),
        Categorical("b", "user"),
    ]
    assert Schema(features).user == "a"
    assert Schema(features, user="b").user == "b"
    assert Schema([Numeric("age", "user")]).user is None
    assert Schema(features).item is None


def test_fitted_means_that_every_table_has_a_size():
    schema = Schema([Categorical("a", "user"), Numeric("x")])
    assert not schema.fitted
    with pytest.raises(SchemaError, match=r"Table 'a' has no size yet\. Fit an Encoder"):
        schema.require_fitted()
    fitted = schema.with_features(Categorical("a", "user", size=9))
    assert fitted.require_fitted() is fitted
    assert [f.name for f in fitted.features] == ["a", "x"]


def test_changes_make_new_schemas():
    more = SCHEMA.with_features(Numeric("new"), Categorical("hour", buckets=24))
    assert more.feature("hour").buckets == 24
    assert more.names[-1] == "new"
    assert SCHEMA.feature("hour").buckets is None
    less = SCHEMA.without("rank", "user_id")
    assert (less.user, less.item, less.time) == ("last_id", "item_id", "at")
    assert SCHEMA.replace(tasks=[]).tasks == ()
    with pytest.raises(SchemaError, match="Unknown feature 'gone'"):
        SCHEMA.without("gone")


def test_the_encoder_is_carried_and_neither_compared_nor_saved():
    marked = SCHEMA.replace(encoder="an encoder")
    assert marked == SCHEMA
    assert hash(marked) == hash(SCHEMA)
    assert marked.without("hour").encoder == "an encoder"
    assert "encoder" not in marked.to_dict()


def test_features_are_values():
    assert Categorical("a") == Categorical("a")
    assert len({Categorical("a"), Categorical("a"), Categorical("a", "user")}) == 2
    with pytest.raises(AttributeError):
        Categorical("a").name = "b"


U, I = Categorical("u", "user"), Categorical("i", "item")
WRONG = {
    "A feature's name is a non-empty text; got ''": lambda: Categorical(""),
    "Feature name 'a@b' holds '@'": lambda: Numeric("a@b"),
    "Unknown role of feature 'a' 'itm'. Did you mean 'item'?": lambda: Categorical("a", "itm"),
    "Feature 'a' has role 'history'; declare History('a', of=(...)) instead.": lambda: Categorical("a", "history"),
    "Feature 'a': dim must be a whole number of at least 1; got 0.": lambda: Categorical("a", dim=0),
    "Feature 'a': buckets must be a whole number of at least 1; got 1.5.": lambda: Categorical("a", buckets=1.5),
    "Feature 'a': min_count must be a whole number of at least 1; got True.": lambda: Categorical("a", min_count=True),
    "Feature 'a': max_len must be a whole number of at least 1; got -1.": lambda: Text("a", max_len=-1),
    "Feature 'a': bins must be a whole number of at least 1; got 0.": lambda: Numeric("a", bins=0),
    "Unknown pooling of feature 'a' 'men'. Did you mean 'mean'?": lambda: Categorical("a", pooling="men"),
    "Unknown pooling of feature 'b' 'avg'.": lambda: Text("b", pooling="avg"),
    "Unknown transform of feature 'a' 'lgo'.": lambda: Numeric("a", transform="lgo"),
    "Vector 'a' needs size=, the number of floats per row.": lambda: Vector("a"),
    "History 'h' has role 'user'; a history's role is 'history'.": lambda: History("h", "user", of="i"),
    "History 'h' needs of=(...): the item features it reads, the item's key first.": lambda: History("h"),
    "A schema's features are Categorical, Numeric, Text, Vector, History, Crossed or Hits; got 'u'.": lambda: Schema(
        ["u"]
    ),
    "A schema's tasks are Tasks, such as Task(\"click\"); got 'click'.": lambda: Schema([U], ["click"]),
    "Feature 'u' is declared twice.": lambda: Schema([U, U]),
    "user='i' names a feature of role 'item', not 'user'.": lambda: Schema([U, I], user="i"),
    "Unknown feature 'x'.": lambda: Schema([U, I], item="x"),
    "Unknown item feature in History 'h' 'genres'. Did you mean 'genre'?": lambda: Schema(
        [I, Categorical("genre", "item"), History("h", of=("i", "genres"))]
    ),
    "History 'h' reads 'u', whose role is 'user'; a history reads item features.": lambda: Schema(
        [U, I, History("h", of=("i", "u"))]
    ),
    "History 'h': the first of of= is the item's key 'i'; got 'genre'.": lambda: Schema(
        [I, Categorical("genre", "item"), History("h", of=("genre", "i"))]
    ),
    "Categorical 'last' gives table 'i' dim 8, 'i' gives it None. Give one dim, or another table= name.": lambda: (
        Schema([I, Categorical("last", "user", table="i", dim=8)])
    ),
    "Categorical 'b' gives table 't' buckets 9, 'a' gives it 8.": lambda: Schema(
        [Categorical("a", table="t", buckets=8), Categorical("b", table="t", buckets=9)]
    ),
    "Categorical 'b' gives table 't' arena x, 'a' gives it None.": lambda: Schema(
        [Categorical("a", table="t"), Categorical("b", table="t", arena="x")]
    ),
    "'b' and 'a' are of different kinds and cannot share table 't'.": lambda: Schema(
        [Text("a", table="t", buckets=8), Categorical("b", table="t", buckets=8)]
    ),
    "'b' and 'a' are of different kinds": lambda: Schema(
        [Numeric("a", table="t", transform="bucketize"), Numeric("b", table="t", transform="bucketize")]
    ),
    "A task's name is a non-empty text without '@'; got 'a@b'.": lambda: Task("a@b"),
    "Unknown kind of task 'a' 'binry'. Did you mean 'binary'?": lambda: Task("a", kind="binry"),
    "Task 'a': a product of probabilities is binary, not regression.": lambda: Task(
        "a", kind="regression", product=("b", "c")
    ),
    "Task 'a': a product's label is made from its members; drop label= and given=.": lambda: Task(
        "a", product=("b", "c"), label="x"
    ),
    "Task 'a': transform= is 'log1p', and for a regression; got 'log1p'.": lambda: Task("a", transform="log1p"),
    "Task 'b': transform= is 'log1p', and for a regression; got 'log'.": lambda: Task(
        "b", kind="regression", transform="log"
    ),
    "Task 'a' is multiclass; give classes=, at least 2.": lambda: Task("a", kind="multiclass", classes=1),
    "Task 'a': weight must not be negative; got -1.": lambda: Task("a", weight=-1),
    "Task 'a' is declared twice.": lambda: Schema([U], [Task("a"), Task("a")]),
    "Unknown task 'clik'. Did you mean 'click'?": lambda: Schema([U], [Task("click"), Task("b", given="clik")]),
    "Task 'b' is given 'a', which is regression; a condition is binary.": lambda: Schema(
        [U], [Task("a", kind="regression"), Task("b", given="a")]
    ),
    "are given each other in a circle.": lambda: Schema([U], [Task("a", given="b"), Task("b", given="a")]),
    "Task 'p': a product needs two or more binary tasks that are not products.": lambda: Schema(
        [U], [Task("a"), Task("p", product=("a",))]
    ),
    "Task 'q': a product needs two or more binary tasks": lambda: Schema(
        [U], [Task("a"), Task("b", given="a"), Task("p", product=("a", "b")), Task("q", product=("p", "b"))]
    ),
    "Task 'p' multiplies 'a' and 'b', which is a probability only if 'b' is conditional: Task(\"b\", given=\"a\").": lambda: (
        Schema([U], [Task("a"), Task("b"), Task("p", product=("a", "b"))])
    ),
    "Task 'p': the chain must begin at 'a', on which 'b' depends.": lambda: Schema(
        [U], [Task("a"), Task("b", given="a"), Task("c", given="b"), Task("p", product=("b", "c"))]
    ),
    "A schema is a mapping with a list called 'features'.": lambda: Schema.from_dict([]),
    "A schema is a mapping with a list": lambda: Schema.from_dict({"tasks": []}),
    "Unknown key in schema 'task'. Did you mean 'tasks'?": lambda: Schema.from_dict({"features": [], "task": []}),
    "A feature is a mapping with 'kind' and 'name'; got 'x'.": lambda: Schema.from_dict({"features": ["x"]}),
    "Unknown kind of feature 'category'.": lambda: Schema.from_dict({"features": [{"kind": "category", "name": "a"}]}),
    "Unknown key in feature 'a' 'bucket'. Did you mean 'buckets'?": lambda: Schema.from_dict(
        {"features": [{"kind": "categorical", "name": "a", "bucket": 3}]}
    ),
    "A feature needs a name; got": lambda: Schema.from_dict({"features": [{"kind": "numeric"}]}),
    "A task is a mapping; got 'click'.": lambda: Schema.from_dict({"features": [], "tasks": ["click"]}),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_contradictions_are_said_in_a_sentence(sentence):
    with pytest.raises(SchemaError, match=re.escape(sentence)):
        WRONG[sentence]()


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(SchemaError, match=r"Cannot read schema '.*none\.yaml': No such file"):
        Schema.load(tmp_path / "none.yaml")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(SchemaError, match=r"a\.json' is not valid JSON"):
        Schema.load(tmp_path / "a.json")
    (tmp_path / "a.yaml").write_text("features: [")
    with pytest.raises(SchemaError, match=r"a\.yaml' is not valid YAML"):
        Schema.load(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("")
    with pytest.raises(SchemaError, match="A schema is a mapping"):
        Schema.load(tmp_path / "b.yaml")


def test_chains_that_are_right_are_taken():
    chain = [Task("a"), Task("b", given="a"), Task("c", given="b")]
    schema = Schema([U], [*chain, Task("ab", product=("a", "b")), Task("abc", product=["a", "b", "c"])])
    assert schema.task("abc").product == ("a", "b", "c")
    assert History("h", of="i").of == ("i",)


def test_every_kind_is_a_feature():
    assert all(isinstance(f, Feature) for f in FEATURES)
    assert {f.kind for f in FEATURES} == {"categorical", "numeric", "text", "vector", "history"}
