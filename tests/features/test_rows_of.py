"""Some requests of a batch: the batch that would have been made of them alone."""

import pytest
import torch

from recstack import testing
from recstack.features.columns import rows_of

SCHEMA = testing.schema()


@pytest.mark.parametrize("rows", [[3, 0, 0, 5], [1], []])
def test_some_rows_jagged_are_the_jagged_form_of_some_rows(rows):
    batch = testing.batch(SCHEMA, 6, 3, times=True, weight=True, mask=True)
    rows = torch.tensor(rows, dtype=torch.int64)
    found = rows_of(testing.to_jagged(batch, SCHEMA), rows, 6)
    wanted = testing.to_jagged({key: value[rows] for key, value in batch.items()}, SCHEMA)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key
    padded = rows_of(batch, rows, 6)
    assert all(torch.equal(padded[key], value[rows]) for key, value in batch.items())


def test_what_has_no_rows_stays():
    batch = {"user": torch.arange(3), "@step": torch.tensor(7), "@kind": "click"}
    assert rows_of(batch, torch.tensor([2]), 3) == {"user": torch.tensor([2]), "@step": 7, "@kind": "click"}
