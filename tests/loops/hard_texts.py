# ruff: noqa: E501
"""Texts that repeat themselves by design, and loops of every kind: what detectors are measured on.

All written for these tests. A text of GOOD is no loop to a reader; a text of LOOPS is one.
"""

PROSE = """The ferry leaves at seven, and whoever misses it waits for the mail boat, which keeps no hours. Its pilot knows the
channel by the colour of the water; he has never owned a chart. In March the ice goes out with a noise like furniture
being moved upstairs, and then the first letters arrive, some of them a season old. People read them aloud at the store.
"""
LATER = """A dry summer followed, so the wells were deepened by hand. My aunt kept the accounts of the work in a blue book: who
had dug, for how long, and what each was owed in butter. Nobody was ever paid in anything else until the road came.
"""


def _rows(template, values):
    return "".join(template.format(*value) if isinstance(value, tuple) else template.format(value) for value in values)


def song():
    refrain = (
        "Oh carry me over the wide brown river tonight,\nOh carry me over by the lantern's yellow light,\n"
        "For the far bank is calling and the near bank is cold,\nAnd I will not be sorry to leave the tales we told.\n\n"
    )
    verses = (
        "My father built a house of pine where two old roads divide,\nHe hung a bell above the door for travellers to ride.",
        "The miller's girl had silver combs and would not look at me,\nShe married with a sailor who was never home from sea.",
        "I sold the mare in autumn when the hay had come to naught,\nAnd all the coins they paid me for the boots that I had bought.",
        "So now I keep the ferry and I count the passing rain,\nAnd those who cross it southward do not often cross again.",
    )
    return "".join(f"{verse}\n\n{refrain}" for verse in verses)


def round_song():
    animals = [
        ("cow", "moo"),
        ("duck", "quack"),
        ("pig", "oink"),
        ("horse", "neigh"),
        ("sheep", "baa"),
        ("hen", "cluck"),
    ]
    return _rows(
        "On the hill there lives a {0}, on the hill, on the hill.\nAnd the {0} says {1} all day, on the hill.\n\n",
        animals,
    )


def counting_song():
    numbers = "Ten Nine Eight Seven Six Five Four Three Two One".split()
    return _rows(
        "{0} grey geese were sitting on the wall, {0} grey geese were sitting on the wall,\n"
        "and if the wind should blow one down, there'd be fewer geese upon the wall.\n",
        numbers,
    )


def pytest_code():
    names = "empty blank short long unicode numeric signed nested quoted".split()
    body = _rows(
        "def test_a_{0}_row_is_read(client, tmp_path):\n    response = client.post('/rows', json={{'kind': '{0}'}})\n"
        "    assert response.status_code == 200\n    assert response.json()['status'] == 'ok'\n\n\n",
        names,
    )
    return f"{PROSE}\nHere are the tests:\n```python\nimport pytest\n\n\n{body}```\nRun them with pytest.\n"


def ordinals():
    words = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
    return _rows("We copy the {} row of the left table into the same row of the right table.\n", words)


def weekdays():
    days = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
    return PROSE + _rows("On {} the library opens at ten and closes when the last reader has gone home.\n", days)


def latex_dashes():
    row = r"-- & -- & -- & -- & -- \\" + "\n"
    return PROSE + "\\begin{tabular}{lllll}\n\\hline\n" + row * 9 + "\\hline\n\\end{tabular}\n" + LATER


def latex_table():
    rows = _rows("{} & 0.0 & 0.0 & 0.0 & n/a & n/a \\\\\n", "north south east west centre coast".split())
    return PROSE + "\\begin{tabular}{lrrrll}\n\\toprule\n" + rows + "\\bottomrule\n\\end{tabular}\n"


def sql():
    names = "Ada Bo Cyd Dee Eli Fay Gus Hal Ida Jo Kim Lou".split()
    rows = _rows("INSERT INTO members (name, city, joined, left) VALUES ('{}', 'Porto', NULL, NULL);\n", names)
    return "Fill the table with:\n" + rows + LATER


