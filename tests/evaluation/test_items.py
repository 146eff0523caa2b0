"""Items from JSON lines, and what is said of a line that is none."""

from fractions import Fraction

import pytest

from lit_illada.errors import UserError
from lit_illada.evaluation.items import ChoiceItem, NumberItem, read_items

GOOD = '{"question": "Two and two?", "choices": ["three", "four"], "answer": 1}'


@pytest.fixture
def file(tmp_path):
    def file(*lines):
        path = tmp_path / "items.jsonl"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
        return path

    return file


def test_choices_blank_lines_other_fields_and_the_limit(file):
    path = file(GOOD, "", GOOD.replace("1}", '0, "id": 7}'), GOOD)
    want = [ChoiceItem(1, "Two and two?", ("three", "four"), 1), ChoiceItem(3, "Two and two?", ("three", "four"), 0)]
    assert read_items(path, limit=2) == want
    assert len(read_items(path)) == 3


@pytest.mark.parametrize(
    ("answer", "place"), [("0", 0), ("1", 1), ('"A"', 0), ('"B"', 1), ('"four"', 1), ('"three"', 0)]
)
def test_an_answer_is_a_number_a_letter_or_a_choice(file, answer, place):
    assert read_items(file(GOOD.replace("1}", f"{answer}}}")))[0].answer == place


def test_a_choices_own_text_goes_before_a_letters_meaning(file):
    assert read_items(file('{"question": "Which?", "choices": ["B", "A"], "answer": "A"}'))[0].answer == 1


def test_problems_with_a_number(file):
    lines = ['{"question": "q", "answer": "so\\n#### 1,234"}', '{"question": "r", "answer": 0.5}']
    assert read_items(file(*lines)) == [NumberItem(1, "q", Fraction(1234)), NumberItem(2, "r", Fraction(1, 2))]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "q", "choices": ["a"', ":2: not JSON (Expecting ',' delimiter at column 34)"),
        ('["a list"]', ":2: must hold an object, not a list"),
        (b'{"question": "\xff"}', ":2: not UTF-8 text at byte 14"),
        ('{"question": "q", "answers": 1}', ":2: no field 'choices'; it has 'answers', 'question'"),
        ("{}", ":2: no field 'choices'; it has none"),
        (GOOD.replace(', "answer": 1', ""), ":2: no field 'answer'; it has 'choices', 'question'"),
        (GOOD.replace('"Two and two?"', '" "'), ':2: question must be a text, not empty; got " "'),
        (GOOD.replace('["three", "four"]', '["four"]'), ":2: choices must be a list of two texts or more"),
        (GOOD.replace('"three"', '""'), ":2: choices must be a list of two texts or more, none empty"),
        (GOOD.replace('"three"', "3"), ":2: choices must be a list of two texts or more"),
        (
            GOOD.replace("1}", "2}"),
            ":2: answer is 2; with 2 choices it must be a number from 0 to 1, a letter from A to B",
        ),
        (GOOD.replace("1}", "-1}"), ":2: answer is -1;"),
        (GOOD.replace("1}", "true}"), ":2: answer is true;"),
        (GOOD.replace("1}", '"C"}'), ':2: answer is "C";'),
        (GOOD.replace('"three"', '"four"').replace("1}", '"four"}'), ':2: answer is "four";'),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(file, line, said):
    path = file(GOOD, line)
    with pytest.raises(UserError) as caught:
        read_items(path)
    assert str(caught.value).startswith(f"{path}{said}")
    assert "\n" not in str(caught.value)


def test_a_first_line_that_is_neither_kind_no_items_and_no_file(file, tmp_path):
    with pytest.raises(UserError, match=r":1: no number in answer \"none\", and no field 'choices'"):
        read_items(file('{"question": "q", "answer": "none"}'))
    with pytest.raises(UserError, match=r":1: no field 'answer'; it has 'prompt'"):
        read_items(file('{"prompt": "q"}'))
    with pytest.raises(UserError, match="no items there"):
        read_items(file("", "  "))
    with pytest.raises(UserError, match=r"missing\.jsonl: no such file"):
        read_items(tmp_path / "missing.jsonl")


def test_half_a_surrogate_pair_is_refused_and_a_whole_one_is_text(file):
    (item,) = read_items(file(GOOD.replace("Two", "\\ud83d\\ude00")))
    assert item.question.startswith("😀")
    with pytest.raises(UserError, match=r":2: field 'question' holds half a surrogate pair"):
        read_items(file(GOOD, GOOD.replace("Two", "\\ud83d")))
