"""Events on disk: confirmed means kept, half a line never counts, one writer at a time."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

import recstack as rs
from recstack.serving import app
from recstack.serving import service as service_module
from recstack.serving.events import EventLog
from recstack.serving.messages import Event


def test_what_was_confirmed_is_there_after_a_restart(saved, tmp_path):
    path = tmp_path / "deep" / "events.jsonl"
    with TestClient(app(saved, event_log=path)) as client:
        client.post("/events", json=[{"user_id": 0, "item_id": 7, "event_id": "a"}, {"user_id": 90001, "item_id": 8}])
        client.post("/events", json={"user_id": 0, "item_id": 9, "labels": {"click": 0}, "time": 5})
        before = client.get("/api/user/0").json()
        page = client.get("/recommend?user_id=0").json()
    assert [json.loads(line)["item_id"] for line in path.read_text().splitlines()] == [7, 8, 9]
    with TestClient(app(saved, event_log=path)) as client:
        assert client.get("/api/user/0").json() == before
        assert client.get("/recommend?user_id=0").json() == page
        assert client.get("/api/user/90001").json()["known"]
        again = {"user_id": 0, "item_id": 7, "event_id": "a"}
        assert client.post("/events", json=again).json() == {"accepted": 0, "duplicates": 1, "unknown_items": 0}
    assert len(path.read_text().splitlines()) == 3


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_cut_short_by_a_crash_is_removed(tmp_path, cut):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append([Event(1, 2), Event("ann", 3)])
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:cut])
    log = EventLog(path)
    assert [event.item_id for event in log] == [2, 3]
    log.append([Event(1, 4)])
    assert [event.item_id for event in log] == [2, 3, 4]
    log.close()


def test_a_disk_that_fails_keeps_all_of_a_list_or_none(saved, tmp_path, monkeypatch):
    path = tmp_path / "events.jsonl"
    client = TestClient(app(saved, event_log=path))
    client.post("/events", json={"user_id": 0, "item_id": 7})
    before, kept = client.get("/api/user/0").json(), path.read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("recstack.serving.events.os.fsync", full)
    answer = client.post("/events", json=[{"user_id": 0, "item_id": 8, "event_id": "x"}, {"user_id": 0, "item_id": 9}])
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert path.read_bytes() == kept
    assert client.get("/api/user/0").json() == before
    monkeypatch.undo()
    assert client.post("/events", json={"user_id": 0, "item_id": 8, "event_id": "x"}).json()["accepted"] == 1
    assert path.read_bytes().startswith(kept)


def test_one_service_writes_a_log(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(rs.ConfigError, match="in use"):
        EventLog(tmp_path / "events.jsonl")
    log.close()
    EventLog(tmp_path / "events.jsonl").close()


def test_a_foreign_log_is_named_by_its_line(saved, tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"user_id": 1, "item_id": 7}\n{"user": 1}\n')
    with pytest.raises(rs.DataError, match="Line 2"):
        app(saved, event_log=path)
    other = tmp_path / "other.jsonl"
    other.write_text('{"user_id": "ann", "item_id": 7}\n')
    with pytest.raises(rs.DataError, match="Line 1"):
        app(saved, event_log=other)


def test_the_memory_of_event_ids_ends(saved, monkeypatch):
    monkeypatch.setattr(service_module, "REMEMBERED", 3)
    made = app(saved)
    client = TestClient(made)
    for i in range(10):
        client.post("/events", json={"user_id": 0, "item_id": 7, "event_id": str(i)})
    assert list(made.state.service._event_ids) == ["7", "8", "9"]
