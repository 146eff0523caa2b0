"""Splits a text into units (words and signs, or a model's tokens) and into sentences.

Words and signs come from one regular expression, so that texts of different models compare.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import compress

import numpy as np
from numpy.typing import NDArray

# a ruling line of a table or heading is one unit, so that its dashes are no loop; longer ones are split into signs
_RULING_LINE = r"(?m:^[^\S\n]*[-=*#~+|:.─━═┼┬┴├┤]{2}[-=*#~+|:.─━═┼┬┴├┤ ]{2,197}$)"
_RULING_SIGNS = "-=*#~─━═"
_RULING = "|".join(f"{re.escape(sign)}{{4,}}" for sign in _RULING_SIGNS)
_WORD = re.compile(rf"(\w+|{_RULING_LINE}|{_RULING}|[^\w\s])")
_LONGEST_RULING = 120
_DIGITS = re.compile(r"\d+")
# Begins with one set of signs, which Python finds faster than an alternative. The possessive quantifier never
# backtracks: a long run of full stops is read once, not once per sign.
_SENTENCE_END = re.compile(r"[.!?\n](?:(?<=\n)|(?<![.!?][.!?])[.!?]*+(?=\s))")
_LONGEST_SENTENCE = 64  # units; longer stretches without a full stop are cut, which bounds the cost of comparing them

# Counting words, treated as numbers: copies that differ in one of them differ in content.
_COUNTING = frozenset(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion "
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth thirtieth fortieth fiftieth hundredth thousandth "
    "once twice thrice half quarter "
    "monday tuesday wednesday thursday friday saturday sunday january february march april june july august september "
    "october november december "
    "ii iii iv vi vii viii ix xi xii xiii xiv xv".split()
)
# Words without content: sentences and copies that differ only in these are repetitions.
_FILLERS = frozenset(
    "a an the this that these those it its he she they them we us our you your i me my some any each both all "
    "is are was were be been being am do does did done has have had can could will would shall should may might must "
    "to of in on at by for with from as into onto up out off about than if or and but so yet nor not no "
    "next now then finally however again also too still instead therefore thus hence after afterwards before further "
    "furthermore moreover additionally alternatively similarly likewise lastly another other different same more just "
    "doesn don didn isn aren wasn weren hasn haven hadn couldn wouldn shouldn cannot won "
    "firstly let lets s t m d re ve ll okay ok well wait hmm actually maybe perhaps here there".split()
)
# arithmetic signs and their names in LaTeX: 2 + 3 and 2 * 3 are different attempts
_OPERATORS = frozenset("+ - − * × ÷ / · times div cdot".split())
_OPENING = "First"  # not a counting word at the start of a sentence: First, … Next, … Finally, …
_NUMBER, _OPERATOR = "\0", "\1"  # placeholders in templates; they do not occur in texts


@dataclass(frozen=True)
class Written:
    """The text of a sequence of units, and their positions in it."""

    text: str
    starts: NDArray[np.int64]  # characters
    ends: NDArray[np.int64]

    def between(self, start: int, end: int) -> str:
        """The text of the units start to end."""
        return self.text[self.starts[start] : self.ends[end - 1]] if end > start else ""

    def behind(self, unit: int) -> str:
        """The text from the end of the unit before `unit`."""
        return self.text[self.ends[unit - 1] :] if unit else self.text

    def unit_at(self, position: int) -> int:
        """The first unit that starts at or after a position of the text."""
        return int(np.searchsorted(self.starts, position))


@dataclass(frozen=True)
class Units:
    """A sequence of units to search for loops."""

    ids: NDArray[np.int32]  # equal where the units are equal
    words: list[str]  # the text of each id; empty where only token ids are known
    # as ids, with all numbers, ordinals and operators (slots) made equal; None where the text has none
    template_ids: NDArray[np.int32] | None = None
    written: Written | None = None  # None where only token ids are known

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def is_slot(self) -> NDArray[np.bool_]:
        """For each unit, whether it is a number, a word that counts or an operator."""
        return self._of_words(_is_slot)

    @cached_property
    def is_content(self) -> NDArray[np.bool_]:
        """For each unit, whether it is a slot or a content word, neither filler nor punctuation."""
        return self.is_slot | self._of_words(_is_content)

    def _of_words(self, holds: Callable[[str], bool]) -> NDArray[np.bool_]:
        if not self.words:  # only token ids are known
            return np.zeros(len(self.ids), bool)
        return np.fromiter(map(holds, self.words), bool, len(self.words))[self.ids]


def units_of_text(text: str) -> Units:
    """Words and signs of a text."""
    pieces = _WORD.split(text)  # alternately the text between two units, and a unit
    ends = np.cumsum(np.fromiter(map(len, pieces), np.int64, len(pieces)))
    units = pieces[1::2]
    table = {word: index for index, word in enumerate(dict.fromkeys(units))}
    ids = np.fromiter(map(table.__getitem__, units), np.int32, len(units))
    words, starts, ends = list(table), ends[:-1:2], ends[1::2]
    if len(max(words, key=len, default="")) > _LONGEST_RULING:
        is_flood = [len(word) > _LONGEST_RULING and word[0] in _RULING_SIGNS for word in words]
        ids, starts, words = _sign_by_sign(ids, starts, words, np.array(is_flood))
        ends = starts + np.array([len(word) for word in words], np.int64)[ids]
    return _units(ids, words, text, starts, ends)


def _sign_by_sign(
    ids: NDArray[np.int32], starts: NDArray[np.int64], words: list[str], is_flood: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.int64], list[str]]:
    """The same units with each sign of an overlong ruling as a unit."""
    times = np.where(is_flood[ids], np.array([len(word) for word in words])[ids], 1)
    firsts = np.cumsum(times) - times
    positions = np.repeat(starts, times) + np.arange(times.sum()) - np.repeat(firsts, times)
    words = [word[0] if flood else word for word, flood in zip(words, is_flood.tolist(), strict=True)]
    table: dict[str, int] = {}
    renamed = np.array([table.setdefault(word, len(table)) for word in words], np.int32)
    return renamed[np.repeat(ids, times)], positions, list(table)


def units_of_tokens(token_ids: Sequence[int], tokens: Sequence[str] | None = None) -> Units:
    """A model's tokens, with their texts where those are known."""
    values, inverse = np.unique(np.asarray(token_ids, np.int64), return_inverse=True)
    ids = inverse.astype(np.int32)
    if tokens is None:
        return Units(ids, [])
    words = [""] * len(values)
    for index, token in zip(ids.tolist(), tokens, strict=True):
        words[index] = token
    sizes = np.array([len(token) for token in tokens], np.int64)
    ends = np.cumsum(sizes)
    return _units(ids, words, "".join(tokens), ends - sizes, ends)


