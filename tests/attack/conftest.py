"""The world that is attacked, made once, and the report of all attacks."""

from pathlib import Path

import pytest
from attack.report import Report
from attack.world import baselines as run_baselines
from attack.world import make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("attack"))


@pytest.fixture(scope="session")
def baselines(world, tmp_path_factory):
    return run_baselines(world, tmp_path_factory.mktemp("baselines"))


@pytest.fixture(scope="session")
def report(request):
    report = Report()
    yield report
    if report.cases:
        report.write(Path(request.config.rootpath, "attack.md"))
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{report.table()}")
