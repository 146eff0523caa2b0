"""KEY=VALUE: one grammar, one-line refusals with the nearest key, and no traceback whatever is written."""

import random
from contextlib import suppress

import pytest
from click.testing import CliRunner

from lit_illada.cli import main
from lit_illada.config import SCHEMAS, load, load_file
from lit_illada.errors import UserError
from lit_illada.overrides import parse_assignment, quoted
from lit_illada.run_folder import flatten
from lit_illada.runtime.key_hints import SYNONYMS, similar_key
from lit_illada.schema import dump, from_tree, to_tree
from lit_illada.sweep.library import read_spec
from lit_illada.sweep.spec import SweepSpec

KEYS = {command: list(flatten(to_tree(load(command)))) for command in SCHEMAS}
SWEEP_KEYS = ["budget.measure", "budget.amount", "warmup_fraction", "seeds"]


@pytest.mark.parametrize(
    ("command", "override", "meant"),
    [
        ("pretrain", "trainer.lr=1", "optim.optimizer.learning_rate"),
        ("pretrain", "+trainer.lr=1", "optim.optimizer.learning_rate"),
        ("pretrain", "batch_size=8", "trainer.batch_rows"),
        ("pretrain", "trainer.max_epochs=8", "trainer.max_steps"),
        ("sft", "trainer.max_epochs=8", "epochs"),
        ("pretrain", "gpus=2", "trainer.devices"),
        ("pretrain", "trainer.warmup_ratio=0.1", "optim.schedule.warmup_steps"),
        ("pretrain", "model.num_layers=3", "model.num_hidden_layers"),
        ("pretrain", "learning_rate=1", "optim.optimizer.learning_rate"),
        ("pretrain", "data.precision=1", "trainer.precision"),
        ("generate", "temperatur=1", "generation.temperature"),
        ("generate", "generation.temperatur=1", "generation.temperature"),
    ],
)
def test_an_unknown_key_names_the_nearest_one_in_any_group(command, override, meant):
    with pytest.raises(UserError, match=rf"did you mean '{meant}'"):
        load(command, [override])


def test_every_synonym_leads_to_keys_that_exist():
    known = [*(key for keys in KEYS.values() for key in keys), *SWEEP_KEYS]
    for name, meant in SYNONYMS.items():
        for key in meant:
            assert any(one == key or one.endswith(f".{key}") for one in known), (name, key)


COMMON_NAMES = {
    "lr": ["optim.optimizer.learning_rate", "optim.optimizer.learning_rate", None, None],
    "batch_size": ["trainer.batch_rows", "trainer.batch_rows", None, "score.batch_prompts"],
    "max_length": ["data.row_length", "sft_data.row_length", "generation.max_new_tokens", "generation.max_new_tokens"],
    "seed": ["seed", "seed", "generation.seed", "score.seed"],
    "precision": ["trainer.precision", "trainer.precision", "precision", "precision"],
}


@pytest.mark.parametrize("name", COMMON_NAMES)
def test_common_names_find_their_key_of_the_command_or_nothing(name):
    found = [
        similar_key(f"unknown_group.{name}", KEYS[command]) for command in ("pretrain", "sft", "generate", "score")
    ]
    assert found == COMMON_NAMES[name]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget.unit=flops"], r"did you mean 'budget\.measure'"),
        (["nano"], r"write \+scale=nano"),
        (["seeds=range(1,3)"], r"write a list, such as seeds=\[1,2\]"),
        (["seeds=[0"], "is no KEY=VALUE"),
        (["seeds=3"], r"write seeds=\[3\]"),
    ],
)
def test_a_sweep_refuses_in_the_same_way(overrides, message):
    with pytest.raises(UserError, match=message):
        read_spec("mask_ratio", overrides)


def test_one_path_where_a_list_is_expected_shows_the_list():
    with pytest.raises(UserError, match=r"is not a list of texts: write data\.source\.paths=\[books/a\.txt\]"):
        load("pretrain", ["data=text", "data.source.paths=books/a.txt"])


def test_saved_configs_and_sweeps_read_the_same_grammar(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(dump(load("pretrain")), encoding="utf-8")
    for value in ("'a,b'", '"a b"', "x\\ y", "'it''s'"[:3] + "'"):
        override = f"name={value}"
        expected = parse_assignment(override).value
        assert load("pretrain", [override]).name == load_file("pretrain", file, [override]).name == expected
        assert read_spec("mask_ratio", [override]).name == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective={name:[x]}", r"unknown objective\.name \['x'\]"),
        ("objective={name:{a:1}}", r"unknown objective\.name"),
        ("objective=[x]", "unknown config objective 'x'"),
        ("seed=99999999999999999999", "an integer of 67 bits"),
        ("seed=" + "9" * 5000, "."),
        ("seed=" + "9" * 50_000, "longer than"),
        ("seed=[[1]]", "is not a whole number"),
        ("seed=???", r"seed has no value \(\?\?\?\), but needs one: set seed="),
        ("optim.optimizer.learning_rate=nan", "is nan"),
        ("name=${name}", "Recursive interpolation"),
        ("~seed", "would delete a key"),
        ("=3", "is no override"),
        ("", "is no override"),
    ],
)
def test_odd_values_are_refused_in_one_line(override, message):
    with pytest.raises(UserError, match=message) as refused:
        load("pretrain", [override])
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1500


