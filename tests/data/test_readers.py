"""Files of every format give the same log."""

import polars as pl
import pytest

from recstack.data import Encoder, read
from recstack.errors import DataError, SchemaError
from recstack.schema import Categorical, Schema

SCHEMA = Schema([Categorical("user", "user"), Categorical("item", "item"), Categorical("genre", "item")])
FRAME = pl.DataFrame({"user": [1, 2, 3], "item": ["a", "b", "a"]})
ITEMS = pl.DataFrame({"item": ["a", "b"], "genre": ["x", "y"]})
WRITERS = {
    "parquet": pl.DataFrame.write_parquet,
    "csv": pl.DataFrame.write_csv,
    "tsv": lambda frame, path: frame.write_csv(path, separator="\t"),
    "arrow": pl.DataFrame.write_ipc,
    "feather": pl.DataFrame.write_ipc,
}


@pytest.mark.parametrize("ending", WRITERS)
def test_one_file_many_files_and_a_folder(tmp_path, ending):
    WRITERS[ending](FRAME.head(2), tmp_path / f"1.{ending}")
    WRITERS[ending](FRAME.tail(1).select("item", "user"), tmp_path / f"2.{ending}")
    WRITERS[ending](ITEMS, tmp_path.parent / f"items-{ending}.{ending}")
    items = tmp_path.parent / f"items-{ending}.{ending}"
    for path in (tmp_path, tmp_path / f"*.{ending}", str(tmp_path / "[12].*")):
        log = read(path, SCHEMA, items=items, implicit=True)
        assert log.events.equals(FRAME)
        assert log.implicit
    assert len(read(tmp_path / f"1.{ending}", SCHEMA, items=ITEMS)) == 2
    assert read(tmp_path / f"1.{ending}", SCHEMA).name == "1"
    assert len(Encoder(SCHEMA).fit(log).encode(log)) == 3


def test_compressed_csv(tmp_path):
    import gzip

    with gzip.open(tmp_path / "a.csv.gz", "wb") as file:
        file.write(b"user,item\n1,a\n")
    assert len(read(tmp_path / "a.csv.gz", SCHEMA)) == 1


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match="There is no file at"):
        read(tmp_path / "none.csv", SCHEMA)
    with pytest.raises(DataError, match="There is no file at"):
        read(tmp_path, SCHEMA)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match=r"empty\.csv' is empty"):
        read(tmp_path / "empty.csv", SCHEMA)
    (tmp_path / "header.csv").write_text("user,item\n")
    with pytest.raises(DataError, match=r"header\.csv' has no rows"):
        read(tmp_path / "header.csv", SCHEMA)
    (tmp_path / "bad.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"bad\.parquet' cannot be read as \.parquet"):
        read(tmp_path / "bad.parquet", SCHEMA)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match=r"Unknown file format of 'a\.json'"):
        read(tmp_path / "a.json", SCHEMA)
    (tmp_path / "1.csv").write_text("user,item\n1,a\n")
    (tmp_path / "2.csv").write_text("user,thing\n1,a\n")
    with pytest.raises(DataError, match=r"2\.csv' and .*1\.csv' differ in column 'item'"):
        read(str(tmp_path / "[12].csv"), SCHEMA)
    with pytest.raises(SchemaError, match="Unknown column of items for its key 'item'"):
        read(tmp_path / "1.csv", SCHEMA, items=tmp_path / "2.csv")
