"""Numeric(fill="learned"): a null reaches the model, which learns what it stands for."""

import polars as pl
import pytest
import torch
from torch.testing import assert_close

import recstack as rs
from recstack import testing
from recstack.errors import SchemaError
from recstack.features import Inputs
from recstack.schema import Categorical, Numeric, Schema, Task


def log(**options):
    frame = pl.DataFrame(
        {
            "user": [1, 1, 2, 2],
            "item": [1, 2, 1, 3],
            "age": [10.0, None, 30.0, None],
            "click": [1, 0, 0, 1],
        }
    )
    features = [
        Categorical("user", "user"),
        Categorical("item", "item"),
        Numeric("age", "pair", fill="learned", **options),
    ]
    return rs.Log(frame, Schema(features, [Task("click")]))


def test_a_missing_number_has_a_value_that_is_learned():
    rows = log(transform="standard")
    encoder = rs.Encoder(rows.schema).fit(rows)
    batch = encoder.encode(rows).batch([0, 1, 2, 3])
    found = batch["age"].flatten()
    assert_close(found.nan_to_num(), torch.tensor([-1.0, 0.0, 1.0, 0.0]))  # mean and deviation are of what is known
    assert found.isnan().tolist() == [False, True, False, True]
    inputs = Inputs(encoder.schema, 4)
    inputs.missing["age"].load_state_dict({"value": torch.tensor(5.0)})
    vector = inputs(batch)["age"]
    assert_close(vector.flatten(), torch.tensor([-1.0, 5.0, 1.0, 5.0]))
    vector.sum().backward()
    assert [p.grad for p in inputs.missing["age"].parameters()] == [2]


@pytest.mark.parametrize("options", [{}, {"powers": (1, 2)}, {"embedding": "autodis"}, {"transform": "quantile"}])
def test_models_train_and_score_with_nulls(options):
    rows = log(**options)
    schema = rs.Encoder(rows.schema).fit(rows).schema
    for build in (rs.ranking.DeepFM, rs.ranking.LR):
        model = build(schema)
        testing.wake(model)
        before = {n: p.clone() for n, p in model.named_parameters() if "missing" in n}
        assert (model.fit(rows, epochs=1, progress=False).score(rows)["click"] > 0).all()
        assert all((p != before[n]).all() for n, p in model.named_parameters() if n in before)


def test_what_else_a_fill_may_be():
    with pytest.raises(SchemaError, match="'age': fill= is a number or 'learned', got 'mean'"):
        Numeric("age", fill="mean")
    with pytest.raises(SchemaError, match="of bins nothing can be learned"):
        Numeric("age", fill="learned", transform="bucketize")
    schema = log().schema
    assert Schema.from_dict(schema.to_dict()) == schema
