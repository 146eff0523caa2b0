"""Files of generations are read whoever wrote them, and what is wrong is named with its line."""

import csv
import gzip
import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet
import pytest

from lit_illada.errors import UserError
from lit_illada.loops.config import LoopConfig
from lit_illada.loops.outcome import outcome
from lit_illada.loops.records import Fields, read_generations


def write(path, *records, encoding="utf-8"):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding=encoding)
    return path


def read(*paths, **fields):
    return list(read_generations(paths, Fields(**fields)))


def test_usual_field_names_are_recognised(tmp_path):
    row = {"prompt": "p?", "text": "t", "truth": "3", "is_right": True, "level": 2, "is_finished": False}
    (found,) = read(write(tmp_path / "rows.jsonl", row))
    assert (found.text, found.prompt, found.truth, found.is_right) == ("t", "p?", "3", True)
    assert found.is_finished is False
    assert found.groups["level"] == "2"


def test_fields_can_be_named(tmp_path):
    row = {"text": "other", "said": "t", "asked": "p?", "verdict": 0, "subject": "maths", "gold": 4}
    named = {"text": "said", "prompt": "asked", "correct": "verdict", "truth": "gold", "groups": ("subject",)}
    (found,) = read(write(tmp_path / "rows.jsonl", row), **named)
    assert (found.text, found.prompt, found.is_right, found.truth) == ("t", "p?", False, 4)
    assert found.groups["subject"] == "maths"


def test_traces_of_this_package_are_read(tmp_path):
    trace = {
        "token_ids": [5, 6],
        "tokens": ["a", "b"],
        "steps": [1, 0],
        "confidence": [0.5, 1.0],
        "entropy": [1.0, 0.1],
    }
    row = {"settings": {"max_new_tokens": 64}, "text": "ab", "is_stopped": True, "num_forwards": 2, **trace}
    (found,) = read(write(tmp_path / "trace.jsonl", {**row, "blocks": [0, 0], "num_commits": [1, 1]}))
    assert {name: getattr(found, name) for name in trace} == trace
    assert (found.num_canvas, found.num_steps, found.is_finished) == (64, 2, True)


def test_records_with_only_token_ids_are_read(tmp_path):
    (found,) = read(write(tmp_path / "ids.jsonl", {"token_ids": [1, 2, 3]}))
    assert found.text is None
    assert found.token_ids == [1, 2, 3]


def test_lists_without_token_ids_are_not_a_trace(tmp_path):
    (found,) = read(write(tmp_path / "rows.jsonl", {"text": "t", "steps": ["First", "Then"], "tokens": [3]}))
    assert (found.steps, found.tokens) == (None, None)


def test_d1s_files_are_read(tmp_path):
    path = tmp_path / "countdown_instruct_512_256_3_generations.json"
    one = {"question": "Numbers: [1, 2]\nTarget: 3", "generations": "t<|eot_id|>", "ground_truth": [[1, 2], 3]}
    path.write_text(json.dumps({"generations": [one, one], "metrics": {}}), encoding="utf-8")
    found = read(tmp_path)
    assert len(found) == 2
    assert found[0].groups.items() >= {"task": "countdown", "length": "512"}.items()
    assert (found[0].num_canvas, found[0].num_steps, found[0].truth) == (512, 256, [[1, 2], 3])


def test_lm_eval_samples_are_read_for_one_filter(tmp_path):
    row = {"doc_id": 0, "doc": {"question": "p"}, "target": "#### 3", "resps": [["t1", "t2"]], "exact_match": 1.0}
    row["arguments"] = {"gen_args_0": {"arg_0": "p?", "arg_1": {"until": []}}}
    path = tmp_path / "samples_gsm8k_2026-01-02T03-04-05.678901.jsonl"
    found = read(
        write(path, {**row, "filter": "strict-match"}, {**row, "filter": "flexible-extract", "exact_match": 0.0})
    )
    assert [item.text for item in found] == ["t1", "t2"]
    assert {(item.prompt, item.is_right, item.groups["task"]) for item in found} == {("p?", True, "gsm8k")}