VALUES = [
    "{a:1}", "{name:[x]}", "{name:{a:1}}", "{name:null}", "{}", "[]", "[x]", "[[1]]", "[[[x,1]]]", "[1,null]", "1e400",
    "9" * 30, "-" + "9" * 30, "9" * 5000, "-1", "0", "null", "true", "nan", "-inf", "''", '"', "'", "${oc.env:HOME}",
    "${oc.env:NOT_SET}", "${a}", "${name}", "${", "${oc.decode:x}", "${oc.create:{a:1}}", "\u202e\x1b[31m", "é═σ",
    "a,b", "range(1,3)", "glob(*)", "sort(3,1)", "int(x)", "tag(x,1)", "extend_list(1)", "{", "]", "[1,2,", "{1:2}",
    "{[1]:2}", "0x10", "???", "\\", "a:b", "a=b", "-.5", "1.", "'1'", "\n", " ", "\x00", "[" * 99, "{a:" * 60,
]  # fmt: skip
ODD_KEYS = [
    "",
    " ",
    "a b",
    "é",
    "[0]",
    "..",
    ".model",
    "defaults",
    "_self_",
    "hydra.run.dir",
    "/model",
    "x.y",
    "seed.x",
]
PREFIXES = ["", "", "", "+", "++", "~"]


def fuzzed(rng, command):
    """One override: mostly a key that exists, with a value that does not belong there."""
    key = rng.choice([rng.choice(KEYS[command]), rng.choice(KEYS[command]).rpartition(".")[0], rng.choice(ODD_KEYS)])
    return f"{rng.choice(PREFIXES)}{key}={rng.choice(VALUES)}"


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("loops", 60),
        ("data", 20),
        ("pretrain", 10),
        pytest.param("loops", 200, marks=pytest.mark.slow),
        pytest.param("generate", 120, marks=pytest.mark.slow),
        pytest.param("pretrain", 100, marks=pytest.mark.slow),
        pytest.param("sft", 80, marks=pytest.mark.slow),
    ],
)
def test_no_override_ends_in_a_traceback(command, number):
    rng = random.Random(number)
    for _ in range(number):
        override = fuzzed(rng, command)
        result = CliRunner().invoke(main, ["config", command, "--", override])
        assert result.exception is None or isinstance(result.exception, SystemExit), (override, result.exception)
        if result.exit_code:
            assert result.output.startswith("Error: "), (override, result.output)
            assert result.output.count("\n") == 1, (override, result.output)


def test_no_override_of_a_sweep_ends_in_a_traceback():
    rng = random.Random(0)
    keys = [*flatten(to_tree(read_spec("demo"))), *SWEEP_KEYS, "scale", "scales", "arms", "axes.x", *ODD_KEYS]
    for _ in range(80):
        override = f"{rng.choice(PREFIXES)}{rng.choice(keys)}={rng.choice(VALUES)}"
        with suppress(UserError):
            read_spec("demo", [override])


def test_a_sweep_reads_back_what_it_writes():
    spec = read_spec("demo")
    assert from_tree(SweepSpec, to_tree(spec)) == spec


def test_a_mapping_with_another_name_replaces_its_section():
    mapping = "sft_data.source={name: task, task: {name: sudoku4, min_empty: 3}}"
    source = load("sft", [mapping, "sft_data.source.num_train=5"]).sft_data.source
    assert (source.task.min_empty, source.task.max_empty, source.num_train) == (3, 10, 5)
    task = "sft_data.source.task={name: countdown, max_number: 20}"
    assert load("sft", ["sft_data/source=task", task]).sft_data.source.task.max_number == 20
    with pytest.raises(UserError, match=r"sft_data.source.task.max_numbr.*max_number"):
        load("sft", ["sft_data/source=task", "sft_data.source.task={name: countdown, max_numbr: 20}"])


@pytest.mark.parametrize("text", ["it's", "a b", "a\\b", "ends in \\", "\\'", "'", "", "1", "true", "a=b,c", '"'])
def test_a_quoted_text_is_parsed_as_it_was(text):
    assert parse_assignment(f"key={quoted(text)}").value == text
    assert parse_assignment(f"key={quoted({'a': [text, 1, None]})}").value == {"a": [text, 1, None]}
