"""Inputs against tables looked up by hand; both spellings of a batch; names of every kind."""

import pytest
import torch

from recstack import testing
from recstack.errors import DataError, SchemaError
from recstack.features import FirstOrder, Inputs
from recstack.features.inputs import padded
from recstack.nn.sequence import Pooling
from recstack.schema import Categorical, History, Numeric, Schema, Task, Vector


def awake(module):
    """With embeddings of ordinary size, the padding row left at zeros."""
    for name, p in module.named_parameters():
        torch.nn.init.normal_(p)
        if name.endswith("weight") and "tables" in name:
            p.data[0] = 0
    return module.eval()


def row(inputs: Inputs, table: str, i: int) -> torch.Tensor:
    weight = inputs.tables.weight(table)
    return weight[i - 1] if i else torch.zeros(weight.shape[1])


def test_every_feature_is_its_row_and_lists_are_pooled():
    schema = testing.schema()
    inputs = awake(Inputs(schema, 4))
    batch = testing.batch(schema, 3, 2)
    slots = inputs(batch)
    for r in range(3):
        torch.testing.assert_close(slots["user_id"][r], row(inputs, "user_id", int(batch["user_id"][r])))
        torch.testing.assert_close(slots["favourite"][r], row(inputs, "item_id", int(batch["favourite"][r])))
        likes = [i for i in batch["likes"][r].tolist() if i]
        torch.testing.assert_close(slots["likes"][r], sum((row(inputs, "likes", i) for i in likes), torch.zeros(4)))
        steps = [
            (int(i), [g for g in genres.tolist() if g])
            for i, genres in zip(batch["item_id@watched"][r], batch["genre@watched"][r], strict=True)
            if i
        ]
        items = torch.stack([row(inputs, "item_id", i) for i, _ in steps] or [torch.zeros(4)]).mean(0)
        genres = [torch.stack([row(inputs, "genre", g) for g in some] or [torch.zeros(4)]).mean(0) for _, some in steps]
        torch.testing.assert_close(
            slots["watched"][r], torch.cat([items, torch.stack(genres or [torch.zeros(4)]).mean(0)])
        )
        for l in range(2):
            genre = [i for i in batch["genre"][r, l].tolist() if i]
            mean = torch.stack([row(inputs, "genre", g) for g in genre] or [torch.zeros(4)]).mean(0)
            torch.testing.assert_close(slots["genre"][r, l], mean)
            words = [i for i in batch["title"][r, l].tolist() if i]
            most = torch.stack([row(inputs, "title", g) for g in words] or [torch.zeros(4)]).amax(0)
            torch.testing.assert_close(slots["title"][r, l], most)
    price = batch["price"]
    torch.testing.assert_close(slots["price"], torch.stack([price, price.sign() * price**2], -1))
    assert torch.equal(slots["image"], batch["image"])
    assert torch.equal(slots["age"], batch["age"].unsqueeze(-1))


@pytest.mark.parametrize("history", ["mean", "sum", "max", "last", "attention", None])
def test_jagged_and_padded_are_one_batch(history):
    schema = testing.schema()
    inputs = awake(Inputs(schema, 4, history=history))
    batch = testing.batch(schema, 5, 3)
    one, other = inputs(batch), inputs(testing.to_jagged(batch, schema))
    torch.testing.assert_close(other.flat(), one.flat())
    if history is None:
        (a, live), (b, also) = one.sequence("watched"), other.sequence("watched")
        assert torch.equal(live, also)
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize("history", ["mean", "sum", "max", "last", "attention"])
def test_an_empty_history_is_zeros_in_both_spellings(history):
    schema = testing.schema()
    inputs = awake(Inputs(schema, 4, history=history))
    batch = testing.batch(schema, 2, 2)
    for name in ("item_id@watched", "genre@watched"):
        batch[name] = torch.zeros_like(batch[name])
    for some in (batch, testing.to_jagged(batch, schema)):
        assert not inputs(some)["watched"].any()


