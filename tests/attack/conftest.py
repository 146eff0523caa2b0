"""The world that is attacked, made once, and the report of all attacks."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from attack.report import Report
from attack.world import Baselines, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("attack"))


@pytest.fixture(scope="session")
def baselines(world, tmp_path_factory):
    return Baselines(world, tmp_path_factory.mktemp("baselines"))


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path; its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="session")
def report(request):
    report = Report()
    yield report
    if report.cases:
        report.write(Path(request.config.rootpath, "attack.md"))
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{report.table()}")
