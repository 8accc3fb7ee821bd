"""S3-Rec's format: a line per user, `user item item ...` in order of time, and the items' attributes as JSON.

Five 5-core sets: Amazon Beauty, Sports and Outdoors, Toys and Games; Yelp; Last.fm. No terms of use are stated.

Citation: Kun Zhou et al. 2020. S3-Rec: Self-Supervised Learning for Sequential Recommendation with Mutual Information
Maximization. CIKM. https://arxiv.org/abs/2008.07873
"""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from recstack.data.datasets.about import About, Remote
from recstack.data.datasets.files import find_file, read_bytes
from recstack.data.datasets.lightgcn import read_adjacency
from recstack.data.log import Log
from recstack.errors import DataError
from recstack.schema import Categorical, History, Schema, Task

_RAW = "https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec/2a81540ae18615d88ef88227b0c066e5b74781e5/data/"

# name: (users, items, actions, sha256 of the sequences, sha256 of the attributes)
_SETS = {
    "Beauty": (
        "22,363 users, 12,101 items",
        "198,502",
        "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
        "129e40f67486f6877eff0f5318cfa8530ee8ac23d8b0d1de04e1bb7a2ba0b2d4",
    ),
    "Sports_and_Outdoors": (
        "35,598 users, 18,357 items",
        "296,337",
        "2a095e0648872beb9982408958290f5d655db5be2911c3756b5446de9f0b8de2",
        "7fb10733ac4f1811384a52144cdefa7fcc7536fa80a7232c5da9bd789155c34b",
    ),
    "Toys_and_Games": (
        "19,412 users, 11,924 items",
        "167,597",
        "176c680c688d497598c4a89a03b402c0fe78d795e5db335c2e78dd5f2d778a3f",
        "d371acd25101eedac04afc727626464b7acec770c4eda708705d51eb76eb1ad0",
    ),
    "Yelp": (
        "30,431 users, 20,033 items",
        "316,354",
        "724b219106b81dd2349027da997334ddb6da9fe2f152ad6e0d97a93170f7caed",
        "f25acd5e1e680e0b22fd4e3f4fb6be4b2a7461e9222610616e3e1ee6702dd58d",
    ),
    "LastFM": (
        "1,090 users, 3,646 items",
        "52,551",
        "9ded486adb5b0fe9dc761950afa0a9a05e93ff018992e0c52bf11afec529f802",
        "a4ccd678dc9ff6d43fe5073f491db5c9b02eb98dfa4f8c0382913a784be217ef",
    ),
}
ABOUT = tuple(
    About(
        name=f"s3rec-{name}",
        loader=f's3rec("{name}")',
        rows=f"{actions} interactions",
        what=f"{name.replace('_', ' ')}, 5-core: {size}, with attribute lists.",
        terms="none stated",
        folders=("s3rec",),
        needs=(f"{name}.txt",),
        remotes=(
            Remote(f"{_RAW}{name}.txt", f"sha256:{sequences}"),
            Remote(f"{_RAW}{name}_item2attributes.json", f"sha256:{attributes}"),
        ),
    )
    for name, (size, actions, sequences, attributes) in _SETS.items()
)


def s3rec(name: str = "Beauty", *, max_len: int = 50, data_dir: str | Path | None = None) -> Log:
    """A set in S3-Rec's format: "Beauty", "Sports_and_Outdoors", "Toys_and_Games", "Yelp", "LastFM", or files of yours.

    Terms and citation: see the top of this file.

    An implicit log of user_id, item_id and `seq`, the place in the user's sequence, which is the schema's time;
    Task("interacted"); each item's `attributes`, multi-valued (repetitions in the file are dropped); History("history")
    of the last `max_len` items and their attributes. Its protocol: the last item is the test, the one before it the
    validation; `rs.split.leave_last_out`.

    Args:
        name: of the files, without their endings.
        data_dir: see `resolve_data_dir`.

    Raises:
        DataError: a file is not there, or not of that format.
    """
    own = About(f"s3rec-{name}", "", "", "", "", ("s3rec",), (f"{name}.txt",), get="put your files there")
    folder = {a.name: a for a in ABOUT}.get(own.name, own).folder(data_dir)
    events = read_adjacency(find_file(folder, f"{name}.txt"))
    events = events.with_columns(seq=pl.int_range(pl.len()).over("user_id"))
    path = find_file(folder, f"{name}_item2attributes.json")
    try:
        attributes = {int(item): list(dict.fromkeys(values)) for item, values in json.loads(read_bytes(path)).items()}
        items = pl.DataFrame(
            {"item_id": list(attributes), "attributes": list(attributes.values())},
            schema={"item_id": pl.Int64, "attributes": pl.List(pl.Int64)},
        )
    except (ValueError, TypeError, AttributeError) as e:
        raise DataError(f"{str(path)!r} is not a JSON object of lists of attribute numbers by item: {e}.") from e
    schema = Schema(
        [
            Categorical("user_id", "user"),
            Categorical("item_id", "item"),
            Categorical("attributes", "item", multi=True),
            History("history", of=("item_id", "attributes"), max_len=max_len),
        ],
        [Task("interacted")],
        time="seq",
    )
    return Log(events, schema, items=items, implicit=True, name=f"s3rec-{name}")