def test_any_other_file_is_one_text(tmp_path):
    path = tmp_path / "answer.txt"
    path.write_text("first\nsecond", encoding="utf-8")
    (found,) = read(path)
    assert found.text == "first\nsecond"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marked_encodings_are_read(tmp_path, encoding):
    (one, two) = read(write(tmp_path / "rows.jsonl", {"text": "né\u2028t"}, {"text": "x"}, encoding=encoding))
    assert (one.text, two.text) == ("né\u2028t", "x")


def test_unknown_encodings_suggest_the_option(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"text": "né"}, encoding="latin-1")
    with pytest.raises(UserError, match=r"not UTF-8 at byte 11 .*--encoding"):
        read(path)
    assert next(read_generations([path], encoding="latin-1")).text == "né"
    with pytest.raises(UserError, match="unknown encoding 'klingon'"):
        list(read_generations([path], encoding="klingon"))


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("utf-16", "UTF-16"), ("utf-16", "U16"), ("utf-32", "UTF_32"), ("utf-16-le", "UTF-16LE"),
        ("utf-8-sig", "utf8"), ("latin-1", "ISO-8859-1"),
    ],
)  # fmt: skip
def test_every_alias_of_an_encoding_is_accepted(tmp_path, written, named):
    path = write(tmp_path / "rows.jsonl", {"text": "né"}, {"text": "x"}, {"text": "ok"}, encoding=written)
    assert [found.text for found in read_generations([path], encoding=named)] == ["né", "x", "ok"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "UTF-16-BE", "utf-8"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.txt"])
def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path, encoding, name):
    content = {"rows.jsonl": '{"text": "t"}\n', "rows.json": '[{"text": "t"}]', "rows.txt": "t"}[name]
    (tmp_path / name).write_bytes(f"\ufeff{content}".encode(encoding))
    assert [found.text for found in read_generations([tmp_path / name], encoding=encoding)] == ["t"]


def test_compressed_files_are_read(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "t"}\n'))
    assert read(path)[0].text == "t"


