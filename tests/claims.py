"""Holds the numbers of a text against the tables of sweeps/results: `python tests/claims.py FILE...` lists each claim.

A table is backed by one comment or more above it, a paragraph or list by comments of the second kind:

    <!-- from: FILE where COLUMN=VALUE and COLUMN=VALUE; HEADER = COLUMN; HEADER = EXPR EXPR; CELL -> VALUE -->
    <!-- claim: FILE where COLUMN=VALUE; EXPR = NUMBER; EXPR = NUMBER -->
    <!-- from: none: REASON -->

FILE is relative to sweeps/. The first HEADER names the column that identifies a row, by a column of the file; CELL ->
VALUE translates such a cell. The other headers list the numbers of their cells in order. EXPR is a column, or
`FACTOR*COLUMN`, or `FACTOR*sum(COLUMN)` or `mean` over several rows, or a number, or `text(COLUMN)` for words; a
trailing `?` allows its absence. A number must be the file's, rounded to the digits shown; `< 0.001` an upper limit.
"""

import csv
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
MARKER = re.compile(r"<!-- (from|claim): (.*?)-->", re.DOTALL)
NUMBER = re.compile(r"<?\s*[+-]?\d+(?:\.\d+)?")
EXPRESSION = re.compile(
    r"(?:(?P<factor>[\d.]+)\*)?(?:(?P<how>sum|mean|text)\()?(?P<column>[^()?]+)\)?(?P<optional>\??)"
)


@dataclass
class Report:
    """Checked and unbacked claims of a file."""

    num_checked: int = 0
    wrong: list[str] = field(default_factory=list)
    unbacked: list[str] = field(default_factory=list)  # tables with `from: none` and its reason, or without a comment
    num_plain: int = 0  # paragraphs and lists with numbers and without a claim


def check(text, folder=ROOT / "sweeps"):
    """Report of a text whose comments name files in `folder`."""
    report, markers = Report(), []
    for block in re.split(r"\n\s*\n", text):
        found = [(kind, " ".join(body.split())) for kind, body in MARKER.findall(block)]
        body = MARKER.sub("", block).strip()
        markers += found
        if not body:
            continue
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in body.splitlines() if line[0] == "|"]
        own, markers = markers, []
        report.num_plain += not rows and not own and body[0] != "#" and _has_number(body)
        if rows:
            _check_table(rows, [content for kind, content in own if kind == "from"], bool(own), folder, report)
        for kind, content in own:
            if kind == "claim":
                _check_claims(content, body, folder, report)
            elif not rows and not content.startswith("none:"):
                report.wrong.append(f"no table follows: {content[:60]}")
    report.wrong += [f"nothing follows: {content[:60]}" for _, content in markers]
    return report


def _check_table(rows, sources, is_marked, folder, report):
    header, covered = rows[0], set()
    name = f"table '{' | '.join(header[:3])}'"
    if not is_marked and any(_has_number(cell) for cells in rows[2:] for cell in cells):
        report.unbacked.append(f"{name}: no comment")
    for source in sources:
        if source.startswith("none:"):
            report.unbacked.append(f"{name}: {source.removeprefix('none:').strip()}")
            covered |= set(header)
            continue
        records, parts = _read(source, folder)
        names = dict(_pair(part, " -> ") for part in parts if " -> " in part)
        (key, column), *columns = [_pair(part, " = ") for part in parts if " -> " not in part]
        covered |= {key, *(heading for heading, _ in columns)}
        if missing := {key, *(heading for heading, _ in columns)} - set(header):
            report.wrong.append(f"{name}: no column {', '.join(sorted(missing))}")
            continue
        for cells in rows[2:]:
            row = dict(zip(header, cells, strict=True))
            wanted = names.get(row[key], row[key])
            matching = [record for record in records if record[column] == wanted]
            if not matching and any(row[heading] for heading, _ in columns):
                report.wrong.append(f"{name}: no row {wanted!r} in {source.split(';')[0]}")
            for heading, expressions in columns if matching else []:
                _compare(f"{name}, row {row[key]!r}, {heading!r}", row[heading], expressions.split(), matching, report)
    if sources and (rest := set(header) - covered):
        report.wrong.append(f"{name}: columns without a source: {', '.join(sorted(rest))}")


