"""KuaiRand-Pure: videos shown in a short-video app, and what people did with each (Kuaishou).

Terms: CC BY-SA 4.0, as its repository states (chongminggao/KuaiRand, LICENSE).

Citation: Chongming Gao et al. 2022. KuaiRand: An Unbiased Sequential Recommendation Dataset with Randomly Exposed Videos.
CIKM. https://doi.org/10.1145/3511808.3557624
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from recstack.data.datasets.about import About, Remote
from recstack.data.datasets.files import find_file, has_file, read_bytes, read_table
from recstack.data.log import Log
from recstack.errors import ConfigError, DataError, unknown
from recstack.schema import Categorical, History, Numeric, Schema, Task

ABOUT = (
    About(
        name="kuairand-pure",
        loader="kuairand_pure()",
        rows="1,436,609 exposures; its last two weeks: 228,329",
        what="27,285 users, 7,583 videos, 15 tabs; clicks, likes, follows, long views, watch time ...",
        terms="CC BY-SA 4.0 (chongminggao/KuaiRand)",
        folders=("kuairand-pure", "KuaiRand-Pure/data", "kuairand-pure-part"),
        needs=("user_features_pure.csv",),
        remotes=(
            Remote(
                "https://zenodo.org/records/10439422/files/KuaiRand-Pure.tar.gz",
                "sha256:c814bf6f3624c0cfae83c57de3df26b2ed206e5c57bab4c4dcbfabbabe20cbf0",
                (
                    "log_standard_4_08_to_4_21_pure.csv",
                    "log_standard_4_22_to_5_08_pure.csv",
                    "user_features_pure.csv",
                    "video_features_basic_pure.csv",
                    "LICENSE",
                ),
            ),
        ),
    ),
)

_TASKS = {
    "click": Task("click"),
    "long_view": Task("long_view"),
    "like": Task("like"),
    "follow": Task("follow"),
    "comment": Task("comment"),
    "forward": Task("forward"),
    "hate": Task("hate"),
    "watch_time": Task("watch_time", kind="regression", transform="log1p"),
}
_USER = [
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
] + [f"onehot_feat{i}" for i in range(18)]
_WHOLE = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
_TWO_WEEKS = ("log_val.csv", "log_test.csv")
_LOG = {
    "user_id": pl.Int64,
    "video_id": pl.Int64,
    "date": pl.Int64,
    "hourmin": pl.Int64,
    "time_ms": pl.Int64,
    **dict.fromkeys(("is_click", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view"), pl.Int8),
    "play_time_ms": pl.Int64,
    "tab": pl.Int64,
}


def kuairand_pure(
    tasks: Sequence[str] = tuple(_TASKS), *, pool_tabs: int = 500, data_dir: str | Path | None = None
) -> Log:
    """KuaiRand-Pure under the app's own policy: a row per video shown, with what the user did.

    Terms and citation: see the top of this file.

    Reads the original files (1,436,609 exposures, 8 April to 8 May 2022) or the part of the last two weeks (228,329).
    `split` is "train" (to 24 April), "val" (25 to 30 April) or "test" (1 to 8 May), by `date`:
    `log.select(log.events["split"] == "test")`. The random-exposure log is not read. Exposures come without request id
    and position: there are no shown lists in it.

    Tasks: click, long_view, like, follow, comment, forward, hate (0/1) and watch_time (seconds, a regression on
    log(1 + s)). None is declared `given="click"`, because the data do not obey that: of the 228,329 exposures, 250 are
    long views without a click, 703 of 3,915 likes come without one, and 83 % of the exposures that were not clicked
    played for some time (in several tabs a video plays by itself).

    Features: user_id and 25 user columns; item_id (video_id), author, types, tags (multi-valued) and duration; hour; the
    domain `tab`, where tabs of fewer than `pool_tabs` rows are pooled into "other". The time is `time_ms`; `date` and
    `hourmin` are a coarser clock, up to 1.4 hours apart from it.

    History("watched"): the last 50 long views before the event. With the part of two weeks it starts from the 50 that
    user_history_before_20220425.jsonl gives; as only the time of the user's last exposure before that day is known, these
    keep their order and are placed in the milliseconds before it. They are in the histories only, not among the rows.

    Args:
        tasks: those to declare, in this order.
        pool_tabs: 0 keeps all 15 tabs.
        data_dir: see `resolve_data_dir`.

    Raises:
        DataError: the files are not there, or not of that format.
        ConfigError: an unknown task.
    """
    if isinstance(tasks, str):
        raise ConfigError(f"tasks= is a list of {', '.join(_TASKS)}; got {tasks!r}.")
    for task in tasks:
        if task not in _TASKS:
            raise unknown("task of KuaiRand", task, _TASKS)
    folder = ABOUT[0].folder(data_dir)
    whole = has_file(folder, _WHOLE[0])
    files = _WHOLE if whole else _TWO_WEEKS
    events = pl.concat([read_table(find_file(folder, file), _LOG, header=True) for file in files])
    kept, date = events.group_by("tab").len().filter(pl.col("len") >= pool_tabs)["tab"].to_list(), pl.col("date")
    events = events.rename({"video_id": "item_id"}).with_columns(
        *(pl.col(f"is_{t}").alias(t) for t in _TASKS if f"is_{t}" in events.columns),
        watch_time=pl.col("play_time_ms") / 1000,
        hour=pl.col("hourmin") // 100,
        tab=pl.when(pl.col("tab").is_in(kept)).then(pl.col("tab").cast(pl.String)).otherwise(pl.lit("other")),
        split=pl.when(date < 20220425)
        .then(pl.lit("train"))
        .when(date < 20220501)
        .then(pl.lit("val"))
        .otherwise(pl.lit("test")),
    )
    users = read_table(find_file(folder, "user_features_pure.csv"), {"user_id": pl.Int64}, header=True, quote='"')
    users = users.with_columns(pl.col(pl.Float64).cast(pl.Int64))  # ids written as 1.0
    schema = Schema(
        [
            Categorical("user_id", "user"),
            *(Categorical(name, "user") for name in _USER),
            Categorical("item_id", "item"),
            Categorical("author_id", "item"),
            Categorical("video_type", "item"),
            Categorical("upload_type", "item"),
            Categorical("music_type", "item"),
            Categorical("tag", "item", multi=True),
            Numeric("duration", "item", transform="bucketize", bins=20, fill=0.0),
            History("watched", of=("item_id", "author_id", "tag"), max_len=50, where="long_view"),
            Categorical("hour", "context"),
            Categorical("tab", "domain"),
        ],
        [_TASKS[t] for t in tasks],
        time="time_ms",
    )
    log = Log(events, schema, users=users, items=_videos(folder), name="kuairand-pure")
    if whole or not has_file(folder, "user_history_before_20220425.jsonl"):
        return log
    earlier = _earlier(folder)
    both = pl.concat([earlier, events], how="diagonal")
    log = Log(both, schema, users=users, items=log.items, name=log.name).with_histories()
    return log.select(pl.int_range(earlier.height, both.height, eager=True))


def _videos(folder: Path) -> pl.DataFrame:
    columns = {"video_id": pl.Int64, "tag": pl.String, "video_duration": pl.Float64, "music_type": pl.Float64}
    table = read_table(find_file(folder, "video_features_basic_pure.csv"), columns, header=True, quote='"')
    return table.rename({"video_id": "item_id"}).with_columns(
        pl.col("tag").str.split(",").cast(pl.List(pl.Int64)).fill_null([]),
        pl.col("music_type").cast(pl.Int64),
        duration=pl.col("video_duration") / 1000,
    )


def _earlier(folder: Path) -> pl.DataFrame:
    """The long views before 25 April as events, without any other label."""
    path = find_file(folder, "user_history_before_20220425.jsonl")
    columns = {"user_id": pl.Int64, "last_time_ms": pl.Int64, "long_watch": pl.List(pl.Int64)}
    try:
        table = pl.read_ndjson(io.BytesIO(read_bytes(path)), schema=columns)
    except pl.exceptions.PolarsError as e:
        raise DataError(f"{str(path)!r} does not hold {', '.join(columns)}: {str(e).splitlines()[0]}.") from e
    rows = table.explode("long_watch").drop_nulls("long_watch")
    back = pl.int_range(pl.len(), 0, -1).over("user_id") - 1
    return rows.select(
        "user_id",
        pl.col("long_watch").alias("item_id"),
        (pl.col("last_time_ms") - back).alias("time_ms"),
        pl.lit(1, pl.Int8).alias("long_view"),
    )