def sql_nulls():
    return "Reset it:\n" + "INSERT INTO log VALUES (NULL, NULL, 0, 'none');\n" * 4 + LATER


def json_rows():
    names = "anna bert carl dora emil fritz gerd hans".split()
    row = '{{"name": "{0}", "role": "reader", "active": true, "tags": [], "manager": null}},\n'
    return "The answer of the server:\n[\n" + _rows(row, names) + "]\n" + LATER


def pretty_json():
    row = '  {{\n    "id": "{0}",\n    "status": "done",\n    "errors": [],\n    "retries": null\n  }},\n'
    return "[\n" + _rows(row, "alpha beta gamma delta epsilon zeta eta".split()) + "]\n" + LATER


def markdown_table():
    rows = _rows("| {} | yes | yes | no | no | not measured |\n", "oak ash elm fir yew larch alder birch".split())
    return PROSE + "| tree | a | b | c | d | note |\n|---|---|---|---|---|---|\n" + rows + LATER


def empty_cells():
    return "| day | a | b | c |\n|---|---|---|---|\n" + "|  |  |  |  |\n" * 9 + LATER


def multiplication():
    return _rows("{0} times {1} is {2}.\n", [(a, b, a * b) for a in (6, 7, 8) for b in range(1, 11)])


def attempts():
    lines = [("19 + 4 - 7", 16), ("19 - 4 + 7", 22), ("19 - 4 - 7", 8), ("19 * 4 - 7", 69), ("19 + 4 * 7", 47)]
    lines += [("19 * 7 - 4", 129), ("19 - 4 * 7", -9), ("4 * 7 + 19", 47), ("19 / 4 + 7", 11.75), ("19 * 4 + 7", 83)]
    return _rows("Next, let's try the combination of 19, 4 and 7:\n[ {0} = {1} ]\nThis is not equal to 30.\n", lines)


def operators():
    signs = [(a, b) for a in "+-*/" for b in "+-*/"]
    return _rows("We try 19 {} 4 {} 7, and again it does not give us the number that we want.\n", signs)


def recipe():
    things = "flour sugar butter milk yeast salt raisins almonds".split()
    return PROSE + _rows(
        "Weigh the {0} into a bowl of its own, cover it with a cloth, and put it aside for later.\n", things
    )


def legal():
    parties = "Buyer Seller Agent Carrier Insurer Bank Broker Surveyor".split()
    return _rows(
        "The {0} shall not be liable for any delay that is caused by events outside its control. "
        "The {0} shall give notice of such events in writing without undue delay.\n",
        parties,
    )


def dialogue():
    lines = "Is it far?|Not very.|How far is not very?|Two hills.|And then?|Then you ask again.|Whom?|Whoever is there."
    return "".join(f"{who}: {line}\n" for who, line in zip("AB" * 4, lines.split("|"), strict=True)) + PROSE


def poem():
    return _rows(
        "I have seen the {0}, and the {0} has seen me,\nand neither of us spoke of it.\n\n",
        "heron otter adder marten badger lapwing plover".split(),
    )


def review():
    parts = "introduction method data model training result discussion appendix".split()
    return _rows(
        "The {0} is clear. I have no further comments on the {0}, and I suggest no changes to the {0}.\n", parts
    )


def html():
    cells = "<td>0</td><td>0</td><td>none</td>"
    return (
        "<table>\n" + _rows(f"<tr><th>{{}}</th>{cells}</tr>\n", "a1 b2 c3 d4 e5 f6 g7".split()) + "</table>\n" + LATER
    )


def csv():
    return "name,city,count,note\n" + _rows("{},Lyon,0,none\n", "Ada Bo Cyd Dee Eli Fay Gus Hal Ida Jo".split()) + LATER


def checks():
    items = "wheels brakes lights tyres chain bell saddle pedals".split()
    return _rows("Let me check the {0} again. The {0} passed the test, so I go on to the next part.\n", items)


def getters():
    names = "name size colour weight price owner label state".split()
    body = _rows("    public String get{0}() {{\n        return this.{0};\n    }}\n\n", names)
    return f"```java\npublic class Thing {{\n{body}}}\n```\n{LATER}"


