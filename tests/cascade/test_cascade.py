"""The cascade: what it lets through, learns from, explains, measures and saves."""

import itertools
import json

import numpy as np
import pytest
import torch

import recstack as rs
from recstack.candidates import Candidates
from recstack.cascade import scored_features
from recstack.cascade.cascade import _unclicked
from recstack.cascade.lists import pair_tensors, stage_batch
from recstack.data.truth import Truth, next_events

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def market():
    return rs.simulator.simulate(users=150, items=120, impressions=12_000, seed=3)


@pytest.fixture(scope="module")
def parts(market):
    return rs.split.by_time(market.log(), valid=0.15, test=0.15)


@pytest.fixture(scope="module")
def fitted(parts):
    train, valid, _ = parts
    torch.manual_seed(0)
    encoder = rs.Encoder(train.schema).fit(train)
    schema = encoder.schema.without("position")
    retrievers = [rs.retrieval.Popularity(), rs.retrieval.Swing(), rs.retrieval.DSSM(schema, dim=8, hidden=(16, 8))]
    names = [r.name for r in retrievers]
    hidden = rs.Vector("hidden_ranker", role="pair", size=8)
    cascade = rs.Cascade(
        retrievers,
        pre_ranker=rs.pre_ranking.COLD(scored_features(schema, names), dim=4, hidden=(8,)),
        ranker=rs.ranking.DIN(scored_features(schema, [*names, "pre_ranker"]), dim=4, hidden=(8,)),
        calibrator=rs.calibration.Isotonic(),
        reranker=rs.reranking.PRM(scored_features(schema, [*names, "ranker"]).with_features(hidden), dim=4, width=8),
        rules=[rs.rules.MMR(0.9), rs.rules.CategoryCap("category", 3)],
        candidates=40,
        keep_pre_ranked=30,
        keep_ranked=20,
    )
    options = dict.fromkeys(("dssm", "pre_ranker", "ranker", "reranker"), QUIET)
    return cascade.fit(train, valid, late=10, negatives=6, options=options)


def test_each_stage_only_passes_on_what_it_was_given(fitted, parts):
    user = parts[0].events["user_id"][0]
    stages = {s["name"]: {row["item"] for row in s["items"]} for s in fitted.explain(user, 5)["stages"]}
    order = ["merged", "pre_ranker", "ranker", "reranker", "MMR", "CategoryCap", "page"]
    for before, after in itertools.pairwise(order):
        assert stages[after] <= stages[before]
    assert stages["merged"] == stages["popularity"] | stages["swing"] | stages["dssm"]
    assert len(stages["pre_ranker"]) <= 30
    assert len(stages["ranker"]) <= 20
    assert len(stages["page"]) == 5


def test_nobody_is_shown_what_they_have_seen(fitted, parts):
    past = parts[0].concat(parts[1])
    for user in past.events["user_id"].unique().to_list()[:20]:
        seen = set(past.events.filter(past.events["user_id"] == user)["item_id"].to_list())
        assert not seen & {row["item"] for row in fitted.recommend(user, 10)}


def test_a_loaded_cascade_gives_the_same_pages_to_the_bit(fitted, parts, tmp_path):
    users = parts[0].events["user_id"].unique(maintain_order=True).to_list()[:10]
    fitted.save(tmp_path / "page", {"metrics.json": "{}"})
    again = rs.load(tmp_path / "page")
    assert again.recommend(users, 8) == fitted.recommend(users, 8)
    assert again.scales == fitted.scales


def test_an_event_changes_the_next_page(fitted, parts, tmp_path):
    fitted.save(tmp_path / "page")
    cascade = rs.load(tmp_path / "page")
    user = parts[0].events["user_id"][0]
    first = cascade.recommend(user, 5)[0]["item"]
    cascade.profiles.append(user, first)
    assert first not in {row["item"] for row in cascade.recommend(user, 5)}


