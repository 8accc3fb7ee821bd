"""Users that training never saw: whichever way their attributes come in, they are ranked for better than by popularity."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import recstack as rs

ATTRIBUTES = ("age", "gender", "country")


@pytest.fixture(scope="module")
def market():
    """Taste alone decides and attributes hint at it; a third of the users is held out. Attributes also as a profile."""
    log = rs.simulator.planted("taste", users=1500, items=40, impressions=60_000).log()
    features = [f for f in log.schema.features if f.name in ("user_id", "age", "gender", "item_id", "category")]
    log.schema = log.schema.replace(features=[*features, rs.Categorical("country", "user")])
    train, _, cold = rs.split.by_user(log, 0.0, 0.33)
    profile = rs.ProfileEncoder(ATTRIBUTES, size=8).fit(train, epochs=30, progress=False)
    train, cold = profile.transform(train), profile.transform(cold)
    encoder = rs.Encoder(train.schema).fit(train)
    return encoder, train, encoder.encode(train), encoder.encode(cold)


def gauc(score: np.ndarray, cold) -> float:
    label, group = torch.from_numpy(cold.labels["click"]), torch.from_numpy(np.asarray(cold._user_rows))
    return rs.metrics.gauc(torch.from_numpy(score), label, group=group).item()


def vectors(train: rs.Log, name: str) -> dict:
    """What another model might know of an attribute's values: how often each category is clicked by those who have it."""
    rows = train.events.join(train.users, on="user_id").join(train.items, on="item_id")
    rates = rows.group_by(name, "category").agg(pl.col("click").mean()).pivot("category", index=name, values="click")
    table = rates.drop(name).fill_null(0.25).to_numpy()
    return dict(zip(rates[name], (table - table.mean(0)) / table.std(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["embedding", "pretrained", "autoencoder"])
def test_attributes_beat_popularity_for_users_that_training_never_saw(market, way):
    encoder, train, known, cold = market
    seen = ("profile",) if way == "autoencoder" else ATTRIBUTES
    schema = encoder.schema.without(*(f.name for f in encoder.schema.by_role("user") if f.name not in seen))
    if way == "pretrained":
        given = [replace(schema.feature(n), dim=train.items["category"].n_unique(), trainable=False) for n in seen]
        schema = schema.with_features(*given)
    torch.manual_seed(0)
    model = rs.ranking.DeepFM(schema, dim=8, hidden=(32,), norm=None)
    if way == "pretrained":
        for name in ATTRIBUTES:
            assert model.load_vectors(name, vectors(train, name)) == schema.feature(name).size - 2
    rs.Trainer(model, lr={"embedding": 0.05, "default": 3e-3}, epochs=3, batch_size=512, progress=False).fit(known)
    clicks = np.bincount(known.item_ids, known.labels["click"], encoder.catalog.size)
    popularity = clicks / np.maximum(np.bincount(known.item_ids, minlength=encoder.catalog.size), 1)
    assert gauc(model.score(cold)["click"], cold) > gauc(popularity[cold.item_ids], cold) + 0.01
