"""Facebook's retrieval: the triplets of a batch, the ensemble as one vector, and what hard negatives a Loader hands out."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import recstack as rs
from recstack import testing
from recstack.data import Loader, Requests
from recstack.errors import ConfigError, SchemaError
from recstack.schema import Categorical
from recstack.testing.worlds import communities
from recstack.training import HardNegatives

SMALL = {"dim": 4, "hidden": (8, 4)}


def model(**options):
    torch.manual_seed(0)
    return testing.wake(rs.retrieval.EBR(testing.schema(), **SMALL, **options)).eval()


def test_the_loss_is_the_slow_loop_over_triplets():
    ebr, batch = model(margin=0.5), testing.batch(testing.schema(), 7, 3, seed=2, mask=True, weight=True)
    batch["click@label"] = torch.zeros(7, 3)
    batch["click@label"][:, 0] = torch.tensor([1.0, 1, 0, 1, 1, 1, 1])
    batch["item_id"][0, 0], batch["item_id"][1, 0], batch["item_id"][3, 0] = (
        1,
        5,
        5,
    )  # out of vocabulary; one item twice
    users, ids = ebr.user_vectors(batch).squeeze(1), batch["item_id"]
    flat = {f.name: batch[f.name].flatten(0, 1) for f in testing.schema().by_role("item")}
    items = ebr.item_vectors(flat).view(7, 3, -1)
    total = weights = 0.0
    rows = [1, 3, 4, 5, 6]
    for r in rows:
        distance = lambda v, r=r: 1 - torch.cosine_similarity(users[r], v, 0)  # noqa: E731
        others = {int(ids[q, 0]): items[q, 0] for q in reversed(rows) if ids[q, 0] != ids[r, 0]}
        hard = sorted(others.values(), key=distance)[:2]
        easy = [items[r, j] for j in (1, 2) if batch["@mask"][r, j] and ids[r, j] > 1]
        terms = [(distance(items[r, 0]) - distance(v) + 0.5).clamp(min=0) for v in (*easy, *hard)]
        total = total + batch["@weight"][r, 0] * torch.stack(terms).mean()
        weights = weights + batch["@weight"][r, 0]
    assert_close(ebr.losses(batch)["triplet 1"], total / weights)


def test_an_ensemble_is_one_vector_whose_product_is_the_weighted_sum_of_cosines():
    ebr, batch = model(weights=(0.7, 0.2), hard=(0, 2)), testing.batch(testing.schema(), 4, 3)
    users = [towers.user(batch) for towers in ebr.members]
    items = [towers.item(batch) for towers in ebr.members]
    wanted = sum(
        w * torch.cosine_similarity(u.unsqueeze(1), v, -1) for w, u, v in zip((0.7, 0.2), users, items, strict=True)
    )
    assert_close(ebr(batch)["click"], wanted)
    with pytest.raises(ConfigError, match=r"got \(1.0, 1.0\) and \(2,\)"):
        model(weights=(1.0, 1.0))


@pytest.fixture(scope="module")
def world():
    log = communities().log
    features = [f if f.name != "genre" else Categorical("side", "item") for f in log.schema.features]
    rows = log.events.with_columns(side=log.events["item_id"] % 2).drop("genre")
    log = rs.Log(rows, log.schema.replace(features=features), implicit=True)
    encoder = rs.Encoder(log.schema).fit(log)
    return encoder, encoder.encode(log)


def fitted(world, hard, epochs=2):
    torch.manual_seed(0)
    ebr = rs.retrieval.EBR(world[0].schema, **SMALL)
    return ebr.fit(world[1], epochs=epochs, batch_size=64, negatives=10, hard=hard, progress=False)


def batches(world, hard):
    return list(Loader(world[1], 64, seed=3, negatives=10, hard=hard))


def test_what_is_drawn_from_the_window_stands_in_it_and_nobody_has_it(world):
    hard = HardNegatives(window=(3, 6), share=1.0)
    ebr = fitted(world, hard)
    assert hard.ranked == 2
    users = np.unique(world[1].user_ids)
    newest = np.flatnonzero(world[1].newer() == 0)
    found = ebr.recommend(Requests.of(world[1], newest), 6).ids[:, 2:]
    window = {int(world[1].user_ids[n]): set(ids.tolist()) for n, ids in zip(newest, found, strict=True)}
    offsets, met = world[1].seen(users)
    seen = {int(u): set(met[offsets[i] : offsets[i + 1]].tolist()) for i, u in enumerate(users)}
    for batch in batches(world, hard):
        for user, items in zip(batch["user_id"].tolist(), batch["item_id"][:, 1:].tolist(), strict=True):
            assert set(items) <= window[user]
            assert not set(items) & seen[user]


def test_shares_of_hard_and_of_easy_negatives(world):
    hard = HardNegatives(window=(1, 2), share=0.3)
    ebr = fitted(world, hard)
    newest = np.flatnonzero(world[1].newer() == 0)
    best = ebr.recommend(Requests.of(world[1], newest), 2).ids
    top = dict(zip(world[1].user_ids[newest].tolist(), best.tolist(), strict=True))
    users, items = (torch.cat([b[k] for b in batches(world, hard)]) for k in ("user_id", "item_id"))
    drawn = items[:, 1:]
    assert set(drawn.unique().tolist()) == set(range(2, 26))  # easy ones come from everywhere
    at_top = torch.tensor([[i in top[u] for i in row] for u, row in zip(users.tolist(), drawn.tolist(), strict=True)])
    assert abs(at_top.float().mean() - (0.3 + 0.7 * 2 / 18)) < 0.04


def test_the_share_of_negatives_of_the_positives_category(world):
    def near(hard):
        return torch.cat([(b["side"][:, 1:] == b["side"][:, :1]).float() for b in batches(world, hard)]).mean()

    usual = 6 / 18  # the user has six of the twelve on the own side
    assert abs(near(None) - usual) < 0.03
    hard = HardNegatives(share=0.0, window=(1, 1), category="side", alike=0.6)
    fitted(world, hard, epochs=1)
    assert abs(near(hard) - (0.4 * usual + 0.6 * (0.5 + 0.5 * usual))) < 0.03  # what the user has is drawn again


def test_hard_negatives_come_after_the_first_epochs_or_at_once_where_the_model_was_trained(world):
    hard = HardNegatives(window=(1, 3), share=0.5, every=2)
    ebr = fitted(world, hard, epochs=1)
    assert hard.ranked == 0
    ebr.fit(world[1], epochs=2, batch_size=64, negatives=10, hard=hard, progress=False)
    assert hard.ranked == 2
    assert ebr.training is False


def test_a_tower_of_another_paper_takes_them_too(world):
    hard = HardNegatives(window=(1, 3), share=0.5)
    tower = rs.retrieval.DSSM(world[0].schema, **SMALL)
    tower.fit(world[1], epochs=1, batch_size=64, hard=hard, progress=False)
    assert hard.ranked == 1


def test_a_resumed_run_ranks_before_it_goes_on(world, tmp_path):
    hard, again = HardNegatives(window=(1, 3), share=0.5), HardNegatives(window=(1, 3), share=0.5)
    options = {"batch_size": 64, "negatives": 10, "progress": False, "checkpoint": tmp_path}
    torch.manual_seed(0)
    rs.retrieval.EBR(world[0].schema, **SMALL).fit(world[1], epochs=1, hard=hard, **options)
    rs.retrieval.EBR(world[0].schema, **SMALL).fit(world[1], epochs=2, hard=again, resume=True, **options)
    assert again.ranked == 2


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"share": 0.7, "alike": 0.4, "category": "side"}, ConfigError, "together 1 at most; got 0.7 and 0.4"),
        ({"window": (5, 4)}, ConfigError, r"window= is \(first, last\).*got \(5, 4\) and 1"),
        ({"alike": 0.1}, ConfigError, "name the item feature, category="),
        ({"window": (101, 500)}, ConfigError, "begins beyond the 24 items"),
        ({"window": (1, 2), "category": "user_id"}, SchemaError, "'user_id' has to be a single-valued"),
    ],
)
def test_what_cannot_be_mined_is_refused(world, options, error, said):
    with pytest.raises(error, match=said):
        fitted(world, HardNegatives(**options), epochs=1)


def test_a_model_without_drawn_negatives_refuses_hard_ones(world):
    tower = rs.retrieval.YouTubeSBC(world[0].schema, **SMALL)
    with pytest.raises(ConfigError, match="YouTubeSBC is trained without drawn negatives"):
        tower.fit(world[1], epochs=1, hard=HardNegatives(window=(1, 2)), progress=False)


def test_drawn_by_given_chances_or_by_rank_but_not_both(world):
    chances = np.ones(world[1].catalog.size)
    with pytest.raises(ConfigError, match="hard= puts other items in place of drawn ones"):
        Loader(world[1], 64, negatives=2, proposal=chances, hard=HardNegatives(share=0.0))


def test_what_was_shown_and_not_chosen_is_left_out_unless_the_log_has_lists():
    log = rs.simulator.small()
    columns = rs.Encoder(log.schema).fit(log).encode(log)
    ebr = rs.retrieval.EBR(columns.schema, **SMALL)
    kept = ebr.training_columns(columns)
    assert kept.n_rows == columns.positives().sum() < columns.n_rows
    assert kept.implicit
    assert kept.positives().all()
    assert not kept.schema.by_role("pair")
    assert columns.schema.by_role("pair")
    assert not columns.implicit
    rows = log.events.select("user_id", "item_id", "click", page="user_id")
    lists = rs.Log(rows, testing.keys_only(log.schema), request="page")
    columns = rs.Encoder(lists.schema).fit(lists).encode(lists)
    assert ebr.training_columns(columns) is columns