def _check_claims(content, body, folder, report):
    records, parts = _read(content, folder)
    shown = _numbers(body)
    if not records:
        report.wrong.append(f"no row for {content.split(';')[0]!r}")
        return
    for part in parts:
        expression, number = _pair(part, " = ")
        _compare(f"claim {part!r} of {content.split(';')[0]}", number, [expression], records, report)
        if _numbers(number)[0] not in shown:
            report.wrong.append(f"{number} is not in the text that follows its claim: {body[:60]!r}")


def _read(source, folder):
    """Rows of a source that meet its conditions, and the parts after it."""
    head, *parts = (part.strip() for part in source.split(";"))
    file, _, conditions = head.partition(" where ")
    with (folder / file).open(encoding="utf-8", newline="") as lines:
        records = list(csv.DictReader(lines))
    wanted = dict(_pair(condition, "=") for condition in conditions.split(" and ")) if conditions else {}
    return [record for record in records if wanted.items() <= record.items()], [part for part in parts if part]


def _pair(text, separator):
    left, found, right = text.partition(separator)
    assert found, f"{text!r} has no {separator.strip()!r}"
    return left.strip(), right.strip()


def _compare(where, cell, expressions, records, report):
    """Compare the numbers of a cell with the values of expressions."""
    report.num_checked += 1
    if (word := re.fullmatch(r"text\((.*)\)\??", " ".join(expressions))) is not None:
        if cell != records[0][word[1]]:
            report.wrong.append(f"{where}: {cell!r}, in the file {records[0][word[1]]!r}")
        return
    shown, values = _numbers(cell), []
    for expression in expressions:
        try:
            values += _values(expression, records, is_shown=len(values) < len(shown))
        except (KeyError, ValueError) as error:
            report.wrong.append(f"{where}: {expression}: {error}")
            return
    if len(shown) != len(values):
        report.wrong.append(f"{where}: {len(shown)} numbers, {len(values)} in the file")
    for text, value in zip(shown, values, strict=False):
        if not _agree(text, value):
            report.wrong.append(f"{where}: {text}, in the file {value:g}")


def _values(expression, records, is_shown):
    """Numbers of an expression; none for an absent optional one and for empty cells of the file."""
    match = EXPRESSION.fullmatch(expression)
    assert match, f"{expression!r} is no expression"
    if match["optional"] and not is_shown:
        return []
    if re.fullmatch(r"[\d.]+", match["column"]):
        return [float(match["column"])]
    factor = float(match["factor"] or 1)
    cells = [[float(number) for number in record[match["column"]].split()] for record in records]
    if match["how"]:
        return [factor * (sum if match["how"] == "sum" else mean)(number for cell in cells for number in cell)]
    if len({tuple(cell) for cell in cells}) > 1:
        raise ValueError(f"{len(cells)} rows of the file differ: narrow the condition, or name sum or mean")
    return [factor * number for number in cells[0]]


def _has_number(text):
    """Whether a text holds a number outside of code and links."""
    return re.search(r"\d", re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)) is not None


def _numbers(text):
    return [match.replace(" ", "") for match in NUMBER.findall(text.replace("−", "-"))]


def _agree(shown, value):
    if shown.startswith("<"):
        return value < float(shown[1:])
    decimals = len(shown.partition(".")[2])
    # results are stored with four digits, so that the fifth is unknown
    return abs(float(shown) - value) <= 0.5 * 10**-decimals + 1e-6 + 1e-9 * abs(value)


if __name__ == "__main__":
    num_wrong = 0
    for name in sys.argv[1:]:
        result = check(Path(name).read_text(encoding="utf-8"))
        num_wrong += len(result.wrong)
        print(f"{name}: {result.num_checked} cells and sentences agree with their files, but for {len(result.wrong)}")
        for line in result.wrong:
            print(f"  WRONG {line}")
        for line in result.unbacked:
            print(f"  not backed by a file: {line}")
        print(f"  {result.num_plain} paragraphs and lists hold numbers without a claim")
    raise SystemExit(num_wrong > 0)
