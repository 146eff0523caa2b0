"""The numbers of LOG.md and README.md are those of the tables in sweeps/results (`make check-claims`)."""

from pathlib import Path

import pytest
from claims import check

ROOT = Path(__file__).parents[1]
LOG = (ROOT / "sweeps" / "LOG.md").read_text(encoding="utf-8")
CSV = 'arm,mean,low,p,word,by_seed\na,5.4776,-0.41,0.00004,better,"0.5 0.25"\nb,5.601,,,none,"1 0"\n'
TABLE = """
<!-- from: t.csv; arm = arm; mean (from) = mean low; p = p; verdict = text(word); seeds = 100*by_seed?; bé -> b -->

| arm | mean (from) | p | verdict | seeds |
|---|---|---|---|---|
| a | 5.48 (−0.4) | < 0.001 | better | 50, 25 % |
| bé | 5.60 | | none | |
"""


@pytest.mark.parametrize("name", ["sweeps/LOG.md", "README.md"])
def test_numbers_agree_with_their_files(name):
    assert check((ROOT / name).read_text(encoding="utf-8")).wrong == []


def test_every_table_of_the_notebook_has_a_source_or_a_reason():
    report = check(LOG)
    assert [line for line in report.unbacked if line.endswith("no comment")] == []
    assert report.num_checked > 500


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("−0.312 (−0.355 to −0.269)", "−0.312 (−0.355 to −0.268)", "-0.268, in the file -0.268517"),
        ("| the middle | 4.135 |", "| the middle | 4.134 |", "4.134, in the file 4.13495"),
        ("(−0.409 to −0.310) | better |", "(−0.409 to −0.310) | worse |", "'worse', in the file 'better'"),
        ("100*difference = +74; p_holm = 0.36", "100*difference = +74; p_holm = 0.35", "0.35, in the file 0.36"),
        ("| 26 | 0.36 |", "| 26 | 0.37 |", "0.36 is not in the text"),
        ("| ρ = 0 | 0, 0, 0, 0 |", "| ρ = 0 | 0, 0, 1, 0 |", "1, in the file 0"),
        ("| hard stop 96 | 86 | 0 |", "| hard stop 96 | 85 | 0 |", "85, in the file 86"),
    ],
)
def test_changed_digit_is_found(old, new, message):
    assert old in LOG
    wrong = check(LOG.replace(old, new, 1)).wrong[0]
    assert any(part in wrong for part in message.split("|"))


@pytest.fixture
def folder(tmp_path):
    tmp_path.joinpath("t.csv").write_text(CSV, encoding="utf-8")
    return tmp_path


def test_table_agrees_to_the_digits_shown(folder):
    report = check(TABLE, folder)
    assert report.wrong == []
    assert report.num_checked == 8


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("< 0.001", "< 0.00001", "in the file 4e-05"),
        ("(−0.4)", "(−0.4 to 1)", "3 numbers, 2 in the file"),
        ("| bé | 5.60 |", "| c | 5.60 |", "no row 'c'"),
        ("; p = p;", ";", "columns without a source: p"),
        ("mean (from) = mean low", "mean (from) = mean high", "mean (from)': high: 'high'"),
        ("by_seed?; bé", "by_seed?; cost = mean; bé", "no column cost"),
    ],
)
def test_faults_of_a_table_are_named(folder, old, new, message):
    assert message in " ".join(check(TABLE.replace(old, new), folder).wrong)


def test_table_without_a_file_is_listed(folder):
    text = "<!-- from: none: lost -->\n\n| a |\n|---|\n| 1 |\n\n| b |\n|---|\n| 2 |\n\nIt is 3.\n"
    report = check(text, folder)
    assert report.unbacked == ["table 'a': lost", "table 'b': no comment"]
    assert report.num_plain == 1


def test_claim_of_a_sentence_is_held_against_its_file(folder):
    text = "<!-- claim: t.csv where arm=a; mean = 5.5 -->\nThe mean is 5.5 here.\n"
    assert check(text, folder).wrong == []
    assert "5.5 is not in the text" in check(text.replace("is 5.5 here", "is 5.6 here"), folder).wrong[0]
    assert "no row" in check(text.replace("arm=a", "arm=z"), folder).wrong[0]