def _units(
    ids: NDArray[np.int32], words: list[str], text: str, starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> Units:
    templates = list(map(_template, words))
    numbers = {template: index for index, template in enumerate(dict.fromkeys(templates))}
    template_ids = None
    if len(numbers) < len(words):
        template_ids = np.fromiter(map(numbers.__getitem__, templates), np.int32, len(words))[ids]
    return Units(ids, words, template_ids, Written(text, starts, ends))


@lru_cache(2**16)
def _template(word: str) -> str:
    """A word with its digits replaced by a placeholder; a counting word or an operator is replaced as a whole."""
    plain = word.strip()
    if plain in _OPERATORS:
        return _OPERATOR
    if plain.isalpha():
        return _NUMBER if plain.lower() in _COUNTING and plain != _OPENING else word
    masked = _DIGITS.sub(_NUMBER, word)
    return _NUMBER + masked if masked != word else word


@lru_cache(2**16)
def _is_slot(word: str) -> bool:
    return _template(word)[:1] in (_NUMBER, _OPERATOR)


@lru_cache(2**16)
def _is_content(word: str) -> bool:
    plain = word.strip()
    return plain != _OPENING and (plain := plain.lower()) not in _FILLERS and any(map(str.isalnum, plain))


@dataclass(frozen=True)
class Sentence:
    """A sentence, or a line without a full stop."""

    start: int  # its units
    end: int
    # equal in a sentence and its repetition: the set of content-word ids, and the ids of numbers, counting words and
    # operators in order
    key: tuple[frozenset[int], tuple[int, ...]]
    written: Written = field(repr=False)

    @cached_property
    def text(self) -> str:
        """The sentence with single spaces."""
        return " ".join(self.written.between(self.start, self.end).split())


def sentences(units: Units, min_length: int, start: int = 0, end: int | None = None) -> Iterator[Sentence]:
    """Sentences of at least min_length units among the units start to end, in order; a line end ends a sentence."""
    assert units.written is not None
    end = len(units) if end is None else end
    if start >= end:
        return
    written = units.written
    low, high = int(written.starts[start]), int(written.ends[end - 1])
    cuts = [match.end() for match in _SENTENCE_END.finditer(written.text, low, high)]
    bounds = [*np.searchsorted(written.starts[:end], cuts).tolist(), end]
    ids, is_content, is_slot = units.ids.tolist(), units.is_content.tolist(), units.is_slot.tolist()
    unit = start
    for following in bounds:
        for first in range(unit, following, _LONGEST_SENTENCE):
            last = min(first + _LONGEST_SENTENCE, following)
            if last - first >= min_length:
                content = frozenset(compress(ids[first:last], is_content[first:last]))
                slots = tuple(compress(ids[first:last], is_slot[first:last]))
                yield Sentence(first, last, (content, slots), written)
        unit = max(unit, following)
