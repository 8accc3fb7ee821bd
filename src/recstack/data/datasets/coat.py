"""Coat: ratings of coats that 290 people chose to rate, and of coats that they were told to rate (Cornell).

Terms: none stated for the data (the carrying repository's licence is MIT).

Citation: Tobias Schnabel, Adith Swaminathan, Ashudeep Singh, Navin Chandak and Thorsten Joachims. 2016. Recommendations as
Treatments: Debiasing Learning and Evaluation. ICML. https://proceedings.mlr.press/v48/schnabel16.html
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from recstack.data.datasets.about import About
from recstack.data.datasets.files import find_file, read_bytes, read_rows
from recstack.data.log import Log
from recstack.errors import DataError
from recstack.schema import Categorical, Schema, Task

ABOUT = (
    About(
        name="coat",
        loader="coat()",
        rows="11,600 ratings",
        what="290 people by 300 coats; 6,960 ratings of coats they chose, 4,640 of coats drawn at random.",
        terms="none stated for the data",
        folders=("coat",),
        needs=("train.ascii",),
        get="put the files of coat.zip (https://www.cs.cornell.edu/~schnabts/mnar/) there",
    ),
)

USERS, ITEMS = 290, 300


def coat(*, every: bool = False, data_dir: str | Path | None = None) -> tuple[Log, Log]:
    """(train, test) of Coat: ratings that are missing not at random, and ratings of coats that were drawn at random.

    Terms and citation: see the top of this file.

    Binary tasks: "rated", and "liked" (3 or more of 5, as debiasing papers have it) given that it was rated; train holds the
    6,960 ratings of coats that people chose, 24 each, test the 4,640 of 16 coats drawn for each. With `every` train holds all
    87,000 pairs: `rated` is 0 in most, and `liked` null there, which is the entire space that debiased conversion is learned
    on. Columns beside: `rating` (null where there is none), `propensity` (the authors' estimate of how likely the pair
    was to be rated, train and test alike) and `inverse_propensity`, a weight for ``Log(..., weight=)``.

    Features: user_id and the user's gender, age, location and interest in fashion; item_id and the coat's gender, type and
    color, and whether it was on the front page.

    Args:
        every: all pairs in train, not the rated ones alone.
        data_dir: see `resolve_data_dir`.

    Raises:
        DataError: the files are not there, or not of that format.
    """
    folder = ABOUT[0].folder(data_dir)
    propensity = read_rows(find_file(folder, "propensities.ascii"), ITEMS, np.float64)
    users = _features(
        folder, "user", USERS, {"gender": "gender", "age": "age", "location": "location", "fashioninterest": "interest"}
    )
    items = _features(
        folder,
        "item",
        ITEMS,
        {"gender": "made_for", "jackettype": "type", "color": "color", "onfrontpage": "front_page"},
    )
    schema = Schema(
        [
            *(Categorical(name, "user") for name in users.columns),
            *(Categorical(name, "item") for name in items.columns),
        ],
        [Task("rated"), Task("liked", given="rated")],
        user="user_id",
        item="item_id",
    )

    def part(file: str, whole: bool) -> Log:
        rating = read_rows(find_file(folder, file), ITEMS)
        for matrix in (rating, propensity):
            if matrix.shape[0] != USERS:
                raise DataError(f"Coat's {file!r} has {matrix.shape[0]} rows where {USERS} people are due.")
        user, item = np.nonzero(np.ones_like(rating) if whole else rating)
        events = pl.DataFrame(
            {"user_id": user, "item_id": item, "rating": rating[user, item], "propensity": propensity[user, item]}
        )
        given = pl.when(pl.col("rating") > 0)
        events = events.with_columns(
            rated=(pl.col("rating") > 0).cast(pl.Int8),
            liked=given.then((pl.col("rating") >= 3).cast(pl.Int8)),
            rating=given.then(pl.col("rating")),
            inverse_propensity=1 / pl.col("propensity"),
        )
        return Log(events, schema, users=users, items=items, name=ABOUT[0].name)

    return part("train.ascii", every), part("test.ascii", False)


def _features(folder: Path, side: str, rows: int, groups: dict[str, str]) -> pl.DataFrame:
    """One-hot columns, named "group:value" in the map, as one column a group."""
    path = find_file(folder, f"{side}_features_map.txt")
    names = [line.strip().split(":", 1) for line in read_bytes(path).decode("utf8").splitlines() if line.strip()]
    if any(len(n) != 2 or n[0] not in groups for n in names):
        raise DataError(f"{str(path)!r} holds other lines than 'group:value' of {', '.join(groups)}.")
    flags = read_rows(find_file(folder, f"{side}_features.ascii"), len(names))
    if flags.shape[0] != rows:
        raise DataError(f"Coat's {side} features have {flags.shape[0]} rows where {rows} are due.")
    columns: dict[str, list] = {f"{side}_id": list(range(rows))}
    for group, name in groups.items():
        at = [i for i, (g, _) in enumerate(names) if g == group]
        chosen = flags[:, at]
        columns[name] = [
            names[at[j]][1] if any_ else None
            for j, any_ in zip(chosen.argmax(1), np.asarray(chosen.any(1)), strict=True)
        ]
    return pl.DataFrame(columns)
