"""A world of known chances and watch times: every loss and kind of task finds them, and serves them again."""

import numpy as np
import polars as pl
import pytest
import torch

import recstack as rs
from recstack.errors import DataError, SchemaError

USERS, ITEMS, LIST = 24, 20, 6
SIDE = np.where(np.arange(USERS)[:, None] % 2 == np.arange(ITEMS) % 2, 1.2, -1.2)
CHANCE = 1 / (1 + np.exp(-np.linspace(-2.5, 0.5, ITEMS) - SIDE))  # of a click, [users, items]
TIME = np.where(np.arange(ITEMS) % 3 == 0, 40.0, 15.0) + np.where(
    np.arange(USERS)[:, None] % 2, 20.0, 0.0
)  # of a clicked row
BINARY = {
    "bce": None,
    "focal": ("focal", {"gamma": 1.0}),
    "ghm": ("ghm", {"bins": 10}),
    "smooth": ("bce", {"label_smoothing": 0.1}),
    "pairs": "bce_pairwise",
    "jrc": ("jrc", {"alpha": 0.6}),
}
WATCHED = ("kl", "js", "wasserstein")
TASKS = (
    *(rs.Task(name, label="click", loss=loss) for name, loss in BINARY.items()),
    *(rs.Task(loss, kind="histogram", label="watch", bins=12, given="bce", loss=loss, weight=0.2) for loss in WATCHED),
    rs.Task("all", kind="histogram", label="watch", bins=12),
    rs.Task("odds", kind="regression", label="watch", loss="weighted_logistic", weight=0.1),
)
FEATURES = (rs.Categorical("user", role="user"), rs.Categorical("item", role="item"))


def events(requests, seed=0):
    random = np.random.default_rng(seed)
    user = np.repeat(random.integers(0, USERS, requests), LIST)
    item = random.integers(0, ITEMS, requests * LIST)
    click = random.random(len(user)) < CHANCE[user, item]
    watch = click * TIME[user, item] * random.uniform(0.7, 1.3, len(user))
    return pl.DataFrame(
        {
            "request": np.arange(len(user)) // LIST,
            "user": user,
            "item": item,
            "click": click.astype(float),
            "watch": watch,
        }
    )


def log(frame, tasks=TASKS):
    return rs.Log(frame, rs.Schema(FEATURES, tasks), request="request")


def grid():
    """One row for each user and item."""
    user, item = np.divmod(np.arange(USERS * ITEMS), ITEMS)
    zero = np.zeros(len(user))
    return log(pl.DataFrame({"request": user, "user": user, "item": item, "click": zero, "watch": zero}))


def off(found, truth):
    """Mean error, in shares of the mean truth."""
    return np.abs(found - truth).mean() / truth.mean()


@pytest.mark.slow
def test_every_loss_finds_the_planted_chance_or_watch_time_and_serves_it_again(tmp_path):
    torch.manual_seed(0)
    train = log(events(1500))
    model = rs.ranking.DeepFM(rs.Encoder(train.schema).fit(train).schema, dim=8, hidden=(32,), dropout=0.0)
    model.fit(train, epochs=6, batch_size=100, optimizer=("adam", {"lr": 0.02}), progress=False)
    found = {name: value.reshape(USERS, ITEMS) for name, value in model.score(grid()).items()}
    for name in BINARY:
        assert np.corrcoef(found[name].flat, CHANCE.flat)[0, 1] > (0.6 if name == "ghm" else 0.95), name
    for name in ("bce", "pairs", "jrc"):  # the others bend the probability
        assert off(found[name], CHANCE) < 0.2, name
    for name in WATCHED:
        assert off(found[name], TIME) < (0.15 if name == "wasserstein" else 0.06), name  # it settles on a bin
    assert off(found["all"], CHANCE * TIME) < 0.25
    odds, rare = CHANCE * TIME / (1 - CHANCE), CHANCE < 0.5
    assert off(found["odds"], odds) < 0.4
    assert found["odds"][rare].mean() == pytest.approx(odds[rare].mean(), rel=0.2)

    again = rs.load(model.save(tmp_path / "model"))
    served = again.score(grid())
    assert again.schema.tasks == model.schema.tasks
    for name, value in found.items():
        np.testing.assert_array_equal(served[name].reshape(USERS, ITEMS), value)


# -- bins that the encoder learns -------------------------------------------------------------------------------------
def histogram(bins=5, **options):
    return rs.Task("watch", kind="histogram", bins=bins, **options)


