"""What clients are answered: pages, scores, explanations, events; and one sentence with the field for what is wrong."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter

import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import recstack as rs
from recstack import bundle
from recstack.serving import app
from recstack.serving.messages import MAX_BODY, MAX_CANDIDATES, MAX_EVENTS

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def made(saved):
    return app(saved)


@pytest.fixture(scope="module")
def service(made):
    return made.state.service


@pytest.fixture(scope="module")
def client(made):
    return TestClient(made)


@pytest.fixture(scope="module")
def someone(service):
    return service.profiles.users[3]


# -- pages ------------------------------------------------------------------------------------------------------------
def test_a_page_is_the_cascade_s_own(client, saved, someone):
    page = client.get("/recommend", params={"user_id": someone, "k": 7}).json()
    assert page["known"]
    assert not page["fallback"]
    assert [{n: v for n, v in row.items() if n != "title"} for row in page["items"]] == rs.load(saved).recommend(
        someone, 7
    )
    assert client.post("/recommend", json={"user_id": someone, "k": 7}).json() == page


def test_a_stranger_is_no_error_and_gets_what_is_popular(client, service):
    answer = client.get("/recommend?user_id=987654&k=5")
    page = answer.json()
    assert answer.status_code == 200
    assert (page["known"], page["fallback"]) == (False, True)
    counts = service.cascade.retrievers[0].counts
    best = np.sort(counts)[::-1]
    ids = service.encoder.encode_values("item_id", [row["item"] for row in page["items"]])
    candidates = best[: service.cascade.candidates]  # the page rule reorders, and never reaches further down
    assert len(ids) == 5
    assert counts[ids].min() >= candidates.min()
    assert client.get("/explain?user_id=987654").json()["stages"][0]["name"] == "popular"


def test_explain_tells_the_same_page_and_how_it_came(client, service, someone):
    asked = {"user_id": someone, "k": 6}
    told = client.get("/explain", params=asked).json()
    page = client.get("/recommend", params=asked).json()["items"]
    assert [row["item"] for row in told["page"]] == [row["item"] for row in page]
    names = [stage["name"] for stage in told["stages"]]
    assert names == ["popularity", "swing", "dssm", "merged", "pre_ranker", "ranker", "reranker", "MMR", "page"]
    by_name = {stage["name"]: {row["item"] for row in stage["items"]} for stage in told["stages"]}
    for row in told["page"]:
        for name in row["sources"]:
            assert row["item"] in by_name[name]
    assert told["catalog"] == len(service.encoder.catalog)


def test_rank_scores_as_the_cascade_does(client, someone):
    """The ranker's score and the probability of the items of a page, asked for once more, in another order."""
    page = client.get("/recommend", params={"user_id": someone, "k": 20}).json()["items"]
    items = [row["item"] for row in page][::-1]
    scored = client.post("/rank", json={"user_id": someone, "items": items}).json()["items"]
    assert [row["item"] for row in scored] == items
    for told, row in zip(scored, page[::-1], strict=True):
        assert told["score"] == pytest.approx(row["sources"]["ranker"], abs=1e-5)
        assert told["probability"] == pytest.approx(row["probability"], abs=1e-5)
        for name, value in row["sources"].items():
            if name != "reranker":
                assert told["sources"][name] == pytest.approx(value, abs=1e-4)


def test_candidates_do_not_touch_each_other(client, someone):
    together = client.post("/rank", json={"user_id": someone, "items": [7, 8, 9]}).json()["items"]
    alone = [client.post("/rank", json={"user_id": someone, "items": [i]}).json()["items"][0] for i in (7, 8, 9)]
    assert [row["score"] for row in together] == pytest.approx([row["score"] for row in alone], abs=1e-5)