BAD = {
    "empty file": ("rows.jsonl", "", "no generations in it: the file is empty"),
    "empty json": ("rows.json", "", "no generations in it"),
    "empty text": ("a.txt", "", "no generations in it"),
    "blank lines": ("rows.jsonl", "\n\n", "no generations in it"),
    "no object": ("rows.jsonl", '{"text": "t"}\n[1, 2]\n', r"line 2: not an object but \[1, 2\]"),
    "no json": ("rows.jsonl", '{"text": "t"}\n{"text": \n', "line 2: not JSON"),
    "missing field": ("rows.jsonl", '{"prompt": "p", "reply": "t"}\n', "its fields are prompt, reply"),
    "no text in it": ("rows.jsonl", '{"text": 3}\n', "field 'text' must contain generated text; got 3"),
    "scores": ("samples_x.jsonl", '{"resps": [[[-1.5, "False"]]]}\n', r"must contain generated text; got \[\[\[-1.5"),
    "uneven trace": ("rows.jsonl", '{"token_ids": [1, 2], "steps": [1]}\n', "token_ids has 2, steps has 1"),
    "odd ids": ("rows.jsonl", '{"token_ids": ["a", "b"]}\n', "line 1: field .token_ids. .* got \"a\" at 0"),
    "huge ids": ("rows.jsonl", f'{{"token_ids": [1, {2**64}]}}\n', "'token_ids' .* got 18446744073709551616 at 1"),
    "odd tokens": ("rows.jsonl", '{"token_ids": [1, 2], "tokens": [1, 2]}\n', "'tokens' .* texts; got 1 at 0"),
    "no step": ("rows.jsonl", '{"token_ids": [1, 2], "steps": [0, null]}\n', "'steps' .* got null at 1"),
    "odd steps": ("rows.jsonl", '{"token_ids": [1, 2], "steps": ["x", "y"]}\n', "'steps' .* got \"x\" at 0"),
    "true step": ("rows.jsonl", '{"token_ids": [1], "steps": [true]}\n', "'steps' .* got true at 0"),
    "odd entropy": ("rows.jsonl", '{"token_ids": [1], "entropy": [NaN]}\n', "'entropy' .* numbers; got NaN at 0"),
    "other json": ("rows.json", '{"results": 3, "config": 4}', "has results, config"),
    "no list": ("rows.json", "3", "has int"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_malformed_records_are_refused_with_the_reason(tmp_path, name):
    file, content, message = BAD[name]
    (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read(tmp_path / file)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": "reply"}, r"no field 'reply'; its fields are text, prompt"),
        ({"prompt": "promt"}, "unknown field in .* 'promt': allowed are .*did you mean 'prompt'"),
        ({"groups": ("arm",)}, "unknown field in .* 'arm'"),
    ],
)
def test_a_missing_field_is_refused_with_the_existing_ones(tmp_path, fields, message):
    path = write(tmp_path / "rows.jsonl", {"text": "t", "prompt": "p"})
    with pytest.raises(UserError, match=message):
        read(path, **fields)


def test_only_boolean_values_are_verdicts(tmp_path):
    rows = [{"correct": "B"}, {"acc": 0.5}, {"correct": "B", "acc": 1.0}, {"is_right": [1]}, {"exact_match": False}]
    path = write(tmp_path / "rows.jsonl", *({"text": "t", **row} for row in rows))
    assert [found.is_right for found in read(path)] == [None, None, True, None, False]


@pytest.mark.parametrize(("value", "message"), [("B", '"B"'), (0.5, "0.5")])
def test_a_named_verdict_field_must_contain_verdicts(tmp_path, value, message):
    path = write(tmp_path / "rows.jsonl", {"text": "t", "verdict": 1}, {"text": "t", "verdict": value})
    with pytest.raises(UserError, match=f"line 2: the verdict must be true, false, 1 or 0; got {message}"):
        read(path, correct="verdict")


def test_a_missing_file_suggests_the_nearest(tmp_path):
    write(tmp_path / "rows.jsonl", {"text": "t"})
    with pytest.raises(UserError, match=r"no such file; did you mean .*rows\.jsonl"):
        read(tmp_path / "row.jsonl")


def test_files_of_one_name_are_labelled_with_their_folders(tmp_path):
    for run in ("a", "b"):
        (tmp_path / run / "scores").mkdir(parents=True)
        (tmp_path / run / "scores" / "generations.jsonl").write_text('{"text": "x"}\n', encoding="utf-8")
    found = [item.groups["file"] for item in read_generations([tmp_path / "a", tmp_path / "b"])]
    assert found == ["a/scores/generations.jsonl", "b/scores/generations.jsonl"]


def test_other_files_of_run_folders_are_skipped(tmp_path):
    (tmp_path / "provenance.jsonl").write_text('{"commit": "x"}\n', encoding="utf-8")
    (tmp_path / "summary.json").write_text('{"end": {}}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"no generations in it, but provenance\.jsonl, summary\.json"):
        list(read_generations([tmp_path]))
    (tmp_path / "generations.jsonl").write_text('{"text": "x"}\n', encoding="utf-8")
    (tmp_path / "checkpoint" / "tokenizer").mkdir(parents=True)
    (tmp_path / "checkpoint" / "tokenizer" / "tokenizer.json").write_text('{"version": 1}\n', encoding="utf-8")
    assert [item.text for item in read_generations([tmp_path])] == ["x"]
    with pytest.raises(UserError, match=r"provenance\.jsonl, line 1: no text under any of"):
        list(read_generations([tmp_path / "provenance.jsonl"]))


def test_a_summary_file_outside_of_runs_is_read(tmp_path):
    (tmp_path / "summary.json").write_text('[{"text": "x"}]', encoding="utf-8")
    assert [item.text for item in read_generations([tmp_path])] == ["x"]


@pytest.mark.parametrize(("name", "separator"), [("rows.csv", ","), ("rows.tsv", "\t"), ("rows.CSV", ",")])
def test_each_row_of_a_table_is_a_generation(tmp_path, name, separator):
    path = tmp_path / name
    rows = [["prompt", "answer", "correct", "level"], ["p?", 'a "quoted"\ntext', "True", "2"], ["q?", "12", "0", ""]]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    first, second = read(path, text="answer", correct="correct")
    assert (first.text, first.prompt, first.is_right, first.groups["level"]) == (rows[1][1], "p?", True, "2")
    assert (second.text, second.is_right) == ("12", False)
    assert "level" not in second.groups


def test_an_empty_cell_of_the_text_column_is_an_empty_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt,response,level\nq1,,\nq2,b,3\n", encoding="utf-8")
    for fields in ({}, {"text": "response"}):
        assert [(item.text, item.groups.get("level")) for item in read(path, **fields)] == [("", None), ("b", "3")]
    path.write_text("text,generation\n,a\nb,\n", encoding="utf-8")
    assert [item.text for item in read(path)] == ["a", "b"]


@pytest.mark.parametrize("name", ["rows.ndjson", "rows.JSONL", "rows.jsonl"])
def test_each_line_of_json_lines_is_a_generation_whatever_the_suffix(tmp_path, name):
    (tmp_path / name).write_text('{"text": "a b"}\n{"text": "c d"}\n', encoding="utf-8")
    assert [item.text for item in read(tmp_path / name)] == ["a b", "c d"]


def test_the_output_folder_of_lm_eval_is_read_without_its_table_of_results(tmp_path):
    (tmp_path / "samples_gsm8k_2026-01-02T03-04-05.jsonl").write_text('{"resps": [["a b"]]}\n', encoding="utf-8")
    (tmp_path / "results_2026-01-02T03-04-05.json").write_text('{"results": {}}', encoding="utf-8")
    assert [item.text for item in read_generations([tmp_path])] == ["a b"]


def test_the_models_own_end_of_text_token_ends_the_text(tmp_path):
    trace = {"token_ids": [1, 2, *[3] * 40], "tokens": ["5", ".", *["<|end|>"] * 40], "steps": list(range(42))}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "5.", "stop_text": "<|end|>", "max_new_tokens": 42, **trace}) + "\n")
    (item,) = read(path)
    assert not outcome(item, LoopConfig()).findings.is_loop
    assert outcome(replace(item, stop_text=None), LoopConfig()).findings.is_loop