def test_widths_are_those_of_what_comes_out():
    schema = testing.with_dims(testing.schema())
    inputs = Inputs(schema, 7)
    batch = testing.batch(schema, 3, 2)
    slots = inputs(batch)
    for roles in ((), ("user",), ("item", "pair"), ("history",), ("user", "item")):
        assert slots.flat(*roles).shape[-1] == inputs.width(*roles)
    assert inputs.widths["user_id"] == 3
    assert inputs.widths["favourite"] == inputs.widths["item_id"] == 2  # one table, one width
    assert inputs.widths["watched"] == inputs.widths["item_id"] + inputs.widths["genre"]
    assert (inputs.widths["price"], inputs.widths["image"]) == (2, 3)
    request, candidate = slots.sides()
    assert slots.flat().shape == (3, 2, request.shape[-1] + candidate.shape[-1])
    assert slots.flat("user").shape == (3, inputs.width("user"))


def test_a_stack_is_fields_of_one_width_and_a_number_is_x_times_v():
    schema = testing.schema()
    inputs = awake(Inputs(schema, 4, stacked=True))
    batch = testing.batch(schema, 3, 2)
    slots = inputs(batch)
    fields = slots.stack()
    assert fields.shape == (3, 2, inputs.fields, 4) == (3, 2, 12, 4)
    order = [*slots.request, *slots.candidate]
    torch.testing.assert_close(
        fields[..., order.index("age"), :],
        (batch["age"].unsqueeze(-1) * inputs.lifts["age"].weight[:, 0]).unsqueeze(1).expand(3, 2, 4),
    )
    torch.testing.assert_close(fields[..., order.index("item_id"), :], slots["item_id"])
    torch.testing.assert_close(
        fields[..., order.index("watched"), :],
        (slots["watched"] @ inputs.lifts["watched"].weight.T).unsqueeze(1).expand(3, 2, 4),
    )
    assert slots.stack("user").shape == (3, 4, 4)
    assert slots.stack("item").shape == (3, 2, 5, 4)
    assert inputs.lifts["age"].bias is None
    with pytest.raises(SchemaError, match="stacked=True"):
        Inputs(schema, 4)(batch).stack()


def test_uniform_takes_one_width_whatever_the_features_say():
    schema = testing.with_dims(testing.schema())
    inputs = Inputs(schema, 6, uniform=True)
    assert inputs.widths["user_id"] == inputs.widths["item_id"] == 6


def test_a_table_without_item_columns_has_one_candidate_a_row():
    schema = testing.schema().without("item_id", "genre", "title", "price", "image", "hits", "watched", "favourite")
    inputs = Inputs(schema, 4, stacked=True)
    slots = inputs(testing.batch(schema, 5))
    assert slots.flat().shape == (5, 1, inputs.width())
    assert slots.stack().shape == (5, 1, 4, 4)


def test_items_of_a_catalog_stand_alone():
    schema = testing.schema()
    inputs = awake(Inputs(schema, 4))
    batch = testing.batch(schema, 3, 4)
    items = {f.name: batch[f.name].flatten(0, 1) for f in schema.by_role("item")}
    alone = inputs(items, "item").flat("item")
    torch.testing.assert_close(alone, inputs(batch).flat("item").flatten(0, 1))
    assert alone.shape == (12, inputs.width("item"))


def test_a_history_reads_the_tables_of_the_items():
    schema = testing.schema()
    inputs = Inputs(schema, 4)
    assert set(inputs.tables.home) == {"user_id", "likes", "item_id", "hour", "genre", "title"}
    batch = testing.batch(schema, 3, 2)
    inputs(batch)["watched"].sum().backward()
    arena = inputs.tables["4"]
    grads = arena.tables(arena.weight.grad)
    read = {int(i) for i in batch["item_id@watched"].unique() if i}
    assert {int(i) + 1 for i in grads["item_id"].any(1).nonzero()} == read
    assert not grads["user_id"].any()