def test_a_row_of_raw_columns_scores_as_the_catalogue_s_item(client, service, someone):
    market = rs.simulator.simulate(users=60, items=600, impressions=6000, seed=3)
    rows = market.items.filter(market.items["item_id"] < 40).select("item_id", "category", "brand", "price").to_dicts()
    rows = [row for row in rows if service.encoder.encode_values("item_id", [row["item_id"]])[0] > 1]
    by_row = client.post("/rank", json={"user_id": someone, "items": rows}).json()["items"]
    by_id = client.post("/rank", json={"user_id": someone, "items": [row["item_id"] for row in rows]}).json()["items"]
    assert [row["score"] for row in by_row] == pytest.approx([row["score"] for row in by_id], abs=1e-5)
    new = [{**rows[0], "item_id": 10**9}, {**rows[0], "item_id": None, "position": 3}, rows[0]]
    answer = client.post("/rank", json={"user_id": someone, "items": new})
    assert answer.status_code == 200
    assert all(np.isfinite(row["score"]) for row in answer.json()["items"])


def test_the_user_side_is_computed_once_and_item_vectors_are_kept(saved):
    made = app(saved)
    service, client = made.state.service, TestClient(made)
    tower, ranker = service.cascade.retrievers[2], service.cascade.ranker
    calls: Counter[str] = Counter()
    widths = []
    tower.towers.user_tower.register_forward_hook(lambda m, args, out: calls.update(["user"]))
    tower.towers.item_tower.register_forward_hook(lambda m, args, out: calls.update(["item"]))
    ranker.inputs.register_forward_hook(lambda m, args, out: calls.update(["ranker"]))

    def user_width(module, args, out):
        widths.extend(value.shape[0] for value in out.request.values())
        widths.extend(ids.shape[0] for ids, _ in out.sequences.values())

    ranker.inputs.register_forward_hook(user_width)
    user = service.profiles.users[0]
    items = service.encoder.decode("item_id", service.encoder.catalog.ids[:500]).tolist()
    assert len(client.post("/rank", json={"user_id": user, "items": items}).json()["items"]) == 500
    assert calls == {"user": 1, "ranker": 1}
    assert set(widths) == {1}
    for path in ("/recommend", "/explain"):
        calls.clear()
        assert client.get(path, params={"user_id": user}).status_code == 200
        assert calls == {"user": 1, "ranker": 1}, path
    client.get("/recommend", params={"user_id": service.profiles.users[1]})
    assert calls["user"] == 2  # another request is another user


# -- events -----------------------------------------------------------------------------------------------------------
def test_an_event_counts_at_once(saved):
    client = TestClient(app(saved))
    before = client.get("/recommend?user_id=0&k=5").json()["items"]
    item = before[0]["item"]
    answer = client.post("/events", json={"user_id": 0, "item_id": item, "labels": {"click": 1}})
    assert answer.json() == {"accepted": 1, "duplicates": 0, "unknown_items": 0}
    history = client.get("/api/user/0").json()["histories"]["clicked"]
    assert history[0]["item"] == item
    after = client.get("/recommend?user_id=0&k=5").json()["items"]
    assert item not in [row["item"] for row in after]  # met by now
    assert [row["score"] for row in after] != [row["score"] for row in before]


def test_shown_and_not_clicked_does_not_enter_the_history(saved):
    client = TestClient(app(saved))
    before = client.get("/api/user/0").json()
    client.post("/events", json={"user_id": 0, "item_id": 7, "labels": {"click": 0}})
    after = client.get("/api/user/0").json()
    assert after["histories"] == before["histories"]


def test_an_event_id_counts_once_and_a_new_user_becomes_known(saved):
    client = TestClient(app(saved))
    events = [{"user_id": 70001, "item_id": i, "event_id": f"e{i}"} for i in (7, 8, 7)]
    assert client.post("/events", json=events).json() == {"accepted": 2, "duplicates": 1, "unknown_items": 0}
    assert client.post("/events", json=events[0]).json()["duplicates"] == 1
    user = client.get("/api/user/70001").json()
    assert user["known"]
    assert [row["item"] for row in user["histories"]["clicked"]] == [8, 7]
    assert client.get("/recommend?user_id=70001").json()["known"]