def test_a_table_without_a_known_text_column_names_its_columns(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("id,said\n1,hello\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"rows.csv, line 2: no text .* its fields are id, said \(--text-field names one\)"
    ):
        read(path)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("text,level\nhello\n", "line 2: 1 cells, but the header has 2 columns"),
        ("text,text\na,b\n", "two columns are named 'text'"),
        ('text\n"open\n', "not a table with ',' between cells"),
        ("", "the file is empty"),
        ("response\n", "a header without rows"),
        ("x" * (2**25 + 1), "line 1: longer than the limit of 32 Mi characters"),
    ],
)
def test_a_broken_table_is_refused_in_one_line(tmp_path, table, reason):
    path = tmp_path / "rows.csv"
    path.write_text(table, encoding="utf-8")
    with pytest.raises(UserError, match=reason) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_long_cell_is_read(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "word " * 100_000 + "\n", encoding="utf-8")
    assert len(read(path)[0].text) == 500_000


def test_parquet_is_read(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pa.table({"text": ["t", "u"], "is_right": [True, None], "level": [1, 2]}), path)
    found = read(path)
    assert [(item.text, item.is_right, item.groups["level"]) for item in found] == [("t", True, "1"), ("u", None, "2")]


def test_unsupported_formats_are_refused_with_the_supported(tmp_path):
    (tmp_path / "rows.xlsx").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match=r"\.xlsx files are not read; save the generations as JSON Lines, CSV"):
        read(tmp_path / "rows.xlsx")
    (tmp_path / "rows.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read(tmp_path / "rows.parquet")


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_long_number_is_not_a_generated_text(digits, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"text": {"9" * digits}}}\n')
    with pytest.raises(UserError, match=r"rows\.jsonl, line 1: field 'text' must contain generated text"):
        read(path)
