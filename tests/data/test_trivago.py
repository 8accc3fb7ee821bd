"""Trivago's lists: a small file of its format, and the real one."""

from __future__ import annotations

import polars as pl
import pytest

import recstack as rs
from recstack.data import datasets as ds
from recstack.errors import DataError

HEAD = (
    "user_id,session_id,timestamp,step,action_type,reference,platform,city,device,current_filters,impressions,prices\n"
)


def put(folder, rows):
    (folder / "trivago-100k").mkdir(exist_ok=True)
    (folder / "trivago-100k" / "events.csv").write_text(HEAD + "".join(rows))
    return folder


@pytest.fixture
def folder(tmp_path):
    where = 'FR,"Nice, France",mobile'
    return put(
        tmp_path,
        [
            f"u,s,10,1,interaction item image,7,{where},,,\n",
            f"u,s,11,2,search for destination,Nice,{where},,,\n",
            f"u,s,12,3,interaction item image,8,{where},,,\n",
            f"u,s,13,4,clickout item,8,{where},Pool|Spa,9|8|7,30|20|10\n",
            f"u,s,14,5,clickout item,6,{where},,9|8,30|20\n",  # not in its list
            f"v,t,15,1,clickout item,9,{where},,9,30\n",
        ],
    )


def test_rows_are_what_was_shown_in_order_with_what_the_session_did_before(folder):
    log = ds.trivago(data_dir=folder)
    assert log.request == "request"
    assert log.events.select("request", "item_id", "position", "price", "click", "met", "met_last").rows() == [
        (0, "9", 1, 30.0, 0, 0.0, 0.0),
        (0, "8", 2, 20.0, 1, 1.0, 1.0),  # looked at before, and last
        (0, "7", 3, 10.0, 0, 1.0, 0.0),
        (1, "9", 1, 30.0, 1, 0.0, 0.0),
    ]
    assert log.events["session"].to_list() == [["7", "8"]] * 3 + [[]]
    assert log.events["filters"].to_list() == [["Pool", "Spa"]] * 3 + [[]]
    assert log.events["city"][0] == "Nice, France"
    encoder = rs.Encoder(log.schema).fit(log)
    assert encoder.encode(log).n_requests == 2


def test_hotels_without_their_prices_are_named(folder):
    put(folder, ["u,broken,10,1,clickout item,8,FR,Nice,mobile,,9|8,30\n"])
    with pytest.raises(DataError, match="session 'broken' shows other hotels than it has prices for"):
        ds.trivago(data_dir=folder)


@pytest.mark.real_data
@pytest.mark.slow
def test_real_trivago(data_dir):
    if not (data_dir / "trivago-100k").is_dir():
        pytest.skip(f"no trivago-100k in {data_dir}")
    events = ds.trivago(data_dir=data_dir).events
    assert (events.height, events["request"].n_unique(), events["user_id"].n_unique()) == (312_514, 13_596, 6_593)
    clicked = events.filter(pl.col("click") == 1)
    assert (clicked.height, clicked.filter(pl.col("position") == 1).height) == (13_596, 4_209)
