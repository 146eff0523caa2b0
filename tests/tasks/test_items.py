"""Items from JSON lines, and error messages for invalid lines."""

from fractions import Fraction

import pytest

from lit_illada.errors import UserError
from lit_illada.tasks.items import ChoiceItem, NumberItem, read_items

GOOD = '{"question": "Two and two?", "choices": ["three", "four"], "answer": 1}'


@pytest.fixture
def file(tmp_path):
    def file(*lines):
        path = tmp_path / "items.jsonl"
        path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines))
        return path

    return file


def test_blank_lines_and_other_fields_are_skipped_and_the_limit_holds(file):
    path = file(GOOD, "", GOOD.replace("1}", '0, "id": 7}'), GOOD)
    want = [ChoiceItem(1, "Two and two?", ("three", "four"), 1), ChoiceItem(3, "Two and two?", ("three", "four"), 0)]
    assert read_items(path, limit=2) == want
    assert len(read_items(path)) == 3


@pytest.mark.parametrize(
    ("answer", "index"), [("0", 0), ("1", 1), ('"A"', 0), ('"B"', 1), ('"four"', 1), ('"three"', 0)]
)
def test_an_answer_is_an_index_a_letter_or_a_choice(file, answer, index):
    assert read_items(file(GOOD.replace("1}", f"{answer}}}")))[0].answer == index


def test_the_text_of_a_choice_takes_precedence_over_a_letter(file):
    assert read_items(file('{"question": "Which?", "choices": ["B", "A"], "answer": "A"}'))[0].answer == 1


def test_numeric_answers_are_read_exactly(file):
    lines = ['{"question": "q", "answer": "so\\n#### 1,234"}', '{"question": "r", "answer": 0.5}']
    assert read_items(file(*lines)) == [NumberItem(1, "q", Fraction(1234)), NumberItem(2, "r", Fraction(1, 2))]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q", "choices": ["a"', ":2: not JSON (Expecting ',' delimiter at column 34)"),
        ('["a list"]', ":2: must be an object, not a list"),
        (b'{"question": "\xff"}', ":2: not UTF-8 text at byte 14"),
        ('{"question": "q", "answers": 1}', ":2: no field 'choices'; it has 'answers', 'question'"),
        ("{}", ":2: no field 'choices'; it has none"),
        (GOOD.replace(', "answer": 1', ""), ":2: no field 'answer'; it has 'choices', 'question'"),
        (GOOD.replace('"Two and two?"', '" "'), ':2: question must be a non-empty text; got " "'),
        (GOOD.replace('["three", "four"]', '["four"]'), ":2: choices must be a list of at least two texts"),
        (GOOD.replace('"three"', '""'), ":2: choices must be a list of at least two texts, none empty"),
        (GOOD.replace('"three"', "3"), ":2: choices must be a list of at least two texts"),
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
def test_an_invalid_line_is_named_with_its_fault(file, line, message):
    path = file(GOOD, line)
    with pytest.raises(UserError) as caught:
        read_items(path)
    assert str(caught.value).startswith(f"{path}{message}")
    assert "\n" not in str(caught.value)


def test_files_without_usable_items_are_refused(file, tmp_path):
    with pytest.raises(UserError, match=r":1: no number in answer \"none\", and no field 'choices'"):
        read_items(file('{"question": "q", "answer": "none"}'))
    with pytest.raises(UserError, match=r":1: no field 'answer'; it has 'prompt'"):
        read_items(file('{"prompt": "q"}'))
    with pytest.raises(UserError, match="no items in it"):
        read_items(file("", "  "))
    with pytest.raises(UserError, match=r"missing\.jsonl: no such file"):
        read_items(tmp_path / "missing.jsonl")


def test_half_a_surrogate_pair_is_refused_and_a_whole_pair_is_text(file):
    (item,) = read_items(file(GOOD.replace("Two", "\\ud83d\\ude00")))
    assert item.question.startswith("😀")
    with pytest.raises(UserError, match=r":2: field 'question' contains an unpaired surrogate"):
        read_items(file(GOOD, GOOD.replace("Two", "\\ud83d")))
