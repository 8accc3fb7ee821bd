"""The real thing: a process that listens, survives being killed, and imports no training code."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import httpx
import pytest

import recstack as rs
from recstack.serving import serve

SERVE = """
import sys
from recstack.serving import serve
serve(sys.argv[1], port=0, event_log=sys.argv[2], ready=lambda url: print(url, flush=True))
"""


class Running:
    """A service in a process of its own."""

    def __init__(self, bundle, log):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(bundle), str(log)], stdout=subprocess.PIPE, text=True
        )
        self.url = self.process.stdout.readline().strip()
        assert self.url.startswith("http://127.0.0.1:")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.mark.slow
def test_confirmed_events_survive_kill_9(saved, tmp_path):
    log = tmp_path / "events.jsonl"
    with Running(saved, log) as running:
        answer = httpx.post(f"{running.url}/events", json={"user_id": 0, "item_id": 7}, timeout=20)
        assert answer.json()["accepted"] == 1
        page = httpx.get(f"{running.url}/recommend?user_id=0", timeout=20).json()
        chunks = (b" " * 65536 for _ in range(40))
        big = httpx.post(
            f"{running.url}/events", content=chunks, headers={"content-type": "application/json"}, timeout=20
        )
        assert big.status_code == 413
        assert httpx.get(f"{running.url}/health", headers={"host": "evil.example"}).status_code == 421
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
    with Running(saved, log) as running:
        assert httpx.get(f"{running.url}/recommend?user_id=0", timeout=20).json() == page
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(20) in (0, -signal.SIGTERM)


def test_other_machines_need_a_key(saved):
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        for key in (None, ""):
            with pytest.raises(rs.ConfigError, match="API key"):
                serve(saved, host=host, api_key=key)


def test_a_taken_port_is_one_sentence(saved):
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(rs.ConfigError, match="Port"):
            serve(saved, port=other.getsockname()[1])


@pytest.mark.slow
def test_serving_needs_no_training_code(saved):
    code = f"""
import importlib, sys
from recstack import catalog
from recstack.serving import app
made = app({str(saved)!r})
print(made.state.service.recommend(made.state.service.profiles.users[0], 3)["known"])
print(*[m for m in ("recstack.training", "pandas", "sklearn", "matplotlib", "polars", "narwhals", "pyarrow") if m in sys.modules])
for model in catalog.models():
    importlib.import_module(model.module)
print(*[m for m in ("torch._dynamo",) if m in sys.modules])  # the compiler, which takes seconds to import
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"]


# -- the page for people ------------------------------------------------------------------------------------------------
BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)


@pytest.mark.slow
def test_the_page_shows_recommendations_in_a_browser(saved, tmp_path, request):
    if BROWSER is None:
        pytest.skip(f"{request.node.name}: no chromium on this machine")
    with Running(saved, tmp_path / "events.jsonl") as running:
        for item in (8, 7):
            httpx.post(f"{running.url}/events", json={"user_id": 0, "item_id": item}, timeout=20)
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        command = [BROWSER, *flags.split(), "--disable-component-update", "--disable-sync"]
        command += [f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=10000", "--dump-dom"]
        started = time.perf_counter()
        done = subprocess.run(
            [*command, f"{running.url}/#user=0&k=5"], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{time.perf_counter() - started:.0f} s: {done.stderr[-1000:]}"
    dom = done.stdout
    assert len(re.findall(r'<li class="item"', dom)) == 5
    assert "The &lt;b&gt;Quiet&lt;/b&gt; River" in dom  # a title is text, whatever it holds
    for stage in ("merged", "pre-ranker", "ranker", "re-ranker", "MMR"):
        assert f"<span>{stage}</span>" in dom
    assert dom.count("<svg") == 2  # the funnel of this page, and of the last evaluation
    assert '<h2 id="person">User 0</h2>' in dom