def test_the_report_counts_as_a_naive_loop_does(fitted, parts):
    train, valid, test = parts
    past = train.concat(valid)
    report = fitted.evaluate(test, past, k=5, timed=2)
    users, found = 0, {"recall": 0.0, "ndcg": 0.0}
    columns = fitted.encoder.encode(test)
    rows, _ = next_events(columns)
    pages = fitted.pages(fitted.requests_of(columns, rows, fitted.encoder.encode(past)), 5)
    for place, row in enumerate(rows):
        mine = columns.user_ids == columns.user_ids[row]
        relevant = set(columns.item_ids[mine & columns.positives()].tolist()) - {1}
        missing = int((mine & columns.positives() & (columns.item_ids == 1)).sum())
        total = len(relevant) + missing
        hits = [int(i) in relevant for i in pages.ids[place].tolist()]
        found["recall"] += sum(hits) / total
        best = sum(1 / np.log2(2 + j) for j in range(min(5, total)))
        found["ndcg"] += sum(h / np.log2(2 + j) for j, h in enumerate(hits)) / best
        users += 1
    assert report.requests == users > 10
    assert report.stage("page")["recall@k"] == pytest.approx(found["recall"] / users)
    assert report.stage("page")["ndcg@k"] == pytest.approx(found["ndcg"] / users)
    json.dumps(report.to_dict())
    assert "page" in str(report)


def test_the_report_says_whether_pre_ranker_and_ranker_agree(fitted, parts):
    train, valid, test = parts
    past = train.concat(valid)
    report = fitted.evaluate(test, past, k=5, timed=0)
    columns = fitted.encoder.encode(test)
    rows, _ = next_events(columns)
    requests = fitted.requests_of(columns, rows, fitted.encoder.encode(past))
    merged = fitted.retrieve(requests)
    first, _ = fitted._until("ranker", requests, found=merged)  # the pre-ranker's order, cut at 30
    theirs = fitted.known_of(merged.ids, requests, "ranker")
    batch = stage_batch(fitted.ranker.schema, requests.batch, merged, fitted.encoder.catalog, fitted.scaled(theirs))
    score = fitted.logits(fitted.ranker, batch, "ranker")[0].masked_fill(~merged.mask, -torch.inf).detach()
    best = merged.ids.gather(1, score.argsort(dim=1, descending=True, stable=True))[:, :5].tolist()
    overlap = [len({*a} & {*b}) / 5 for a, b in zip(best, first.ids[:, :5].tolist(), strict=True)]
    survive = [len({*a} & {*b}) / 5 for a, b in zip(best, first.ids.tolist(), strict=True)]
    assert report.agreement["overlap@k"] == pytest.approx(np.mean(overlap))
    assert report.agreement["survive"] == pytest.approx(np.mean(survive))
    assert np.mean(overlap) < np.mean(survive) <= 1
    assert 0 < report.agreement["ndcg@k"] < 1
    assert "overlap@5" in str(report)
    assert len(fitted.stage_scores(requests, merged).ids[0]) == merged.width


def test_a_training_list_holds_its_own_item_first_and_once(fitted, parts):
    past, after = fitted.encoder.encode(parts[0]), fitted.encoder.encode(parts[1])
    lists = fitted.training_lists(after, past, "ranker", negatives=6)
    ids, label = lists.candidates.ids, lists.labels["click"]
    assert 0 < len(lists) < after.positives().sum()
    reached, _ = fitted._until("ranker", fitted.requests_of(after, lists.rows, past))
    assert (reached.ids == ids[:, :1]).any(1).all()  # what would not have come this far teaches nothing
    assert (label[:, 0] == 1).all()
    assert not (label[:, 1:] > 0).any()
    assert not ((ids[:, 1:] == ids[:, :1]) & (ids[:, 1:] > 0)).any()
    batch = lists.batch(np.arange(4))
    assert set(batch) >= {"click@label", "score_swing", "score_pre_ranker", "item_id", "user_id", "item_id@clicked"}
    fitted.ranker.losses(batch)


def test_unclicked_neighbours_were_shown_to_the_same_user(fitted, parts):
    columns = fitted.encoder.encode(parts[0])
    rows = np.flatnonzero(columns.positives())[:50]
    near = _unclicked(columns, rows, 3)
    good = columns.positives()
    for row, items in zip(rows, near, strict=True):
        shown = set(columns.item_ids[(columns.user_ids == columns.user_ids[row]) & ~good].tolist())
        assert {int(i) for i in items if i} <= shown
    assert (near > 0).any()


