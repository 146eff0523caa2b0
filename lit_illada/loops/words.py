"""What are the units of a text in which loops are measured, and its sentences?

Words and signs by a regular expression, so that texts of different models compare; or a model's own tokens.
"""

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# what rules a table or a heading off is one unit: its dashes are no loop; longer stretches are read sign by sign
_RULING_LINE = r"(?m:^[^\S\n]*[-=*#~+|:.─━═┼┬┴├┤]{2}[-=*#~+|:.─━═┼┬┴├┤ ]{2,197}$)"
_RULING_SIGNS = "-=*#~─━═"
_RULING = "|".join(f"{re.escape(sign)}{{4,}}" for sign in _RULING_SIGNS)
_WORD = re.compile(rf"\w+|{_RULING_LINE}|{_RULING}|[^\w\s]")
_LONGEST_RULING = 120
_DIGITS = re.compile(r"\d+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
# from the first of its signs on and never back: a flood of them would else be read again from each
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++(?=\s)|\n")
_FENCE = re.compile(r"^[^\S\n]*(?:```|~~~).*$", re.MULTILINE)
_LONGEST_SENTENCE = 64  # units; what runs on without a full stop is cut, so that comparing stays cheap


@dataclass(frozen=True)
class Written:
    """Where units lie in their text. is_code: inside a code fence; None: there is no fence."""

    text: str
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    is_code: NDArray[np.bool_] | None

    def between(self, start: int, end: int) -> str:
        """The text of the units start to end."""
        return self.text[self.starts[start] : self.ends[end - 1]] if end > start else ""

    def behind(self, unit: int) -> str:
        """The text from the end of the units before `unit` on."""
        return self.text[self.ends[unit - 1] :] if unit else self.text


@dataclass(frozen=True)
class Units:
    """A sequence in which loops are looked for.

    ids: equal where the units are. template_ids: the same with all numbers made alike, or None where there are none to
    make alike. written: None where only ids are known.
    """

    ids: NDArray[np.int32]
    template_ids: NDArray[np.int32] | None = None
    written: Written | None = None

    def __len__(self) -> int:
        return len(self.ids)


def units_of_text(text: str) -> Units:
    """Words and signs."""
    table: dict[str, int] = {}
    ids, starts = array("i"), array("q")
    for found in _WORD.finditer(text):
        ids.append(table.setdefault(found[0], len(table)))
        starts.append(found.start())
    words = list(table)
    sizes = np.array([len(word) for word in words], np.int64)
    numbers, places = np.array(ids, np.int32), np.array(starts, np.int64)
    is_flood = [size > _LONGEST_RULING and word[0] in _RULING_SIGNS for word, size in zip(words, sizes, strict=True)]
    if any(is_flood):
        numbers, places, words = _sign_by_sign(numbers, places, words, np.array(is_flood))
        sizes = np.array([len(word) for word in words], np.int64)
    return _units(numbers, words, text, places, places + sizes[numbers])


def _sign_by_sign(
    ids: NDArray[np.int32], starts: NDArray[np.int64], words: list[str], is_flood: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.int64], list[str]]:
    """The same with each sign of a flooding word a unit."""
    times = np.where(is_flood[ids], np.array([len(word) for word in words])[ids], 1)
    firsts = np.cumsum(times) - times
    places = np.repeat(starts, times) + np.arange(times.sum()) - np.repeat(firsts, times)
    words = [word[0] if flood else word for word, flood in zip(words, is_flood.tolist(), strict=True)]
    table: dict[str, int] = {}
    renamed = np.array([table.setdefault(word, len(table)) for word in words], np.int32)
    return renamed[np.repeat(ids, times)], places, list(table)


def units_of_tokens(token_ids: Sequence[int], tokens: Sequence[str] | None = None) -> Units:
    """A model's tokens, with their texts where those are known."""
    values, inverse = np.unique(np.asarray(token_ids, np.int64), return_inverse=True)
    ids = inverse.astype(np.int32)
    if tokens is None:
        return Units(ids)
    words = [""] * len(values)
    for index, token in zip(ids.tolist(), tokens, strict=True):
        words[index] = token
    sizes = np.array([len(token) for token in tokens], np.int64)
    ends = np.cumsum(sizes)
    return _units(ids, words, "".join(tokens), ends - sizes, ends)


def _units(
    ids: NDArray[np.int32], words: list[str], text: str, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> Units:
    return Units(ids, _alike_but_numbers(ids, words), Written(text, starts, ends, _inside_fences(text, starts)))


def _alike_but_numbers(ids: NDArray[np.int32], words: list[str]) -> NDArray[np.int32] | None:
    alike: dict[str, int] = {}
    templates = [alike.setdefault(_DIGITS.sub("0", word), len(alike)) for word in words]
    return np.array(templates, np.int32)[ids] if len(alike) < len(words) else None


def _inside_fences(text: str, starts: NDArray[np.int64]) -> NDArray[np.bool_] | None:
    fences = [found.start() for found in _FENCE.finditer(text)]
    # behind an odd number of fences a unit is in code
    return np.searchsorted(np.array(fences), starts, side="right") % 2 == 1 if fences else None


@dataclass(frozen=True)
class Sentence:
    """start, end: its units. numbers: what must be equal for two sentences to say the same."""

    start: int
    end: int
    text: str
    numbers: tuple[str, ...]


def sentences(units: Units, min_length: int) -> Iterator[Sentence]:
    """Those of at least min_length units, in order; a line end ends a sentence."""
    assert units.written is not None
    written, unit = units.written, 0
    starts, text = written.starts.tolist(), written.text
    cuts = [found.end() for found in _SENTENCE_END.finditer(text)]
    for cut in [*cuts, len(text)]:
        following = bisect_left(starts, cut, unit)
        for start in range(unit, following, _LONGEST_SENTENCE):
            end = min(start + _LONGEST_SENTENCE, following)
            if end - start >= min_length:
                said = " ".join(written.between(start, end).split())
                yield Sentence(start, end, said, tuple(_NUMBER.findall(said)))
        unit = following
