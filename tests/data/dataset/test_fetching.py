"""Fetching retries transient failures and raises on final ones."""

import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from lit_illada.data.dataset import fetching
from lit_illada.data.dataset.fetching import NotFoundError, fetch
from lit_illada.data.dataset.reading import BadShardError, open_dataset
from lit_illada.errors import UserError


class Server(ThreadingHTTPServer):
    """Serves a folder; the first answers to a path are the faults in `faults`, in turn: a status, "cut" or "drop"."""

    allow_reuse_address = True

    def __init__(self, folder, port=0):
        super().__init__(("127.0.0.1", port), partial(Handler, folder=Path(folder)))
        self.faults, self.requests = [], []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def close(self):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    def __init__(self, *arguments, folder):
        self.folder = folder
        super().__init__(*arguments)

    def do_GET(self):
        self.server.requests.append(self.path)
        fault = self.server.faults.pop(0) if self.server.faults else None
        file = self.folder / self.path.lstrip("/")
        if isinstance(fault, int) or not file.is_file():
            return self.send_error(fault or 404)
        if fault == "drop":
            return self.connection.close()
        content = file.read_bytes()
        sent = content[: len(content) // 2] if fault in ("cut", "short") else content
        self.send_response(200)
        self.send_header("Content-Length", str(len(sent) if fault == "short" else len(content)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(fetching, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def server(prepared):
    server = Server(prepared.dir)
    yield server
    server.close()


@pytest.mark.parametrize("fault", [500, 503, 429, "cut", "drop"])
def test_transient_failure_is_retried_and_logged(fault, server, prepared, caplog):
    server.faults = [fault, fault]
    content = Path(prepared.dir, "manifest.json").read_bytes()
    assert fetch(f"{server.url}/manifest.json", 3) == content
    server.faults = [fault, fault]
    assert fetch(f"{server.url}/manifest.json", 3, max_bytes=len(content)) == content
    assert "attempt 2 of 3" in caplog.text
    assert "attempt 3 of 3" in caplog.text


def test_attempts_are_limited(server):
    server.faults = [503] * 9
    with pytest.raises(UserError, match=r"manifest\.json could not be read \(HTTP 503 .*, tried 4 times\)"):
        fetch(f"{server.url}/manifest.json", 4)
    assert len(server.requests) == 4


@pytest.mark.parametrize(("status", "error"), [(404, NotFoundError), (403, UserError), (400, UserError)])
def test_final_failure_is_not_retried(status, error, server):
    server.faults = [status]
    with pytest.raises(error):
        fetch(f"{server.url}/manifest.json", 5)
    assert len(server.requests) == 1


def test_restarted_server_is_waited_for(prepared, monkeypatch):
    server = Server(prepared.dir)
    port, url = server.server_port, server.url
    dataset = open_dataset(url, attempts=8)
    server.close()
    started = []

    def sleep(seconds):
        if not started and len(pauses) == 2:
            started.append(Server(prepared.dir, port))
        pauses.append(seconds)

    pauses = []
    monkeypatch.setattr(fetching.time, "sleep", sleep)
    record = dataset.manifest.train.shards[0]
    try:
        shard = dataset.load(record)
    finally:
        for each in started:
            each.close()
    np.testing.assert_array_equal(shard.tokens, open_dataset(prepared.dir).load(record).tokens)
    assert len(pauses) == 3


def test_pauses_double_up_to_a_limit_with_jitter(monkeypatch):
    pauses = []
    monkeypatch.setattr(fetching, "FIRST_PAUSE_S", 1.0)
    monkeypatch.setattr(fetching.time, "sleep", pauses.append)
    with pytest.raises(UserError, match="tried 10 times"):
        fetch("http://127.0.0.1:9/nobody-listens-here", 10)
    for pause, longest in zip(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60], strict=True):
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) == len(pauses)


def test_truncated_shard_is_fetched_again_and_then_named(server):
    """The length agrees with the server's header but not with the manifest."""
    dataset = open_dataset(server.url)
    record = dataset.manifest.train.shards[0]
    server.faults = ["short"]
    assert len(dataset.load(record).tokens) == record.tokens
    server.faults = ["short", "short"]
    with pytest.raises(
        BadShardError, match=rf"{record.file} is truncated: \d+ of {record.file_bytes} bytes; upload it"
    ):
        dataset.load(record)