def test_truth_knows_the_next_items_and_counts_what_the_catalogue_lacks():
    truth = Truth(np.array([0, 0, 1]), np.array([5, 7, 9]), 2, np.array([1, 0]))
    assert truth.hits(torch.tensor([[7, 8], [9, 0]])).tolist() == [[True, False], [True, False]]
    assert truth.count.tolist() == [3, 1]
    assert truth.select(np.array([1])).hits(torch.tensor([[9, 5]])).tolist() == [[True, False]]


def test_pair_features_nobody_knows_are_unknown():
    schema = rs.Schema(
        [
            rs.Categorical("item", "item", size=5),
            rs.Categorical("position", "pair", size=9),
            rs.Numeric("score_x", "pair"),
            rs.Vector("hidden", "pair", size=2),
        ]
    )
    out = pair_tensors(schema, {"score_x": torch.ones(2, 3)}, (2, 3))
    assert out["position"].eq(1).all()
    assert out["hidden"].eq(0).all()
    assert out["score_x"].eq(1).all()


def test_trained_stages_are_left_as_they_are(parts):
    train, _, _ = parts
    encoder = rs.Encoder(train.schema).fit(train)
    ranker = rs.ranking.LR(encoder.schema)
    rs.Trainer(ranker, epochs=1, progress=False).fit(train)
    weights = {k: v.clone() for k, v in ranker.state_dict().items()}
    cascade = rs.Cascade([rs.retrieval.Popularity()], ranker=ranker).fit(train)
    assert all(torch.equal(v, weights[k]) for k, v in cascade.ranker.state_dict().items())
    assert len(cascade.recommend(train.events["user_id"][0], 5)) == 5


def test_bad_cascades_say_what_is_wrong(parts):
    with pytest.raises(rs.ConfigError, match="at least one retriever"):
        rs.Cascade([])
    with pytest.raises(rs.ConfigError, match="one name"):
        rs.Cascade([rs.retrieval.Popularity(), rs.retrieval.Popularity()])
    with pytest.raises(rs.ConfigError, match="ranker"):
        rs.Cascade([rs.retrieval.Popularity()], calibrator=rs.calibration.Platt())
    with pytest.raises(rs.ConfigError, match="fit"):
        rs.Cascade([rs.retrieval.Popularity()]).save("nowhere")
    with pytest.raises(rs.DataError, match="knows no users"):
        rs.Cascade([rs.retrieval.Popularity()]).recommend(1)


def test_the_funnel_is_a_picture(fitted, parts, tmp_path):
    fitted.evaluate(parts[2], parts[0], timed=0).figure(tmp_path / "funnel.png")
    assert (tmp_path / "funnel.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_of_several_users_is_that_of_each_alone(fitted, parts):
    users = parts[0].events["user_id"].unique(maintain_order=True).to_list()[:6]
    together = fitted.recommend(users, 5)
    for user, page in zip(users, together, strict=True):
        alone = fitted.recommend(user, 5)
        assert [row["item"] for row in alone] == [row["item"] for row in page]


def test_candidates_of_blocks_of_other_widths_are_joined(fitted):
    from recstack.cascade.cascade import _wide

    some = Candidates(torch.tensor([[3, 4]]), torch.ones(1, 2))
    assert _wide(some.ids, 4).tolist() == [[3, 4, 0, 0]]
    assert _wide(some.ids, 1).tolist() == [[3]]


def test_a_log_of_lists_is_read_row_by_row():
    """Stages learn from lists that the cascade makes, whatever was shown together."""
    log = rs.simulator.small(users=40, items=30, impressions=3000, lists=True)
    train, valid, _ = rs.split.by_time(log)
    encoder = rs.Encoder(train.schema).fit(train)
    ranker = rs.ranking.LR(encoder.schema)
    cascade = rs.Cascade([rs.retrieval.Popularity()], ranker=ranker, calibrator=rs.calibration.Platt())
    cascade.fit(train, valid, options={"ranker": {"epochs": 1, "progress": False}})
    assert train.request is not None
    assert ranker.fitted
    assert cascade.evaluate(valid).stages
