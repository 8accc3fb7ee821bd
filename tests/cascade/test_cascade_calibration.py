"""The cascade's calibrator: by field, and fitted again without its models."""

from __future__ import annotations

import copy

import pytest
import torch

import recstack as rs
from recstack.calibration import ByField, DownSampling, Platt
from recstack.errors import ConfigError


@pytest.fixture(scope="module")
def parts():
    log = rs.simulator.small(impressions=4000)
    return rs.split.by_time(log, valid=0.2, test=0.2)


@pytest.fixture(scope="module")
def fitted(parts):
    train, valid, _ = parts
    schema = rs.Encoder(train.schema).fit(train).schema.without("position")
    ranker = rs.ranking.LR(schema).fit(train, epochs=1, progress=False)
    cascade = rs.Cascade([rs.retrieval.Popularity()], ranker=ranker, calibrator=ByField("category", Platt))
    return cascade.fit(train, valid)


def test_a_calibrator_by_field_reads_the_items_own_column(fitted, parts, tmp_path):
    users = parts[0].events["user_id"].unique(maintain_order=True)[:20]
    page = fitted.pages(fitted.requests(users), 5)
    category = fitted.encoder.catalog.batch(page.ids.numpy())["category"]
    expected = fitted.calibrator.probability(page.source["ranker"], category)
    torch.testing.assert_close(page.source["probability"], expected, equal_nan=True)
    assert (expected != fitted.calibrator.probability(page.source["ranker"]))[page.mask].any()
    fitted.save(tmp_path / "page")
    again = rs.load(tmp_path / "page")
    same = again.pages(again.requests(users), 5).source["probability"]
    assert torch.equal(same[page.mask], page.source["probability"][page.mask])


def test_fitted_again_on_recent_rows_only_the_calibrator_changes(fitted, parts):
    train, valid, test = parts
    cascade = copy.copy(fitted)
    cascade.calibrator = ByField("category", Platt)
    before = [p.clone() for p in fitted.ranker.parameters()]
    cascade.recalibrate(test, train.concat(valid))
    assert all(torch.equal(a, b) for a, b in zip(before, fitted.ranker.parameters(), strict=True))
    data, logit, hit = cascade.page_lists(cascade.encoder.encode(test), cascade.encoder.encode(train.concat(valid)))
    live = data.candidates.mask
    p = cascade.calibrator.probability(logit[live], field=cascade.field_ids(data.candidates.ids)["field"][live])
    assert p.mean().item() == pytest.approx(hit[live].float().mean().item(), rel=0.05)


def test_known_rates_need_no_fit_and_wrong_columns_are_named(fitted, parts):
    train = parts[0]
    cascade = rs.Cascade(fitted.retrievers, ranker=fitted.ranker, calibrator=DownSampling(negative=0.1)).fit(train)
    page = cascade.pages(cascade.requests(train.events["user_id"][:3]), 4)
    logit, ranked = (page.source[name][page.mask] for name in ("probability", "ranker"))
    torch.testing.assert_close(logit.logit(), ranked + torch.tensor(0.1).log())
    cascade.calibrator = ByField("categry", Platt)
    with pytest.raises(ConfigError, match="Did you mean 'category'"):
        cascade.recalibrate(parts[1], train)
    cascade.calibrator = None
    with pytest.raises(ConfigError, match="has no calibrator"):
        cascade.recalibrate(parts[1], train)