def test_of_a_list_with_a_fault_no_event_is_taken(client, service):
    user = service.profiles.users[5]
    before = client.get(f"/api/user/{user}").json()
    bad = [{"user_id": user, "item_id": 7}, {"user_id": user, "item_id": 8, "labels": {"clack": 1}}]
    answer = client.post("/events", json=bad)
    assert (answer.status_code, answer.json()["field"]) == (422, "events[1].labels.clack")
    assert client.get(f"/api/user/{user}").json() == before


def test_an_item_that_the_models_do_not_know_is_kept_as_such(saved):
    client = TestClient(app(saved))
    assert client.post("/events", json={"user_id": 0, "item_id": 10**6}).json()["unknown_items"] == 1
    assert client.get("/api/user/0").json()["histories"]["clicked"][0]["item"] is None
    assert client.get("/recommend?user_id=0").status_code == 200


# -- what is wrong, and where ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("/recommend", 422, "user_id"),
        ("/recommend?user_id=", 422, "user_id"),
        ("/recommend?user_id=ann", 422, "user_id"),
        ("/recommend?user_id=1.5", 422, "user_id"),
        (f"/recommend?user_id={2**63}", 422, "user_id"),
        (f"/recommend?user_id={'9' * 1025}", 422, "user_id"),
        ("/recommend?user_id=1&k=0", 422, "k"),
        ("/recommend?user_id=1&k=101", 422, "k"),
        ("/recommend?user_id=1&k=ten", 422, "k"),
        ("/recommend?user_id=1&top=3", 422, "top"),
        ("/explain?user_id=ann", 422, "user_id"),
        ("/api/user/ann", 422, "user_id"),
        ("/api/users?limit=0", 422, "limit"),
        ("/nothing/here", 404, "path"),
        ("/recommend/", 404, "path"),
        ("/rank", 405, "method"),
    ],
)
def test_a_query_that_is_wrong_is_told_where(client, query, status, field):
    answer = client.get(query)
    assert (answer.status_code, answer.json()["field"]) == (status, field)
    assert answer.json()["error"].endswith(".")


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/recommend", {}, 422, "user_id"),
        ("/recommend", [], 422, None),
        ("/recommend", {"user_id": "1"}, 422, "user_id"),
        ("/recommend", {"user_id": True}, 422, "user_id"),
        ("/recommend", {"user_id": 1.0}, 422, "user_id"),
        ("/recommend", {"user_id": None}, 422, "user_id"),
        ("/recommend", {"user_id": 2**70}, 422, "user_id"),
        ("/recommend", {"user_id": 1, "k": "5"}, 422, "k"),
        ("/recommend", {"user_id": 1, "context": {"hour": 3}}, 422, "context.hour"),
        ("/rank", {"user_id": 1}, 422, "items"),
        ("/rank", {"user_id": 1, "items": []}, 422, "items"),
        ("/rank", {"user_id": 1, "items": 7}, 422, "items"),
        ("/rank", {"user_id": 1, "items": [7, 8, 9, 123456]}, 422, "items[3]"),
        ("/rank", {"user_id": 1, "items": [7, "8"]}, 422, "items[1]"),
        ("/rank", {"user_id": 1, "items": [7, 8.5]}, 422, "items[1]"),
        ("/rank", {"user_id": 1, "items": [7, {"item_id": 8}]}, 422, "items[1]"),
        ("/rank", {"user_id": 1, "items": [7] * (MAX_CANDIDATES + 1)}, 422, "items"),
        ("/rank", {"user_id": 1, "items": [{"item_id": 8}]}, 422, "items[0].category"),
        ("/rank", {"user_id": 1, "items": [{"colour": 8}]}, 422, "items[0].colour"),
        ("/events", {"user_id": 1}, 422, "item_id"),
        ("/events", [{"user_id": 1, "item_id": 7}, {"item_id": 7}], 422, "events[1].user_id"),
        ("/events", [], 422, "events"),
        ("/events", [{"user_id": 1, "item_id": 7}] * (MAX_EVENTS + 1), 422, "events"),
        ("/events", {"user_id": 1, "item_id": "7"}, 422, "item_id"),
        ("/events", {"user_id": 1, "item_id": 7, "time": 1.5}, 422, "time"),
        ("/events", {"user_id": 1, "item_id": 7, "time": 2**64}, 422, "time"),
        ("/events", {"user_id": 1, "item_id": 7, "labels": {"click": "yes"}}, 422, "labels"),
        ("/events", {"user_id": 1, "item_id": 7, "event_id": ""}, 422, "event_id"),
    ],
)
def test_a_body_that_is_wrong_is_told_where(client, path, body, status, field):
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["field"]) == (status, field), answer.json()
    assert "Traceback" not in answer.text