def test_names_are_only_names():
    schema = testing.schema()
    unlucky = ("type", "items", "a.b", "forward", "weight", "4", "x y", "keys", "a", "b", "sizes", "T")
    other = testing.rename(schema, dict(zip(schema.names, unlucky, strict=True)))
    assert other.item == unlucky[schema.names.index("item_id")]
    a, b = awake(Inputs(schema, 4, stacked=True)), Inputs(other, 4, stacked=True).eval()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        q.data.copy_(p.data)
    one, two = a(testing.batch(schema, 3, 2)), b(testing.batch(other, 3, 2))
    assert torch.equal(one.flat(), two.flat())
    assert torch.equal(one.stack(), two.stack())
    twin = Inputs(other, 4, stacked=True).eval()
    twin.load_state_dict(b.state_dict())
    assert torch.equal(twin(testing.batch(other, 3, 2)).flat(), two.flat())


def test_a_pooling_of_ones_own():
    class Twice(Pooling):
        def __init__(self, width):
            super().__init__(2 * width)

        def forward(self, query, sequence, mask):
            return torch.cat([sequence.sum(-2), sequence.sum(-2)], -1)

    inputs = awake(Inputs(testing.schema(), 4, history=Twice))
    assert inputs.widths["watched"] == 16
    slots = inputs(testing.batch(testing.schema(), 3, 2))
    assert torch.equal(slots["watched"][:, :8], slots["watched"][:, 8:])


def test_what_is_missing_or_cannot_be_is_said():
    schema = testing.schema()
    batch = testing.batch(schema, 3, 2)
    del batch["age"]
    with pytest.raises(DataError, match=r"no column 'age', which the schema declares\. Columns: "):
        Inputs(schema, 4)(batch)
    with pytest.raises(SchemaError, match="Fit an Encoder"):
        Inputs(Schema([Categorical("item", "item")], [Task("click")]), 4)
    with pytest.raises(SchemaError, match="No feature of role domain is declared"):
        Inputs(schema, 4)(testing.batch(schema, 3, 2)).flat("domain")
    numbers = Schema([Categorical("i", "item", size=4), Numeric("p", "item"), History("h", of=("i", "p"))])
    with pytest.raises(SchemaError, match="'h' reads 'p', which has no embedding"):
        Inputs(numbers, 4)


def test_bins_of_a_number_are_embedded():
    schema = Schema([Numeric("price", "item", transform="bucketize", bins=3, size=5), Vector("v", "item", 2)])
    inputs = awake(Inputs(schema, 4))
    slots = inputs({"price": torch.tensor([[2, 4]]), "v": torch.zeros(1, 2, 2)})
    torch.testing.assert_close(slots["price"][0, 1], row(inputs, "price", 4))
    assert inputs.width() == 6


def test_padded_ids_are_left_aligned():
    values, offsets = torch.tensor([5, 6, 7]), torch.tensor([0, 2, 2, 3])
    assert padded(values, offsets).tolist() == [[5, 6], [0, 0], [7, 0]]
    nothing = torch.zeros(3, dtype=torch.long)
    assert padded(values[:0], nothing).tolist() == [[0], [0]]
    assert padded(torch.tensor([[5, 6], [7, 0]]), torch.tensor([0, 1, 2])).tolist() == [[[5, 6]], [[7, 0]]]


def test_first_order_sums_one_weight_a_value():
    schema = testing.schema()
    line = awake(FirstOrder(schema))
    batch = testing.batch(schema, 3, 2)
    slots = line.inputs(batch)
    slow = torch.zeros(3, 2)
    for f in schema.features:
        value = slots[f.name]
        if isinstance(f, Numeric | Vector):
            value = value @ line.numbers[f.name].weight[0]
        else:
            value = value.sum(-1)
        slow = slow + (value.unsqueeze(-1) if value.dim() == 1 else value)
    torch.testing.assert_close(line(batch), slow)


