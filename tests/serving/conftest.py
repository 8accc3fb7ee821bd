"""A tiny cascade with every kind of stage, saved once; learned stages keep their seeded first weights."""

from __future__ import annotations

import json

import pytest
import torch

import recstack as rs
from recstack import bundle
from recstack.cascade import scored_features
from recstack.data import Profiles

ITEMS = {"7": {"title": "The <b>Quiet</b> River", "year": 1987}, "8": {"title": "Crimson Harbor"}}
METRICS = {"stages": [{"name": "merged", "kept": 30.0, "recall": 0.5, "recall@k": 0.2, "ndcg@k": 0.1}], "k": 10}


def make_cascade(**changes) -> rs.Cascade:
    torch.manual_seed(0)
    train, _, _ = rs.split.by_time(rs.simulator.simulate(users=60, items=600, impressions=6000, seed=3).log())
    encoder = rs.Encoder(train.schema).fit(train)
    schema, names = encoder.schema, ["popularity", "swing", "dssm"]
    tower = rs.retrieval.DSSM(schema, dim=8, hidden=(16, 8))
    tower.profiles = Profiles.build(encoder.encode(train))
    last = scored_features(schema, [*names, "ranker"]).with_features(rs.Vector("hidden_ranker", role="pair", size=8))
    models = {
        "pre_ranker": rs.pre_ranking.COLD(scored_features(schema, names)),
        "ranker": rs.ranking.DIN(scored_features(schema, [*names, "pre_ranker"]), dim=8, hidden=(16, 8)),
        "reranker": rs.reranking.PRM(last, width=16),
    }
    for model in (tower, *models.values()):
        model.fitted = True
        model.eval()
    calibrator = rs.calibration.Platt().fit(torch.linspace(-2, 2, 40), (torch.arange(40) % 3 == 0).float())
    cascade = rs.Cascade(
        [rs.retrieval.Popularity(), rs.retrieval.Swing(), tower],
        **{**models, "calibrator": calibrator, "rules": [rs.rules.MMR(0.9)], **changes},
        candidates=80,
        keep_pre_ranked=60,
        keep_ranked=40,
    )
    cascade.scales = {f"score_{name}": (1.0, 0.1, 2.0) for name in [*names, "pre_ranker", "ranker"]}
    return cascade.fit(train)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """The path of a bundle with titles and measurements."""
    path = make_cascade().save(tmp_path_factory.mktemp("serving") / "page")
    found = bundle.read(path)
    bundle.write(path, found.pieces, found.meta, {"items.json": json.dumps(ITEMS), "metrics.json": json.dumps(METRICS)})
    return path
