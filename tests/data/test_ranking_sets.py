"""Yandex 2009 and LightGBM's example, from files written here."""

import gzip

import pytest

from recstack.data import datasets
from recstack.errors import DataError


def put(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.gz").write_bytes(gzip.compress(text.encode()))


def test_yandex_grades_by_the_published_borders(tmp_path):
    folder = tmp_path / "ltr-yandex2009"
    line = lambda query, judged, first: f'{query}\t{judged}\thttp://a"b\t2\t{first}' + "\t0" * 49 + "\n"  # noqa: E731
    judged = [0, 0.0699, 0.07, 0.14, 0.4, 0.41, 0.61, 1]
    put(folder, "train.txt", "".join(line(10, j, i / 8) for i, j in enumerate(judged)))
    put(folder, "test.txt", line(7, 0, 0.5))
    train, test = datasets.yandex2009(data_dir=tmp_path)
    assert train.events["relevance"].to_list() == [0, 0, 1, 2, 2, 3, 4, 4]
    assert train.events["features"].to_numpy()[:, 0].tolist() == [i / 8 for i in range(8)]
    assert train.request == "query"
    assert test.events["url"].to_list() == ['http://a"b']
    put(folder, "test.txt", "7\tgood\turl\t2\n")
    with pytest.raises(DataError, match="50 features between tabs are due"):
        datasets.yandex2009(data_dir=tmp_path)


def test_lightgbm_example_takes_its_lists_from_their_sizes(tmp_path):
    folder = tmp_path / "ltr-lightgbm"
    for part in ("train", "test"):
        put(folder, f"rank.{part}", "2 1:0.5 300:1\n0 2:0.25\n4\n")
        (folder / f"rank.{part}.query").write_text("2\n1\n")
    train, _ = datasets.lightgbm_example(data_dir=tmp_path)
    assert train.events["query"].to_list() == [0, 0, 1]
    assert train.events["relevance"].to_list() == [2, 0, 4]
    x = train.events["features"].to_numpy()
    assert (x[0, 0], x[0, 299], x[1, 1], x[2].any()) == (0.5, 1, 0.25, False)
    (folder / "rank.test.query").write_text("2\n2\n")
    with pytest.raises(DataError, match=r"has 3 lines, and the lists of 'rank\.test\.query' 4"):
        datasets.lightgbm_example(data_dir=tmp_path)
