"""The Open Bandit sample: a small file of its format, and the real one."""

from __future__ import annotations

import numpy as np
import pytest

from recstack.data import datasets as ds
from recstack.errors import ConfigError, DataError
from recstack.metrics import off_policy


@pytest.fixture
def folder(tmp_path):
    here = tmp_path / "obd" / "bts" / "women"
    here.mkdir(parents=True)
    (here / "women.csv").write_text(
        ",timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,user_feature_2,user_feature_3,"
        "user-item_affinity_0,user-item_affinity_1\n"
        "0,2019-11-24 00:00:01.5+00:00,1,3,1,0.25,a,b,c,d,0.0,2.0\n"
        "1,2019-11-24 00:00:02+00:00,0,1,0,0.75,a,b,c,e,1.0,0.0\n"
    )
    (here / "item_context.csv").write_text(
        ",item_id,item_feature_0,item_feature_1,item_feature_2,item_feature_3\n0,0,-0.5,x,y,z\n1,1,0.5,x,y,w\n"
    )
    return tmp_path


def test_open_bandit_has_arms_places_chances_and_clicks(folder):
    log = ds.open_bandit("bts", "women", data_dir=folder)
    events = log.events
    assert events.select("item_id", "position", "click", "propensity", "affinity").rows() == [
        (1, 3, 1, 0.25, 2.0),
        (0, 1, 0, 0.75, 1.0),
    ]
    assert events["time"].diff().to_list() == [None, 1]
    assert log.items["item_feature_0"].to_list() == [-0.5, 0.5]
    assert log.schema.user is None
    with pytest.raises(ConfigError, match="Did you mean 'random'"):
        ds.open_bandit("randon", data_dir=folder)
    with pytest.raises(DataError, match="put the folder"):
        ds.open_bandit(data_dir=folder / "obd")
    (folder / "obd" / "bts" / "women" / "women.csv").write_text("item_id\n1\n")
    with pytest.raises(DataError, match="no column 'timestamp'"):
        ds.open_bandit("bts", "women", data_dir=folder)


@pytest.mark.real_data
def test_real_open_bandit(data_dir):
    if not (data_dir / "obd").is_dir():
        pytest.skip("no Open Bandit sample here")
    logs = {p: ds.open_bandit(p, "women", data_dir=data_dir) for p in ("random", "bts")}
    assert [int(log.events["click"].sum()) for log in logs.values()] == [46, 46]
    events = logs["bts"].events
    assert events["item_id"].n_unique() == 46
    with pytest.warns(RuntimeWarning, match="covers the policy badly: 10000 rows count as 2, .*the largest 21739"):
        off_policy.importance(np.full(10_000, 1 / 46), events["propensity"])  # the random policy, from the other's log