def imports():
    names = "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda".split()
    return "```python\n" + _rows("from project.package.module import {0} as {0}\n", names) + "```\n" + LATER


def changelog():
    names = "parser reader writer lexer linker loader".split()
    return _rows(
        "## {0}\n- Fixed a bug in the {0}.\n- Updated the dependencies.\n- Improved the documentation.\n\n", names
    )


GOOD = {
    make.__name__: make
    for make in (
        song, round_song, counting_song, pytest_code, ordinals, weekdays, latex_dashes, latex_table, sql, sql_nulls,
        json_rows, pretty_json, markdown_table, empty_cells, multiplication, attempts, operators, recipe, legal,
        dialogue, poem, review, html, csv, checks, getters, imports, changelog,
    )
}  # fmt: skip


_RECHECK = "Wait, let me check the sum of the two rows again. The sum of the two rows is forty.\n"
_DOUBTS = (
    "Hmm, the total of both rows does not look right to me. ",
    "Let me add up the numbers of both rows once more. ",
    "The first of them gives eleven and the other one nine. ",
    "So the total of both rows together must be twenty. ",
)


def exact_lines():
    return PROSE + "So the boat must have left before the mail came in.\n" * 7


def exact_words():
    return PROSE + "and the boat and the shore and the rain fell over " * 6


def one_word():
    return PROSE + "we, " * 60


def recheck():
    return PROSE + _RECHECK * 5


def two_steps():
    steps = "Now try 88 - 53 = 35, which is not 57.\nNext try 84 - 53 = 31, which is not 57.\n"
    return PROSE + steps * 5


def varied_connective():
    words = ("Next", "Finally", "However", "Now", "Then", "Next", "Again", "Now")
    return PROSE + "".join(f"{word}, let's try 96 and 72 together: 96 - 72 = 24, which is close.\n" for word in words)


def shuffled_statements():
    order = (0, 1, 2, 3, 1, 0, 3, 2, 0, 2, 1, 3, 3, 0, 2, 1, 2, 0, 3, 1)
    return PROSE + "".join(_DOUBTS[index] for index in order)


def listed():
    return PROSE + _rows("{}. Try the pair of 19 and 3, and see whether it reaches the target.\n", range(4, 16))


def open_fence():
    return PROSE + "```python\ndef area(x):\n" + "    result = result + width * height\n" * 14


def open_fence_functions():
    return PROSE + "```python\n" + "def area(x):\n    y = x * width\n    return y\n\n" * 9


def prompt_again():
    return "Question: how far is it to the mill?\nAnswer: it is three miles.\n" * 6


def paragraph():
    return PROSE + LATER * 4


def table_without_end():
    return PROSE + "| 5 | apples | 10 | pears |\n" * 30


def sums_that_settle():
    sums = [3, 8, 15, 24, 24, 24, 24, 24, 24]
    return PROSE + _rows("Adding the next number of the list, we find that the sum so far is {}.\n", sums)


def forced_closure():
    return PROSE + _RECHECK * 6 + "Wait, let me\n</reasoning>\n<answer>\n\\boxed{40}\n</answer>"


def formula():
    return PROSE + "\\[ 70 \\div 43 \\approx 1.63 \\]\nThis is too large. Try another way:\n" * 5


def typing_errors():
    lines = ["the mill stands by the water and the wheel turns slowly all day long, so we wait"] * 9
    lines[3], lines[6] = lines[3].replace("slowly", "slow"), lines[6].replace("long", "lng")
    return PROSE + ". ".join(lines)


def other_language():
    return PROSE + "Warten Sie, ich prüfe die Summe noch einmal: sie beträgt vierzig Äpfel.\n" * 5


LOOPS = {
    make.__name__: make
    for make in (
        exact_lines, exact_words, one_word, recheck, two_steps, varied_connective, shuffled_statements, listed,
        open_fence, open_fence_functions, prompt_again, paragraph, table_without_end, sums_that_settle, forced_closure,
        formula, typing_errors, other_language,
    )
}  # fmt: skip
