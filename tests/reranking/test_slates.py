"""Pages that act: what the simulator answers, models that learn from it, and lists of several tasks."""

import numpy as np

from recstack.data.simulator import simulate


def test_users_click_and_stay_as_often_as_the_truth_says():
    truth = simulate(users=30, items=60, impressions=2000, list_size=5, ads=0.3, ctr=0.2, seed=2).truth
    ads, organic = np.flatnonzero(truth.ad), np.flatnonzero(~truth.ad)
    page = np.array([organic[0], ads[0], organic[1], -1])
    users, pages = np.full(20_000, 7), np.tile(page, (20_000, 1))
    interest = np.tile(0.3 * truth.item[organic[5]], (20_000, 1))
    answer = truth.respond(users, pages, interest=interest, seed=4)

    p = truth.click(7, page[:3], interest=interest[:3])
    seen = np.array([1, 2, 3]) ** -truth.config.eta
    by_hand = np.log(3) + 0.5 * (seen[[0, 2]] * (p[[0, 2]] - 0.2)).sum() - 1.5 * seen[1] * (1 - p[1])
    stays = truth.stays(users[:1], pages[:1], interest=interest[:1])[0]
    np.testing.assert_allclose(stays, 1 / (1 + np.exp(-by_hand)), rtol=1e-5)
    for found, wanted in ((answer.click[:, :3].mean(0), seen * p), (answer.stays.mean(), stays)):
        assert (np.abs(found - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 20_000)).all()
    assert not answer.click[:, 3].any(), "an empty place"
    value = truth.value(users[:1], pages[:1], interest=interest[:1])[0]
    np.testing.assert_allclose((seen * p).sum(), value, rtol=1e-5)

    only = np.flatnonzero((answer.click == [True, False, True, False]).all(1))[0]
    moved = 0.3 * interest[0] + 0.7 * truth.item[page[[0, 2]]].mean(0)
    np.testing.assert_allclose(answer.interest[only], moved, rtol=1e-5)
    none = np.flatnonzero(~answer.click.any(1))[0]
    np.testing.assert_array_equal(answer.interest[none], interest[none].astype(np.float32))