def learned(watch, tasks, **columns):
    n = len(watch)
    frame = pl.DataFrame({"user": [1] * n, "item": list(range(n)), "watch": watch, **columns})
    return (
        rs.Encoder(rs.Schema(FEATURES, tasks)).fit(rs.Log(frame, rs.Schema(FEATURES, tasks))).schema.task("watch").bins
    )


def test_bins_are_the_least_label_and_quantiles_of_those_above_it():
    """However many labels are 0."""
    positive = list(np.arange(1.0, 101.0))
    assert learned([0.0] * 900 + positive, [histogram()]) == pytest.approx(
        (0.0, *np.quantile(positive, [0.25, 0.5, 0.75, 1]))
    )
    assert learned([0.0, 3.0, 3.0, 3.0, None, 9.0], [histogram()]) == (0.0, 3.0, 4.5, 9.0)  # equal quantiles are one


def test_bins_are_learned_where_the_task_learns():
    watch, click = [0.0, 0.0, 5.0, 7.0, 99.0, 6.0], [0.0, 0.0, 1.0, 1.0, 0.0, None]
    assert learned(watch, [rs.Task("click"), histogram(3, given="click")], click=click) == (5.0, 7.0)


def test_given_bins_stay():
    assert learned([0.0, 3.0], [histogram((0, 1, 8))]) == (0, 1, 8)


def test_learned_bins_are_saved_with_the_encoder(tmp_path):
    train = log(events(50))
    encoder = rs.Encoder(train.schema).fit(train)
    encoder.save(tmp_path / "encoder")
    again = rs.Encoder.load(tmp_path / "encoder")
    assert again.schema.tasks == encoder.schema.tasks
    assert again == encoder
    assert len(again.schema.task("kl").bins) == 12
    assert encoder.grown(log(events(80, seed=1))).schema.tasks == encoder.schema.tasks


@pytest.mark.parametrize(
    ("watch", "said"), [([4.0, 4.0, None], "4 on all 2 rows"), ([None, None], "missing on all rows")]
)
def test_bins_of_labels_that_do_not_differ_are_refused(watch, said):
    with pytest.raises(DataError, match=f'Label "watch" is {said}; histogram .watch. needs several values'):
        learned(watch, [histogram()])


def test_bins_of_a_column_that_is_not_there_are_refused():
    schema = rs.Schema(FEATURES, [histogram()])
    with pytest.raises(SchemaError, match="Unknown label column of task 'watch'"):
        rs.Encoder(schema).fit(rs.Log(pl.DataFrame({"user": [1], "item": [2]}), schema))


# -- what training asks of labels -------------------------------------------------------------------------------------
def checked(task, **columns):
    log = rs.Log(pl.DataFrame({"user": [1, 1], "item": [2, 3], **columns}), rs.Schema(FEATURES, [task]))
    rs.Encoder(log.schema).fit(log).encode(log).check_labels()


def test_watch_time_by_odds_needs_what_was_not_watched():
    task = rs.Task("watch", kind="regression", loss="weighted_logistic")
    checked(task, watch=[0.0, 5.0])
    with pytest.raises(DataError, match='Label "watch" is above 0 on all 2 rows; weighted_logistic needs rows of 0'):
        checked(task, watch=[3.0, 5.0])


def test_losses_of_lists_need_lists():
    checked(rs.Task("click", loss="focal"), click=[0.0, 1.0])
    with pytest.raises(DataError, match="Task 'click' learns by 'jrc', which compares the candidates of a request"):
        checked(rs.Task("click", loss="jrc"), click=[0.0, 1.0])


def test_a_drawn_item_was_not_watched():
    """Its watch time is 0 where odds are learned; a histogram alone is told nothing of it."""
    frame = pl.DataFrame({"user": [1, 2, 3], "item": [4, 5, 6], "watch": [3.0, 5.0, 8.0]})
    for task, rest in ((rs.Task("watch", kind="regression", loss="weighted_logistic"), 0.0), (histogram(2), np.nan)):
        log = rs.Log(frame, rs.Schema(FEATURES, [rs.Task("click"), task]), implicit=True)
        columns = rs.Encoder(log.schema).fit(log).encode(log)
        batch = next(iter(rs.Loader(columns, 3, negatives=2)))
        assert (batch["watch@label"][:, 0] > 0).all()
        np.testing.assert_array_equal(batch["watch@label"][:, 1:], np.full((3, 2), rest))
