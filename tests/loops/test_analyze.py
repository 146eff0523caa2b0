"""`lit-illada loops analyze`, as a user types it."""

import csv
import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.config import load
from lit_illada.loops.config import LoopsConfig
from lit_illada.loops.records import read_generations
from lit_illada.runtime.paths import conf_dir
from lit_illada.schema import read_file

UNIT = " Wait , let me check the sum of those two numbers again :".split(" ")[1:]


def trace(words, index, *, loops, is_right):
    """A trace of our own: tokens, when each was committed, how sure the model was."""
    rng = random.Random(index)
    tokens = [f" {word}" for word in words(rng, 60)]
    onset = len(tokens) + len(UNIT)
    tokens += [f" {word}" for word in UNIT] * 6 if loops else [f" {word}" for word in words(rng, 60)]
    table = {}
    count = len(tokens)
    entropy = [round(0.1 if loops and folder >= onset else rng.uniform(0.5, 2), 3) for folder in range(count)]
    return {
        "settings": {"max_new_tokens": 160}, "prompt": f"problem {index // 2} </script><b>", "text": "".join(tokens),
        "is_right": is_right, "level": index % 2, "seed": index // 2 % 3, "tokens": tokens,
        "token_ids": [table.setdefault(token, len(table)) for token in tokens],
        "blocks": [folder // 16 for folder in range(count)],
        "steps": [folder // 2 for folder in range(count)], "confidence": [round(2.7 ** -e, 3) for e in entropy],
        "entropy": entropy, "num_commits": [1] * count, "num_forwards": count // 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def traces(words, tmp_path_factory):
    path = tmp_path_factory.mktemp("traces") / "trace.jsonl"
    rows = [trace(words, index, loops=index % 4 == 0, is_right=index % 4 != 0) for index in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def analyze(*words):
    return CliRunner(env={"COLUMNS": "120"}).invoke(main, ["loops", "analyze", *map(str, words)])


class Page(HTMLParser):
    """What a page would load, its ids and its data."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.ids, self.data, self._is_data = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        result = dict(attributes)
        self.loads += [result[name] for name in ("src", "srcset", "data") if name in result]
        self.loads += [result["href"] for _ in [0] if tag != "a" and "href" in result]
        self.ids += [result["id"]] if "id" in result else []
        self._is_data = result.get("id") == "data"

    def handle_data(self, text):
        if self._is_data:
            self.data += text

    def handle_endtag(self, tag):
        self._is_data = False


def test_analysis_writes_table_records_and_page(traces, tmp_path):
    result = analyze(traces, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert re.search(r"level 0 *│ *20 │ 50.0% \(29.9–70.1\)", result.output)
    assert re.search(r"level 1 *│ *20 │ +0.0% \(0.0–16.1\)", result.output)
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert [record["is_loop"] for record in records] == [index % 4 == 0 for index in range(40)]
    looped = records[0]
    assert looped["kinds"][0] == "token_exact"
    assert (looped["start"], looped["onset"], looped["period"]) == (60, 60 + len(UNIT), len(UNIT))
    assert looped["wasted"] == 5 * len(UNIT)
    assert looped["temporal_lead"] == pytest.approx(len(UNIT) / 2, abs=1)
    assert looped["wasted_forwards"] >= 5 * len(UNIT) // 2 - 1


def test_the_page_is_self_contained_and_includes_the_texts(traces, tmp_path):
    assert analyze(traces, "--out", tmp_path).exit_code == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.loads == []
    assert not re.search(r"https?://|@import|url\(", text)
    assert len(page.ids) == len(set(page.ids))
    for anchor in re.findall(r'href="#(\w+)"', text):
        assert anchor in page.ids
    shown = json.loads(page.data)
    assert len(shown) == 10
    assert shown[0]["prompt"] == "problem 0 </script><b>"
    assert "".join(piece for piece, _ in shown[0]["pieces"]).count("Wait") == 6
    assert {mark for _, mark in shown[0]["pieces"]} == {0, 1, 2, 3}
    heat = shown[0]["trace"]
    assert len(heat["steps"]) == len(heat["tokens"]) == len(heat["confidence"]) == len(heat["marks"])
    assert heat["loops"][0]["start"] == 60
    for message in ("Early warning by CUSUM", "Entropy around the onset", "McNemar", "t over seeds"):
        assert message in text


COSTS = "right_first right_difference right_low_95 harmed healed mean_length_first mean_length_second".split()


def test_effects_are_written_as_csv(traces, tmp_path):
    assert analyze(traces, "--out", tmp_path).exit_code == 0
    with (tmp_path / "effects.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    compared = [(row["compared"], row["first"], row["second"]) for row in rows]
    assert compared == [("levels", "0", "1"), ("the same problems", "0", "1")]
    row = rows[0]
    assert (int(row["endless_first"]), int(row["texts_first"]), int(row["endless_second"])) == (10, 20, 0)
    assert float(row["low_95"]) <= float(row["difference"]) == -0.5 <= float(row["high_95"])
    assert len(row["each_seed"].split()) == 3
    assert {rows[0][name] for name in COSTS} == {""}
    assert all(rows[1][name] for name in COSTS)


def test_compare_option_selects_the_comparisons(tmp_path):
    rows = [
        {
            "text": "All is said.",
            "prompt": f"problem {n}",
            "arm": arm,
            "is_right": arm != "stop" or n > 1,
            "is_finished": arm != "none" or n > 5,
        }
        for arm in ("none", "stop", "ramp", "kick", "dry", "exit")
        for n in range(8)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = [file, "--out", tmp_path, "--group-field", "arm"]
    result = analyze(*command, "--compare", "none", "stop", "--compare", "stop", "ramp")
    assert result.exit_code == 0, result.output
    with (tmp_path / "effects.csv").open(encoding="utf-8", newline="") as found:
        none_stop, stop_ramp = csv.DictReader(found)
    counts = ("only_first", "only_second", "harmed", "right_and_ended_first")
    assert [none_stop[name] for name in counts] == ["6", "0", "0", "2"]
    assert (stop_ramp["right_first"], stop_ramp["right_second"]) == ("0.7500", "1.0000")
    assert "none → stop" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Right on the same problems" in result.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Right answers and length on the same problems" in page
    wrong = analyze(*command, "--compare", "none", "stopp")
    assert wrong.exit_code == 1
    assert "unknown group to compare 'stopp'" in wrong.output
    assert "did you mean 'stop'" in wrong.output


def written(folder, arm_field=None, *, is_right=True):
    folder.mkdir()
    row = {"text": "All is said.", "is_finished": True, **({"arm": arm_field} if arm_field else {})}
    if is_right is not None:
        row["is_right"] = is_right
    rows = [{**row, "prompt": f"problem {n}"} for n in range(4)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_folders_are_compared_by_their_arm_names(tmp_path):
    first, second = written(tmp_path / "x"), written(tmp_path / "y", is_right=False)
    arms = ["--arm", "[red]plain", first, "--arm", "<b>a [/x] ramp", second]
    result = analyze(*arms, "--out", tmp_path / "out", "--group-field", "arm")
    assert result.exit_code == 0, result.output
    assert "[red]plain →" in result.output
    assert "-100 (" in result.output
    assert "4 of 4" in result.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;a [/x] ramp" in page
    assert "<b>a [/x]" not in page


def test_named_folders_are_compared_with_other_group_fields(tmp_path):
    first, second = written(tmp_path / "x"), written(tmp_path / "y", is_right=False)
    result = analyze(
        "--arm", "a", first, "--arm", "b", second, "--group-field", "is_finished", "--out", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    assert "a → b" in result.output
    assert "not compared" not in result.output


def test_without_a_truth_only_lengths_are_compared(tmp_path):
    first, second = written(tmp_path / "x", is_right=None), written(tmp_path / "y", is_right=None)
    result = analyze("--arm", "a", first, "--arm", "b", second, "--out", tmp_path / "out")
    assert "Length on the same problems" in result.output
    assert "harmed" not in result.output
    assert "Right answers and length" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_an_impossible_comparison_states_the_reason(tmp_path):
    first, second = written(tmp_path / "x"), written(tmp_path / "y")
    text = (second / "texts.jsonl").read_text(encoding="utf-8").replace("problem", "puzzle")
    (second / "texts.jsonl").write_text(text, encoding="utf-8")
    result = analyze("--arm", "a", first, "--arm", "b", second, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    reason = "a and b are not compared: none of their prompts is in both (4 and 4)"
    assert f"Note: {reason}" in " ".join(result.output.split())
    assert reason in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--arm", "b", "y"], "x has no condition, unlike the others"),
        (["--arm", "a", "x", "--arm", "a", "x"], "x is given twice"),
        (["--arm", " ", "x"], "the name for x is empty"),
        (["--arm", "a", "x", "--arm", "b", "two"], "the file for arm b already contains the arms c, d"),
        ([], "or each with a condition by --arm"),
    ],
)
def test_ambiguous_arm_names_are_refused(tmp_path, monkeypatch, arguments, message):
    written(tmp_path / "x"), written(tmp_path / "y"), written(tmp_path / "two", "c")
    with (tmp_path / "two" / "texts.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"text": "x", "arm": "d"}')
    monkeypatch.chdir(tmp_path)
    result = analyze(*arguments, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def by_difficulty(page):
    """(conditions, points measured) of the charts by difficulty."""
    section = page.partition('<section id="what">')[2].partition("</section>")[0]
    legend = re.findall(r'swatch s\d"></i>([^<]*)', section)
    drawing = section.partition("<figcaption>Endless, by difficulty")[2].partition("</figure>")[0]
    return legend, re.findall(r"<circle [^>]*><title>([^<]*)", drawing)


@pytest.mark.parametrize(
    ("levels", "conditions", "measured"),
    [
        (["depth_2", "depth_8", "depth_23"], ["all"], ["all: 0 at 2", "all: 0 at 8", "all: 0 at 23"]),
        (
            ["max_3_depth_2", "max_3_depth_8", "max_9_depth_8"],
            ["all · max_3_depth_…", "all · max_9_depth_…"],
            ["all · max_3_depth_…: 0 at 2", "all · max_3_depth_…: 0 at 8", "all · max_9_depth_…: 0 at 8"],
        ),
    ],
)
def test_charts_by_difficulty_mark_every_measured_level(tmp_path, levels, conditions, measured):
    rows = [{"text": "All is said.", "level": level, "is_finished": True} for level in levels]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert analyze(tmp_path / "rows.jsonl", "--out", tmp_path).exit_code == 0
    assert by_difficulty((tmp_path / "report.html").read_text(encoding="utf-8")) == (conditions, measured)


def test_thresholds_and_groups_come_from_the_command_line(traces, tmp_path):
    result = analyze(traces, "--group-field", "seed", "--out", tmp_path, "loops.exact.min_cycles=9", "loops.unit=words")
    assert result.exit_code == 0, result.output
    assert "seed 2" in result.output
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert not any("token_exact" in record["kinds"] for record in records)
    assert "min_cycles: 9" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_very_long_numbers_do_not_stop_the_analysis(tmp_path):
    flood = "1" * 5000
    rows = [{"text": f"It is {flood}", "truth": 3}, {"text": "3", "truth": [[1, 2], 3]}, {"text": "3", "truth": flood}]
    lines = [*map(json.dumps, rows), f'{{"text": "3", "truth": {flood}}}']
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    result = analyze(tmp_path / "rows.jsonl", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert [record["is_right"] for record in records] == [False, False, None, None]


def test_a_record_contains_the_lengths_of_canvas_and_text(tmp_path):
    rows = [{"text": "one two three", "length": length} for length in (128, 256)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = analyze(tmp_path / "rows.jsonl", "--out", tmp_path / "out", "loops.unit=words")
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert [(record["length"], record["num_units"]) for record in records] == [("128", 3), ("256", 3)]


def test_half_surrogate_pairs_are_replaced_and_whole_pairs_unchanged(tmp_path):
    row = r'{"text": "a \ud83d b \ud83d\ude00", "prompt": "\uDE00", "level": "\ud83d", "other": [{"\ud83d": 1}]}'
    (tmp_path / "rows.jsonl").write_text(row, encoding="utf-8")
    (tmp_path / "rows.json").write_text(f"[{row}]", encoding="utf-8")
    found, again = read_generations([tmp_path])
    assert found.text == again.text
    assert (found.text, found.prompt, found.groups["level"]) == ("a \ufffd b \U0001f600", "\ufffd", "\ufffd")
    result = analyze(tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_chained_arithmetic_reports_well_formed_lines(tmp_path):
    prompt = "f=3+1\ng=x+2\nx mod 2?"
    texts = {
        "whole": "<|think|>f=3+1=0\nWait, let me check again.\nf=3+1=0\ng=0+2=0<|/think|>0",
        "noise": "<|think|>f=3+1=0\nWait, let me\ng=\nWait, let me check again.",
    }
    rows = [{"text": text, "prompt": prompt, "task": name} for name, text in texts.items()]
    rows.append({"text": "Wait, it is 3.", "prompt": "how many?", "task": "other"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    result = analyze(tmp_path / "rows.jsonl", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    records = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [(record["phrases"], record["share_well_formed"]) for record in records] == [(2, 1.0), (3, 0.5), (1, None)]
    assert re.search(r"whole *│ *2.0 │ *100.0%", result.output)
    assert re.search(r"noise *│ *3.0 │ *50.0%", result.output)
    assert re.search(r"other *│ *1.0 │ *–", result.output)
    assert "share_well_formed" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_several_files_are_counted_separately(tmp_path):
    for name, text in (("calm", "All is said once. " * 1), ("loop", "we, " * 50)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    result = analyze(tmp_path, "--out", tmp_path / "out")
    assert re.search(r"loop\.jsonl *│ *1 │ 100.0%", result.output)
    assert re.search(r"calm\.jsonl *│ *1 │ +0.0%", result.output)


@pytest.mark.parametrize("words", [[".", "--out", "loops"], ["."], [".", "--out", "."], ["gen.jsonl", "."]])
def test_repeated_analysis_skips_the_output_of_the_first(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gen.jsonl").write_text(json.dumps({"text": "we, " * 50}) + "\n", encoding="utf-8")
    written = []
    for _ in range(2):
        result = analyze(*words)
        assert result.exit_code == 0, result.output
        (records,) = tmp_path.rglob("records.jsonl")
        written.append(records.read_text(encoding="utf-8"))
    assert written[0] == written[1]
    assert len(written[1].splitlines()) == 1
    result = analyze(records, "--out", records.parent)
    assert "is the output of an analysis: name the generations" in result.output
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.jsonl"], "missing.jsonl: no such file"),
        (["loops.exact.min_cycles=4"], "no file given"),
        (["{file}", "loops.near_exat.mismatch=0.1"], "did you mean 'loops.near_exact.mismatch'"),
        (["{file}", "loops.near_exact.mismatch=0.9"], "mismatch is 0.9: it must be in [0, 0.5)"),
        (["{file}", "loops.flood.max_period=0"], "loops.flood.max_period is 0: it must be 1 or more"),
        (["{file}", "loops.near_exact.max_gap=-2"], "loops.near_exact.max_gap is -2: it must be 0 or more"),
        (["{file}", "loops.warning.ngram=0"], "loops.warning.ngram is 0: it must be 1 or more"),
        (["{file}", "loops.warning.false_alarms=1"], "loops.warning.false_alarms is 1.0: it must be in (0, 1)"),
        (["{file}", "loops.statement.min_revisits=11"], "min_revisits is 11: it must be loops.statement.window=10 or"),
        (["{file}", "loops.max_period=many"], "'many' is not a whole number"),
        (["{file}", "loops.unit=letters"], "unknown loops.unit 'letters': allowed are tokens, words"),
        (["{file}", "--text-field", "reply"], "no field 'reply'; its fields are text"),
    ],
)
def test_user_mistakes_give_one_line(tmp_path, words, message):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "t"}\n', encoding="utf-8")
    result = analyze(*(word.format(file=file) for word in words), "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_analysis_does_not_import_torch(traces, tmp_path):
    script = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from lit_illada.cli import main\n"
        f"main(['loops', 'analyze', {str(traces)!r}, '--out', {str(tmp_path)!r}], standalone_mode=False)\n"
        "assert not {'torch', 'hydra'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert (tmp_path / "report.html").exists()


def test_the_file_of_thresholds_is_read_the_same_with_and_without_hydra():
    assert read_file(LoopsConfig, conf_dir() / "loops.yaml") == load("loops") == LoopsConfig()
