"""The report of a sweep: verdicts, checks, provenance, figures and tables."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import plotly.graph_objects as go
import pyarrow.csv
import pyarrow.parquet
import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.errors import UserError
from lit_illada.stats.comparisons import Finding
from lit_illada.sweep.report import write_report
from lit_illada.sweep.report.collect import collect
from lit_illada.sweep.report.findings import find, grid
from lit_illada.sweep.spec import Metric
from lit_illada.sweep.spec_check import check
from lit_illada.sweep.variants import tuning_runs


class Page(HTMLParser):
    """Parses the text outside scripts, and the JSON of the figures."""

    def __init__(self, text):
        super().__init__()
        self.words, self.figures, self.links, self._within = [], [], [], None
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "style"):
            self._within = dict(attrs).get("id", tag)
        self.links += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._within = None

    def handle_data(self, data):
        if self._within == "figures":
            self.figures = json.loads(data)
        elif self._within is None:
            self.words.append(data)


def report(folder):
    page, _ = write_report(folder.path)
    return Page(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def page(reported_sweep):
    return Page((reported_sweep.report / "index.html").read_text(encoding="utf-8"))


def findings(folder):
    sweep = collect(folder.path)
    return find(sweep, sweep.spec.metrics[0])


def test_verdicts_of_a_better_an_equal_and_a_control_arm(reported_sweep):
    found = findings(reported_sweep)
    assert [arm.arm for arm in found.arms] == ["band", "uniform", "cosine", "fixed 1.0"]
    kinds = {arm.arm: arm.comparison.finding for arm in found.arms if arm.comparison}
    assert kinds == {"band": Finding.BETTER, "cosine": Finding.NOT_SEPARABLE, "fixed 1.0": Finding.WORSE}
    assert found.of("band").verdict.startswith(
        "better than uniform by 0.199 nats/token (95\u00a0% interval 0.156 to 0.243"
    )
    assert found.of("cosine").verdict == "not separable at 3 seeds"
    assert [check.is_passed for check in found.checks] == [True, True]


def test_pair_that_should_agree_but_differs_is_a_failed_check(make_sweep):
    values = {"a": {0: 4.0, 1: 4.1, 2: 4.3}, "b": {0: 4.5, 1: 4.61, 2: 4.79}}
    folder = make_sweep(values, equal_in_expectation=[["a", "b"]], cannot_learn=["b"])
    agree, learnt = findings(folder).checks
    assert (agree.is_passed, learnt.is_passed) == (False, False)
    assert "yet they differ" in report(folder).text


EQUAL = {"a": {0: 4.0, 1: 4.1, 2: 4.3}, "b": {0: 4.01, 1: 4.09, 2: 4.31}}


@pytest.mark.parametrize(
    ("margin", "is_passed", "text"),
    [
        (0.1, True, "equivalent within ±0.10"),
        (0.02, None, "undecided, neither different nor shown to be equivalent within ±0.02"),
        (None, None, "not separable, but equivalence is not tested without equivalence_margin"),
    ],
)
def test_equivalence_is_claimed_only_within_a_margin(margin, is_passed, text, make_sweep):
    pairs = {"equal_in_expectation": [["a", "b"]], "equivalence_margin": margin}
    folder = make_sweep(EQUAL, seeds=(0, 1, 2), **pairs)
    (check,) = findings(folder).checks
    assert check.is_passed is is_passed
    assert text in check.text


def test_margin_of_zero_is_rejected(make_spec):
    with pytest.raises(UserError, match=r"equivalence_margin is 0.0; it must be above 0, in units of val/nll_bound"):
        check(make_spec(["a", "b"], [0], equivalence_margin=0.0))


def test_pairs_that_should_be_equal_count_as_comparisons(make_spec):
    spec = make_spec(["a", "b", "c"], [0], equal_in_expectation=[["a", "b"], ["b", "c"]])
    assert spec.tested_pairs() == [("a", "b"), ("a", "c"), ("b", "c")]


def test_seeds_that_end_with_nan_are_counted_beside_the_verdict(make_sweep):
    """NaN is a finished run without a bound: the survivors alone would make b look like a fair comparison."""
    values = {
        "a": {0: 4.0, 1: 4.1, 2: 4.3, 3: 4.2},
        "b": {0: 3.5, 1: 3.61, 2: 3.79, 3: float("nan")},
        "c": {0: float("inf"), 1: float("nan"), 2: float("nan"), 3: float("nan")},
    }
    folder = make_sweep(values, seeds=(0, 1, 2, 3))
    found = findings(folder)
    note = "ended with a non-finite val/nll_bound and are left out"
    assert found.of("a").verdict == "the baseline"
    assert found.of("b").verdict.startswith("better than a by 0.50")
    assert found.of("b").verdict.endswith(f"; 1 of 4 seeds {note}")
    assert found.of("c").verdict == f"no seed in common with a at which both are finite; 4 of 4 seeds {note}"
    page = report(folder)
    for words in (f"b: 1 of 4 seeds {note}.", f"c: 4 of 4 seeds {note}."):
        assert words in page.text


def test_only_the_primary_metric_has_verdicts(make_sweep):
    """A second metric on which the arms differ as clearly has an interval but no test."""
    metrics = [{"name": name, "stage": "pretrain"} for name in ("val/nll_bound", "perf/tokens_per_s")]
    values = {"a": {0: 4.0, 1: 4.1, 2: 4.3}, "b": {0: 3.5, 1: 3.61, 2: 3.79}}
    folder = make_sweep(values, seeds=(0, 1, 2), metrics=metrics)
    for seed in (0, 1, 2):
        file = folder.runs / f"pretrain-b-s{seed}" / "summary.json"
        tree = json.loads(file.read_text())
        tree["end"]["perf/tokens_per_s"] += 500 + seed
        file.write_text(json.dumps(tree))
    page = report(folder)
    with (folder.path / "report" / "arms.csv").open(encoding="utf-8", newline="") as file:
        found = {(row["metric"], row["arm"]): row for row in csv.DictReader(file)}
    assert found["val/nll_bound", "b"]["finding"] == "better"
    second = found["perf/tokens_per_s", "b"]
    assert (second["finding"], second["is_primary"], second["p"], second["p_holm"]) == ("descriptive", "false", "", "")
    assert second["verdict"].startswith("+501.0")
    assert second["verdict"].endswith("descriptive")
    assert page.text.count("Holm p") == 1 + page.text.count("Holm p =") + page.text.count("Holm p <")
    for words in ("carries the verdicts; perf/tokens_per_s: intervals only, no verdicts", "sd with 80 %"):
        assert words in page.text


def test_also_compare_adds_comparisons(make_sweep):
    values = {
        "none": {0: 4.0, 1: 4.1, 2: 4.3},
        "stop": {0: 3.0, 1: 3.11, 2: 3.29},
        "ramp": {0: 3.51, 1: 3.6, 2: 3.8},
        "kick": {0: 4.01, 1: 4.1, 2: 4.2},
    }
    folder = make_sweep(values, seeds=(0, 1, 2), also_compare=[["stop", "ramp"], ["ramp", "kick"]])
    stop, kick = findings(folder).pairs
    assert (stop.first, stop.second, kick.first, kick.second) == ("stop", "ramp", "ramp", "kick")
    assert (stop.comparison.finding, kick.comparison.finding) == (Finding.WORSE, Finding.WORSE)
    assert stop.verdict.startswith("worse than stop by 0.50")
    assert stop.comparison.num_comparisons == 5
    written = report(folder)
    assert "Further comparisons at the same seeds" in written.text
    assert "corrected for 5 comparisons (Holm)" in written.text
    with (folder.path / "report" / "pairs.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["first"], first["second"], first["finding"]) == ("stop", "ramp", "worse")
    assert float(second["difference"]) == pytest.approx(kick.comparison.difference.mean)


def test_page_without_further_pairs_has_no_table_of_them(page, reported_sweep):
    assert "Further comparisons" not in page.text
    assert not (reported_sweep.path / "report" / "pairs.csv").exists()


def test_one_seed_gives_a_mean_and_no_verdict(make_sweep):
    found = findings(make_sweep({"a": {0: 4.0}, "b": {0: 3.0}}))
    assert found.of("b").verdict == "one seed in common with a: no interval and no test"
    assert (found.of("b").estimate.mean, found.of("b").estimate.low) == (3.0, None)


def test_metric_of_shared_runs_is_reported_as_such(make_sweep):
    folder = make_sweep({"a": {0: 4.0, 1: 4.1}, "b": {}}, shared=True)
    assert findings(folder).of("b").verdict == "same runs as a: the two do not differ in this stage"


def test_sweep_that_tunes_has_no_verdicts(make_sweep):
    """Its plan holds the tuning runs only, so that no arm has a run."""
    tune = {"key": "optim.optimizer.learning_rate", "values": [0.1, 0.2], "seeds": [100]}
    copies = {f"{arm}, learning_rate={value}": {100: 4.0} for arm in "ab" for value in (0.1, 0.2)}
    folder = make_sweep({"a": {}, "b": {}}, copies=copies, tune=tune)
    folder.write(folder.read_spec(), tuning_runs(folder.read_spec(), folder.read_plan()))
    found = findings(folder)
    assert found.of("b").verdict == "no finished seed in common with a yet"
    assert found.is_preliminary
    page = report(folder)
    assert "tuning: 4 of 4 runs finished" in page.text
    assert "Preliminary: no run of an arm is planned yet" in page.text


def test_running_sweep_has_a_preliminary_report(half_finished_sweep):
    page = report(half_finished_sweep)
    assert "8 of 12 runs finished" in page.text
    assert "Preliminary" in page.text
    for words in (
        "pretrain-cosine-s2 failed with exit status 1",
        "ValueError: <boom>",
        "pretrain-band-s1 was interrupted at step 30 of 60",
        "pretrain-fixed-1.0-s0 has not started",
    ):
        assert words in page.text


def test_sweep_without_results_has_a_page(make_sweep):
    page = report(make_sweep({"a": {}, "b": {}}))
    assert "0 of 4 runs finished" in page.text
    assert "No verdict yet" in page.text


def test_every_number_has_config_commit_data_and_checkpoint(page, reported_sweep):
    for words in ("c0ffeec0", "abababab", "step=00000060.ckpt", "table of band"):
        assert words in page.text
    linked = [link for link in page.links if link.endswith("config.yaml")]
    assert len(linked) >= 24
    assert all((reported_sweep.report / link).resolve().is_file() for link in linked)


def test_page_is_self_contained(page, reported_sweep):
    assert not [link for link in page.links if "//" in link]
    for name in (link for link in page.links if "." in link and not link.startswith(("data:", "..", "#"))):
        assert (reported_sweep.report / name).is_file(), name


def test_markup_in_names_is_escaped(make_sweep):
    arm = "</script><b>x</b>"
    page = report(make_sweep({"a": {0: 1.0, 1: 2.0}, arm: {0: 1.5, 1: 2.6}}))
    assert arm in page.text
    assert any(trace["name"] == arm for figure in page.figures for trace in figure["data"])


def test_plotly_accepts_every_figure(page, half_finished_sweep, make_grid):
    figures = page.figures + report(half_finished_sweep).figures + report(make_grid()).figures
    assert {figure["id"].split("-")[0] for figure in figures} == {
        "seeds", "differences", "grid", "course", "ratio", "gradients"
    }  # fmt: skip
    for figure in figures:
        go.Figure(data=figure["data"], layout=figure["layout"])
        for variant in figure["variants"]:
            assert len(variant["x"]) == len(variant["y"]) == len(figure["data"])
            go.Figure(layout={**figure["layout"], **variant["layout"]})


def test_learning_curve_is_the_mean_with_the_range_of_seeds(page, reported_sweep):
    course = next(figure for figure in page.figures if figure["id"].startswith("course"))
    line = next(t for t in course["data"] if t["name"] == "band" and t["mode"] == "lines+markers")
    records = collect(reported_sweep.path).of_arm("band", "pretrain").values()
    ends = [record.curves["val/nll_bound"].values[-1] for record in records]
    assert line["y"][-1] == pytest.approx(sum(ends) / 3, rel=1e-5)
    assert [variant["label"] for variant in course["variants"]] == ["tokens", "FLOPs", "steps"]
    assert [variant["x"][1][-1] for variant in course["variants"]] == pytest.approx([60 * 4096, 3.0e12, 60])


def test_grid_shows_the_mean_of_every_pair(make_grid):
    folder = make_grid()
    sweep = collect(folder.path)
    found = find(sweep, sweep.spec.metrics[0])
    rows, columns, means = grid(sweep.spec, found)
    assert (rows, columns) == (["u", "v"], ["x", "y", "z"])
    assert means[1][2] == found.of("v+z").estimate.mean


def test_tables_contain_every_arm_run_and_point(reported_sweep):
    out = reported_sweep.report
    arms = pyarrow.csv.read_csv(out / "arms.csv").to_pylist()
    assert (arms[0]["arm"], arms[0]["finding"]) == ("band", "better")
    assert arms[0]["mean"] == pytest.approx((4.101 + 4.322 + 4.209) / 3)
    runs = pyarrow.parquet.read_table(out / "runs.parquet").to_pylist()
    assert len(runs) == pyarrow.csv.read_csv(out / "runs.csv").num_rows == 12
    assert all(row["config"] == f"runs/{row['run']}/config.yaml" for row in runs)  # relative to the sweep's folder
    assert {row["commit"] for row in runs} == {"c0ffee" * 6 + "beef"}
    curves = pyarrow.parquet.read_table(out / "curves.parquet")
    assert curves.num_rows == 12 * 7 * 12  # runs, validations, tags
    assert len(list(out.glob("*.png"))) == 5


def test_report_of_the_same_runs_is_reproducible(reported_sweep, tmp_path):
    write_report(reported_sweep.path, tmp_path)
    for file in ("arms.csv", "runs.csv", "curves.parquet"):
        assert (tmp_path / file).read_bytes() == (reported_sweep.report / file).read_bytes()


def test_different_commits_or_data_give_a_warning(finished_sweep):
    record = {"commit": "0123456789", "data_sha256": "cd" * 32}
    (finished_sweep.runs / "pretrain-band-s0" / "provenance.jsonl").write_text(json.dumps(record) + "\n")
    page = report(finished_sweep)
    assert "The runs are from 2 commits: 01234567, c0ffeec0" in page.text
    assert "read different data (abababab, cdcdcdcd)" in page.text


def test_data_of_its_own_for_each_seed_is_no_difference_between_arms(finished_sweep):
    spec = finished_sweep.read_spec()
    stages = [replace(stage, seeded=["data.source.seed"]) for stage in spec.stages]
    finished_sweep.write(replace(spec, stages=stages), finished_sweep.read_plan())

    def write_data(run, digest):
        record = {"commit": "c0ffee" * 6 + "beef", "data_sha256": digest * 32}
        (finished_sweep.runs / run / "provenance.jsonl").write_text(json.dumps(record) + "\n")

    for arm in ("uniform", "cosine", "band", "fixed-1.0"):
        write_data(f"pretrain-{arm}-s0", "cd")
    assert "read different data" not in report(finished_sweep).text
    write_data("pretrain-band-s0", "ef")
    assert "read different data at equal seeds (cdcdcdcd, efefefef)" in report(finished_sweep).text


def test_training_losses_are_rejected_as_metrics():
    with pytest.raises(UserError, match="use a metric that has the same definition"):
        Metric("train/loss", "pretrain")


def test_check_of_an_unknown_arm_is_rejected(make_spec):
    with pytest.raises(UserError, match=r"unknown arm 'unifrom'.*did you mean 'uniform'"):
        check(make_spec(["uniform", "cosine"], [0], equal_in_expectation=[["unifrom", "cosine"]]))


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ([["cosine", "bend"]], r"unknown arm 'bend'.*did you mean 'band'"),
        ([["cosine"]], r"also_compare holds pairs of arms; got \['cosine'\]"),
        ([["cosine", "cosine"]], "must name two arms"),
        ([["band", "uniform"]], "every arm is compared with uniform already"),
        ([["band", "cosine"], ["cosine", "band"]], "occur once"),
    ],
)
def test_invalid_pair_is_rejected(make_spec, pairs, text):
    with pytest.raises(UserError, match=text):
        check(make_spec(["uniform", "cosine", "band"], [0], also_compare=pairs))


def test_command_takes_a_name_or_a_folder_and_an_output_folder(finished_sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sweeps").mkdir(parents=True)
    (tmp_path / "runs" / "sweeps" / "mine").symlink_to(finished_sweep.path)
    by_name = CliRunner().invoke(main, ["sweep", "report", "mine"])
    assert by_name.exit_code == 0, by_name.output
    assert "better than uniform by 0.199 nats/token" in by_name.output
    assert (finished_sweep.report / "index.html").is_file()
    by_folder = CliRunner().invoke(main, ["sweep", "report", str(finished_sweep.path), "--out", "elsewhere"])
    assert by_folder.exit_code == 0
    assert (tmp_path / "elsewhere" / "index.html").is_file()
    refused = CliRunner().invoke(main, ["sweep", "report", "nime"])
    assert refused.exit_code == 1
    assert "unknown sweep 'nime': allowed are mine; did you mean 'mine'?" in refused.output


def test_report_needs_no_torch(finished_sweep):
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'lightning', 'torchmetrics')))\n"
        f"from lit_illada.cli import main; main(['sweep', 'report', {str(finished_sweep.path)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "page " in done.stdout