def test_a_cell_that_cannot_be_encoded_is_named(client):
    good = {"item_id": 7, "category": "category_1", "brand": "brand_1", "price": 1.0}
    for name, value in {"category": 5, "price": "dear", "brand": ["a", "b"]}.items():
        answer = client.post("/rank", json={"user_id": 1, "items": [good, {**good, name: value}]})
        assert (answer.status_code, answer.json()["field"]) == (422, f"items[1].{name}")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'{"user_id": "\\ud800"}', b'{"user_id": "\xff"}', b"[" * 100_000, b"NaN"]
)
def test_what_is_not_json_is_400_or_422(client, body):
    for path in ("/recommend", "/rank", "/events"):
        answer = client.post(path, content=body, headers=JSON)
        assert answer.status_code in (400, 422)
        assert answer.json()["error"]


def test_a_form_is_refused(client):
    """A page of another web site can send forms to this machine without being asked; JSON it cannot."""
    answer = client.post("/events", content=b"{}", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["field"]) == (415, "Content-Type")


def test_an_oversized_body_is_413_whatever_its_length_says(client):
    big = b" " * (MAX_BODY + 1)

    def parts():
        for start in range(0, len(big), 65536):
            yield big[start : start + 65536]

    for content, headers in ((big, JSON), (parts(), JSON), (big, {**JSON, "content-length": "2"})):
        answer = client.post("/events", content=content, headers=headers)
        assert answer.status_code == 413
        assert answer.json()["error"]


def test_a_body_is_not_read_past_the_limit(made):
    """Without a Content-Length: the service stops asking for more."""
    given = 0

    async def receive():
        nonlocal given
        given += 65536
        return {"type": "http.request", "body": b" " * 65536, "more_body": True}

    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/events", "raw_path": b"/events", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http", "root_path": "",
    }  # fmt: skip
    asyncio.run(made(scope, receive, send))
    assert sent[0]["status"] == 413
    assert given <= MAX_BODY + 2 * 65536


def test_a_body_that_does_not_come_is_408(made, monkeypatch):
    monkeypatch.setattr("recstack.serving.http.BODY_SECONDS", 0.05)

    async def crawl():
        yield b"{"
        await asyncio.sleep(5)
        yield b"}"

    async def ask():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://here") as client:
            return await client.post("/events", content=crawl(), headers=JSON)

    assert asyncio.run(ask()).status_code == 408


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(["user_id", "item_id", "items", "k", "context", "time", "labels", "event_id"])
likely = st.dictionaries(fields, json_values | st.integers(0, 30), max_size=5)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    path=st.sampled_from(["/recommend", "/rank", "/events"]), body=likely | st.lists(likely, max_size=3) | json_values
)
def test_no_json_breaks_the_service(client, path, body):
    answer = client.post(path, content=json.dumps(body).encode(), headers=JSON)
    assert answer.status_code < 500, (body, answer.text)
    assert answer.status_code == 200 or set(answer.json()) == {"error", "field"}


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(["/recommend", "/rank", "/events"]), body=st.binary(max_size=200))
def test_no_bytes_break_the_service(client, path, body):
    assert client.post(path, content=body, headers=JSON).status_code in (400, 422)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(query=st.dictionaries(st.sampled_from(["user_id", "k", "q", "limit", "x"]), st.text(max_size=12), max_size=3))