def wide(roles):
    """Columns of one length: what a table of click logs looks like."""
    features = [Categorical(f"c{i}", role, size=5 + i) for i, role in enumerate(roles)]
    features.insert(2, Numeric("x", roles[0]))
    features.insert(3, Numeric("y", roles[0]))
    features.insert(5, Categorical("w", roles[0], size=4, dim=3))
    schema = Schema(
        [*features, Numeric("z", roles[-1], powers=(1, 2)), Vector("v", roles[-1], size=2)], [Task("click")]
    )
    g = torch.Generator().manual_seed(0)
    batch = {}
    for f in schema.features:
        shape = (7, 1) if f.role == "item" else (7,)
        if isinstance(f, Categorical):
            batch[f.name] = torch.randint(0, f.size, shape, generator=g, dtype=torch.int32)
        else:
            batch[f.name] = torch.randn(*shape, *([2] if isinstance(f, Vector) else []), generator=g)
    return schema, batch


@pytest.mark.parametrize("roles", [("user",) * 6, ("user", "user", "user", "item", "item", "item"), ("item",) * 6])
def test_columns_of_one_length_are_what_each_is_alone(roles):
    """They are looked up, stacked and learned together; by hand each is its own row or multiple of a vector."""
    schema, batch = wide(roles)
    torch.manual_seed(0)
    inputs = awake(Inputs(schema, 4, stacked=True))
    slots = inputs(batch)

    def vector(f):
        if isinstance(f, Categorical):
            found = torch.stack([row(inputs, f.name, int(i)) for i in batch[f.name].reshape(-1)])
        elif isinstance(f, Vector):
            found = batch[f.name].reshape(7, -1)
        else:
            found = torch.stack(
                [batch[f.name].reshape(-1).sign() * batch[f.name].reshape(-1).abs() ** p for p in f.powers], -1
            )
        return found

    ordered = [schema.feature(n) for n in (*slots.request, *slots.candidate)]
    flat = torch.cat([vector(f) for f in ordered], -1)
    torch.testing.assert_close(slots.flat().reshape(7, -1), flat)
    lifted = [vector(f) @ inputs.lifts[f.name].weight.T if f.name in inputs.lifts else vector(f) for f in ordered]
    stacked = torch.stack(lifted, 1)
    torch.testing.assert_close(slots.stack().reshape(7, -1, 4), stacked)
    for role in set(roles):
        some = [i for i, f in enumerate(ordered) if f.role == role]
        torch.testing.assert_close(slots.stack(role).reshape(7, -1, 4), stacked[:, some])
    weights = torch.randn(7, len(ordered), 4)
    params = list(inputs.parameters())
    together = torch.autograd.grad((slots.stack().reshape(7, -1, 4) * weights).sum(), params)
    alone = torch.autograd.grad((stacked * weights).sum(), params)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)
    line = awake(FirstOrder(schema))
    terms = []
    for f in ordered:
        if isinstance(f, Categorical):
            terms.append(torch.stack([row(line.inputs, f.name, int(i)) for i in batch[f.name].reshape(-1)])[:, 0])
        else:
            terms.append((vector(f) @ line.numbers[f.name].weight.T)[:, 0])
    torch.testing.assert_close(line(batch).reshape(7), torch.stack(terms).sum(0))


def test_numbers_do_not_start_louder_than_ids():
    schema = Schema([Categorical("a", size=50), Numeric("x"), Numeric("y", powers=(1, 2))], [Task("click")])
    deep = Inputs(schema, 16, stacked=True, std=1e-3)
    for name in ("x", "y"):
        assert deep.lifts[name].weight.abs().max() < 0.1
    assert max(FirstOrder(schema).numbers[name].weight.abs().max() for name in ("x", "y")) < 0.1
