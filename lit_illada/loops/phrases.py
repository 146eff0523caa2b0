"""Which words does a model use when it doubts itself and begins again?"""

import re

PHRASES = (
    r"wait\b",
    r"\bhmm+\b",
    r"\bon second thought\b",
    r"\blet(?:'s|’s| me| us) (?:just )?(?:try|check|verify|re-?\w+|double|start|think|see if|consider|go back)\b",
    r"\b(?:try|trying|check|checking|verify|compute|calculate|add|subtract|multiply|divide)\w* (?:\w+ ){0,4}again\b",
    r"\b(?:another|a different|different|other) (?:approach|way|combination|method|order|strategy|possibility)\b",
    r"\b(?:double|re)-?check",
    r"\breconsider",
    r"\bstart(?:ing)? over\b",
    r"\b(?:that|this|it)(?:'s|’s| is) (?:right|correct|wrong|incorrect|too \w+)\b",
    r"\b(?:that|this|it|which) (?:is(?: still| also)? not|isn't|does(?:n't| not)|did(?:n't| not))\b",
    r"\bnot (?:close|equal) to\b",
    r"\bnone of (?:these|those|them|the)\b",
    r"\b(?:i|we) (?:made|have made) (?:a|an) (?:mistake|error)\b",
    r"\bactually\b",
)
_ANY = re.compile("|".join(PHRASES), re.IGNORECASE)


def holds_phrase(text: str) -> bool:
    return _ANY.search(text) is not None


def count_phrases(text: str) -> int:
    return sum(1 for _ in _ANY.finditer(text))