def test_no_query_breaks_the_service(client, query):
    for path in ("/recommend", "/explain", "/api/users"):
        assert client.get(path, params=query).status_code in (200, 422)


# -- the rest ----------------------------------------------------------------------------------------------------------
def test_every_answer_has_a_request_id(client):
    assert client.get("/health", headers={"x-request-id": "mine-7"}).headers["x-request-id"] == "mine-7"
    for path in ("/health", "/nothing", "/recommend"):
        assert len(client.get(path, headers={"x-request-id": "<b>"}).headers["x-request-id"]) == 32


def test_a_fault_of_ours_shows_no_trace_of_the_code(saved, monkeypatch, caplog):
    made = app(saved)
    client = TestClient(made)
    monkeypatch.setattr(made.state.service.cascade, "pages", lambda *a: 1 / 0)
    answer = client.get("/recommend?user_id=0", headers={"x-request-id": "r1"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "The service failed on request r1; its log says how.", "field": None}
    assert "ZeroDivisionError" in caplog.text


def test_without_a_place_in_the_queue_503_and_the_loop_stays_awake(saved, monkeypatch):
    made = app(saved, workers=1, queue=1)
    service, gate = made.state.service, threading.Event()
    slow = service.cascade.pages
    monkeypatch.setattr(service.cascade, "pages", lambda *a: (gate.wait(20), slow(*a))[1])

    async def crowd():
        transport = httpx.ASGITransport(made)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            asked = [asyncio.create_task(client.get("/recommend?user_id=0")) for _ in range(4)]
            await asyncio.sleep(0.1)
            started = time.perf_counter()
            alive = await client.get("/health")
            waited = time.perf_counter() - started
            gate.set()
            return alive, waited, await asyncio.gather(*asked)

    alive, waited, answers = asyncio.run(crowd())
    assert alive.status_code == 200
    assert waited < 2
    assert Counter(a.status_code for a in answers) == {200: 2, 503: 2}
    assert {a.headers.get("retry-after") for a in answers if a.status_code == 503} == {"1"}
    assert made.state.pool.busy == 0


def test_metrics_count_what_happened(saved):
    client = TestClient(app(saved))
    client.get("/recommend?user_id=0")
    client.get("/recommend?user_id=424242")
    client.get("/recommend?user_id=ann")
    text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert values['recstack_requests_total{endpoint="/recommend",method="GET",status="200"}'] == "2"
    assert values['recstack_requests_total{endpoint="/recommend",method="GET",status="422"}'] == "1"
    assert values["recstack_pages_total"] == "2"
    assert values["recstack_unknown_users_total"] == "1"
    assert values["recstack_empty_pages_total"] == "0"
    assert values['recstack_request_seconds_count{endpoint="/recommend"}'] == "3"
    for stage in ("popularity", "dssm", "ranker", "reranker", "calibrator"):
        assert values[f'recstack_stage_seconds_count{{stage="{stage}"}}'] == "1"
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


def test_a_key_opens_everything_but_the_page_and_health(saved):
    client = TestClient(app(saved, api_key="open sesame 123"))
    for path in ("/", "/static/app.js", "/health"):
        assert client.get(path).status_code == 200
    for path in ("/recommend?user_id=0", "/metrics", "/api/users", "/nothing"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["field"]) == (401, "Authorization")
    for headers in ({"authorization": "Bearer wrong"}, {"x-api-key": ""}, {"authorization": "Bearer é"}):
        given = {n: v.encode("latin-1") for n, v in headers.items()}
        assert client.get("/recommend?user_id=0", headers=given).status_code == 401
    for headers in ({"authorization": "Bearer open sesame 123"}, {"x-api-key": "open sesame 123"}):
        assert client.get("/recommend?user_id=0", headers=headers).status_code == 200
    with pytest.raises(rs.ConfigError, match="empty"):
        app(saved, api_key=" ")


def test_another_host_name_is_refused(saved):
    """A web page whose name was pointed at 127.0.0.1 does not get at the data."""
    client = TestClient(app(saved, hosts=("localhost", "127.0.0.1", "::1")))
    assert client.get("/health", headers={"host": "evil.example:8000"}).status_code == 421
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80"):
        assert client.get("/health", headers={"host": host}).status_code == 200


def test_users_can_be_searched_and_drawn(client, service):
    users = service.profiles.users
    found = client.get("/api/users?q=1&limit=100").json()["users"]
    assert set(found) == {u for u in users if str(u).startswith("1")}
    drawn = client.get("/api/users?limit=5").json()
    assert len(set(drawn["users"])) == 5
    assert drawn["total"] == len(users)


def test_titles_and_measurements_come_from_the_bundle(saved):
    client = TestClient(app(saved))
    client.post("/events", json=[{"user_id": 0, "item_id": 9}, {"user_id": 0, "item_id": 7}])
    newest, older = client.get("/api/user/0").json()["histories"]["clicked"][:2]
    assert (newest["title"], newest["about"]["year"]) == ("The <b>Quiet</b> River", 1987)
    assert older["title"] is None
    assert set(older["about"]) == {"category", "brand"}
    told = client.get("/api/funnel").json()
    assert told["evaluation"]["stages"][0]["recall"] == 0.5
    assert [s["class"] for s in told["stages"]] == ["COLD", "DIN", "Platt", "PRM"]


def test_the_page_asks_for_nothing_from_elsewhere(client):
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    texts = [page.text, *[client.get(f"/static/{n}").text for n in ("app.js", "style.css", "icon.svg")]]
    for text in texts:
        links = [part for part in text.split('"') if "//" in part and part.startswith("http")]
        assert all(link == "http://www.w3.org/2000/svg" for link in links)
    assert "innerHTML" not in texts[1]


def test_measurements_that_cannot_be_read_are_named(saved, tmp_path):
    found = bundle.read(saved)
    for name in ("items.json", "metrics.json"):
        for text in ("{", "[1]"):
            path = bundle.write(tmp_path / "page", found.pieces, found.meta, {name: text})
            with pytest.raises(rs.BundleError, match=name):
                app(path)


def test_a_single_retriever_can_be_served(saved, tmp_path):
    cascade = rs.load(saved)
    path = cascade.retrievers[1].save(tmp_path / "swing")
    user = next(u for u in cascade.profiles.users if cascade.retrievers[1].recommend([u], 3).mask.all())
    client = TestClient(app(path))
    rows = client.get("/recommend", params={"user_id": user, "k": 3}).json()["items"]
    assert set(rows[0]["sources"]) == {"swing"}
    ranked = client.post("/rank", json={"user_id": user, "items": [rows[1]["item"], rows[0]["item"]]}).json()["items"]
    assert ranked[1]["score"] == pytest.approx(rows[0]["score"])
    assert ranked[1]["probability"] is None
    met = Counter()  # without a Popularity among the retrievers: how many users met the item
    for some in cascade.profiles.users:
        met.update(cascade.encoder.decode("item_id", cascade.profiles.requests([some]).seen[1]).tolist())
    popular = client.get("/recommend?user_id=999999&k=4").json()["items"]
    assert [row["score"] for row in popular] == [n for _, n in met.most_common(4)]
    assert all(met[row["item"]] == row["score"] for row in popular)
    ranker = cascade.ranker.save(tmp_path / "ranker")
    with pytest.raises(rs.BundleError, match="recommends nothing"):
        app(ranker)


def test_answers_are_the_same_from_several_threads(saved):
    made = app(saved, workers=2)
    users = made.state.service.profiles.users[:8]

    async def ask(together: bool):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://here") as client:
            calls = [client.get("/recommend", params={"user_id": u, "k": 10}) for u in users]
            answers = await asyncio.gather(*calls) if together else [await call for call in calls]
            return [answer.json() for answer in answers]

    assert asyncio.run(ask(True)) == asyncio.run(ask(False))
    assert asyncio.run(made.state.pool.run(torch.get_num_threads)) == 1
