"""Which words does a model use when it doubts itself and begins again?"""

import re

# in small letters; each begins with a word
PHRASES = (
    r"wait\b",
    r"hmm+\b",
    r"on second thought\b",
    r"let(?:'s|’s| me| us) (?:just )?(?:try|check|verify|re-?\w+|double|start|think|see if|consider|go back)\b",
    r"(?:try|trying|check|checking|verify|compute|calculate|add|subtract|multiply|divide)\w* (?:\w+ ){0,4}again\b",
    r"(?:another|a different|different|other) (?:approach|way|combination|method|order|strategy|possibility)\b",
    r"(?:double|re)-?check",
    r"reconsider",
    r"start(?:ing)? over\b",
    r"(?:that|this|it)(?:'s|’s| is) (?:right|correct|wrong|incorrect|too \w+)\b",
    r"(?:that|this|it|which) (?:is(?: still| also)? not|isn't|does(?:n't| not)|did(?:n't| not))\b",
    r"not (?:close|equal) to\b",
    r"none of (?:these|those|them|the)\b",
    r"(?:i|we) (?:made|have made) (?:a|an) (?:mistake|error)\b",
    r"actually\b",
)
_ANY = re.compile(rf"\b(?:{'|'.join(PHRASES)})")


def holds_phrase(text: str) -> bool:
    return _ANY.search(text.lower()) is not None


def count_phrases(text: str) -> int:
    return sum(1 for _ in _ANY.finditer(text.lower()))
