"""SASRec's format: a line per interaction, `user item`, each user's in order of time.

ml-1m is MovieLens-1M (see `movielens`) with SASRec's ids and filter; Video is Amazon video games. Terms: ml-1m as
MovieLens (research only, no redistribution); Video: repository Apache-2.0, "please cite"; none stated for the data.

Citation: Wang-Cheng Kang and Julian McAuley. 2018. Self-Attentive Sequential Recommendation. ICDM.
https://arxiv.org/abs/1808.09781
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recstack.data.datasets.about import About, Remote
from recstack.data.datasets.files import find_file, read_rows
from recstack.data.log import Log
from recstack.schema import Categorical, History, Schema, Task

_RAW = "https://raw.githubusercontent.com/kang205/SASRec/e3738967fddab206d6eeb4fda433e7a7034dd8b1/data/"

ABOUT = (
    About(
        name="sasrec-ml-1m",
        loader='sasrec("ml-1m")',
        rows="999,611 interactions",
        what="MovieLens-1M as SASRec cut it: 6,040 users, 3,416 films.",
        terms="research only, acknowledge; no redistribution and no commercial use without permission (GroupLens README)",
        folders=("sasrec",),
        needs=("ml-1m.txt",),
        remotes=(Remote(f"{_RAW}ml-1m.txt", "git:9ab8e3edb8742f8d8cc4911e3dee25e82a6fcc24"),),
    ),
    About(
        name="sasrec-Video",
        loader='sasrec("Video")',
        rows="287,107 interactions",
        what="Amazon video games as SASRec cut it: 31,013 users, 23,715 items.",
        terms='none stated for the data (Amazon reviews); repository Apache-2.0, "please cite"',
        folders=("sasrec",),
        needs=("Video.txt",),
        remotes=(
            Remote(f"{_RAW}Video.txt", "sha256:b7376fe24430743f411dc7f567285657b2adb3f74361cc7ba0aee94f3024b651"),
        ),
    ),
)


def sasrec(name: str = "ml-1m", *, max_len: int = 200, data_dir: str | Path | None = None) -> Log:
    """A set in SASRec's format: "ml-1m" (999,611 interactions), "Video" (287,107), or a file of yours in that folder.

    Terms and citation: see the top of this file.

    An implicit log of user_id, item_id and `seq`, the place in the user's sequence, which is the schema's time;
    Task("interacted"), History("history") of the last `max_len` items (SASRec's own: 200 on ml-1m, 50 elsewhere). Its
    protocol: the last item is the test, the one before it the validation; `rs.split.leave_last_out`.

    Args:
        name: of the file, without .txt.
        data_dir: see `resolve_data_dir`.

    Raises:
        DataError: the file is not there, or holds other than two numbers a line.
    """
    own = About(f"sasrec-{name}", "", "", "", "", ("sasrec",), (f"{name}.txt",), get="put your file there")
    this = {a.name: a for a in ABOUT}.get(own.name, own)
    pairs = read_rows(find_file(this.folder(data_dir), f"{name}.txt"), 2)
    events = pl.DataFrame(pairs, schema=["user_id", "item_id"], orient="row")
    events = events.with_columns(seq=pl.int_range(pl.len()).over("user_id"))
    schema = Schema(
        [
            Categorical("user_id", "user"),
            Categorical("item_id", "item"),
            History("history", of=("item_id",), max_len=max_len),
        ],
        [Task("interacted")],
        time="seq",
    )
    return Log(events, schema, implicit=True, name=f"sasrec-{name}")
