"""MovieLens-1M and MovieLens-100K: ratings of films (GroupLens, University of Minnesota).

Terms, as its README states them: research use; acknowledge it in publications; no redistribution without separate
permission; no commercial or revenue-bearing use without permission; no endorsement may be implied.

Citation: F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. ACM Transactions
on Interactive Intelligent Systems 5, 4, Article 19. https://doi.org/10.1145/2827872
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recstack.data.datasets.about import About, Remote
from recstack.data.datasets.files import find_file, has_file, read_table
from recstack.data.log import Log
from recstack.errors import unknown
from recstack.schema import Categorical, Feature, History, Numeric, Schema, Task, Text

_TERMS = "research only, acknowledge; no redistribution and no commercial use without permission (GroupLens README)"

_1M = About(
    name="ml-1m",
    loader="movielens_1m()",
    rows="1,000,209 ratings",
    what="6,040 users' ratings of 3,706 films, 2000-2003, with demographics, titles and genres.",
    terms=_TERMS,
    folders=("ml-1m",),
    needs=("movies.dat",),
    remotes=(
        Remote(
            "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
            "sha256:a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
            ("ratings.dat", "users.dat", "movies.dat", "README"),
        ),
    ),
)
_100K = About(
    name="ml-100k",
    loader="movielens_100k()",
    rows="100,000 ratings",
    what="943 users' ratings of 1,682 films, 1997-1998, with demographics, titles and genres.",
    terms=_TERMS,
    folders=("ml-100k",),
    needs=("u.item",),
    remotes=(
        Remote(
            "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            "sha256:50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
            ("u.data", "u.item", "u.user", "u.genre", "README"),
        ),
    ),
)
ABOUT = (_1M, _100K)

_TASKS = {
    "watched": Task("watched"),
    "liked": Task("liked"),
    "rating": Task("rating", kind="regression"),
}


def movielens_1m(task: str = "watched", *, data_dir: str | Path | None = None) -> Log:
    """MovieLens-1M: 1,000,209 ratings (1 to 5) by 6,040 users of 3,706 films; 3,883 films are described.

    Terms and citation: see the top of this file (research only, no redistribution).

    The schema declares the user's gender, age (seven groups), occupation and zip; the film's genres, year and title;
    History("history") of the last 50 films with their genres. Its time is `seq`, the place of a rating in its user's
    chronological order, when the ratings come as ratings.csv, in which true timestamps are known for 178,801 rows only
    (the others are null): split it with `last_per_user`, not by a date. With GroupLens' own ratings.dat the time is
    `timestamp`, in seconds, and ratings of the same second are not in each other's history.

    Args:
        task: "watched": an implicit log, each rating a film that was watched; "liked": binary, rating of 4 or 5;
            "rating": regression.
        data_dir: see `resolve_data_dir`.

    Raises:
        DataError: the files are not there, or not what they should be.
        ConfigError: an unknown task.
    """
    folder = _1M.folder(data_dir)
    if has_file(folder, "ratings.dat"):
        columns = {"user_id": pl.Int64, "item_id": pl.Int64, "rating": pl.Int64, "timestamp": pl.Int64}
        events, time = read_table(find_file(folder, "ratings.dat"), columns, separator="::"), "timestamp"
    else:
        columns = {
            "user_id": pl.Int64,
            "movie_id": pl.Int64,
            "rating": pl.Int64,
            "seq": pl.Int64,
            "timestamp": pl.Int64,
        }
        table = read_table(find_file(folder, "ratings.csv"), columns, header=True)
        events, time = table.rename({"movie_id": "item_id"}), "seq"
    users = read_table(
        find_file(folder, "users.dat"),
        {"user_id": pl.Int64, "gender": pl.String, "age": pl.Int64, "occupation": pl.Int64, "zip": pl.String},
        separator="::",
        encoding="latin-1",
    )
    films = read_table(
        find_file(folder, "movies.dat"),
        {"item_id": pl.Int64, "title": pl.String, "genres": pl.String},
        separator="::",
        encoding="latin-1",
    )
    films = films.with_columns(
        pl.col("genres").str.split("|"),
        year=pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int64),
    )
    return _log("movielens-1m", events, users, films, Categorical("age", "user"), time, task)


_AGES = {1: "under 25", 18: "under 25", 25: "25 to 34"}


def movielens_1m_by_age(*, data_dir: str | Path | None = None) -> tuple[Log, Log, Log]:
    """(train, valid, test) of MovieLens-1M as three domains by the user's age: under 25, 25 to 34, 35 and more.

    Terms and citation: see the top of this file (research only, no redistribution).

    The protocol of Scenario-Wise-Rec: `liked` is a rating of 4 or 5; user, film, gender, age, occupation, zip and the film's
    first genre are the features, and `age_group` the domain: 210,747, 395,556 and 393,906 ratings. It cuts ratings 8 : 1 : 1
    in their order. Here the order is each user's own, as the time of most ratings is not known (see `movielens_1m`):
    of each user the first 80 % are training, the next 10 % validation, the last 10 % the test.

    Zheng et al., Scenario-Wise Rec, https://arxiv.org/abs/2412.17374

    Raises:
        DataError: the files are not there, or not what they should be.
    """
    log = movielens_1m("liked", data_dir=data_dir)
    assert log.users is not None
    assert log.items is not None
    assert log.schema.time is not None
    age = pl.col("age").replace_strict(_AGES, default="35 and more", return_dtype=pl.String)
    users = log.users.with_columns(age_group=age)
    films = log.items.with_columns(first_genre=pl.col("genres").list.first())
    names = {"user": ("user_id", "gender", "age", "occupation", "zip"), "item": ("item_id", "first_genre")}
    features = [Categorical(name, role) for role, part in names.items() for name in part]
    schema = Schema([*features, Categorical("age_group", "domain")], log.schema.tasks, time=log.schema.time)
    events = log.events.join(users.select("user_id", "age_group"), on="user_id", how="left", maintain_order="left")
    place = pl.col(log.schema.time).rank("ordinal").over("user_id") - 1
    tenth = place * 10 // pl.len().over("user_id")
    part = events.select(pl.when(tenth < 8).then(0).otherwise(tenth - 7)).to_series()
    whole = Log(events, schema, users=users, items=films, name="movielens-1m by age")
    train, valid, test = (whole.select(part == i) for i in range(3))
    return train, valid, test


def movielens_100k(task: str = "watched", *, data_dir: str | Path | None = None) -> Log:
    """MovieLens-100K: 100,000 ratings (1 to 5) by 943 users of 1,682 films.

    Terms and citation: see the top of this file (research only, no redistribution).

    The schema is MovieLens-1M's, with the age in years and the true `timestamp`, in seconds, as its time. Ratings of the
    same second are not in each other's history.

    Args:
        task: "watched", "liked" or "rating", as in `movielens_1m`.
        data_dir: see `resolve_data_dir`.

    Raises:
        DataError: the files are not there, or not what they should be.
        ConfigError: an unknown task.
    """
    folder = _100K.folder(data_dir)
    columns = {"user_id": pl.Int64, "item_id": pl.Int64, "rating": pl.Int64, "timestamp": pl.Int64}
    events = read_table(find_file(folder, "u.data"), columns, separator="\t")
    users = read_table(
        find_file(folder, "u.user"),
        {"user_id": pl.Int64, "age": pl.Int64, "gender": pl.String, "occupation": pl.String, "zip": pl.String},
        separator="|",
    )
    genres = read_table(find_file(folder, "u.genre"), {"genre": pl.String, "place": pl.Int64}, separator="|")["genre"]
    flags = [f"genre {g}" for g in genres.drop_nulls()]
    names = {"item_id": pl.Int64, "title": pl.String, "released": pl.String, "video": pl.String, "url": pl.String}
    films = read_table(
        find_file(folder, "u.item"), {**names, **dict.fromkeys(flags, pl.Int64)}, separator="|", encoding="latin-1"
    )
    one_each = [pl.when(pl.col(f) == 1).then(pl.lit(f.removeprefix("genre "))) for f in flags]
    films = films.select(
        "item_id",
        "title",
        pl.concat_list(one_each).list.drop_nulls().alias("genres"),
        pl.col("released").str.extract(r"(\d{4})$").cast(pl.Int64).alias("year"),
    )
    age = Numeric("age", "user", transform="standard", fill=34.0)  # the mean age, for who does not say
    return _log("movielens-100k", events, users, films, age, "timestamp", task)


def _log(
    name: str, events: pl.DataFrame, users: pl.DataFrame, films: pl.DataFrame, age: Feature, time: str, task: str
) -> Log:
    if task not in _TASKS:
        raise unknown("task of MovieLens", task, _TASKS)
    if task == "liked":
        events = events.with_columns(liked=(pl.col("rating") >= 4).cast(pl.Int8))
    schema = Schema(
        [
            Categorical("user_id", "user"),
            Categorical("gender", "user"),
            age,
            Categorical("occupation", "user"),
            Categorical("zip", "user"),
            Categorical("item_id", "item"),
            Categorical("genres", "item", multi=True),
            Categorical("year", "item"),
            Text("title", "item", buckets=1 << 14),
            History("history", of=("item_id", "genres"), max_len=50),
        ],
        [_TASKS[task]],
        time=time,
    )
    return Log(events, schema, users=users, items=films, implicit=task == "watched", name=name)
