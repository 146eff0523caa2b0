import json

import pytest

from lit_illada.data.tokenizer import Tokenizer
from lit_illada.data.tokenizer_regex import MAX_PATTERN, has_nested_repetition
from lit_illada.errors import UserError

# the pre-tokenizers of GPT-2, Llama 3, Qwen2 and o200k
KNOWN = [
    r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",  # noqa: E501
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",  # noqa: E501
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}""",
]


@pytest.mark.parametrize(
    "pattern",
    [*KNOWN, "a+b+", "(a+)?", "(a|b)*", r"\(a+\)+", "[(a+)]+", "(ab){2,3}", "[]a+]+b", r"[^\](a+)+]", r"[](a+)+]"],
)
def test_patterns_of_known_tokenizers_are_accepted(pattern):
    assert not has_nested_repetition(pattern)


@pytest.mark.parametrize("pattern", ["(a+)+", "(?:a*b)*", "((a+))+x", "(x(a{2,})y)+", "(a+){3,}", "((a|b+)c)*$"])
def test_nested_repetitions_are_detected(pattern):
    assert has_nested_repetition(pattern)


@pytest.mark.parametrize(("pattern", "message"), [("(a+)+$", r"\(a\+\)\+\$"), ("a" * (MAX_PATTERN + 1), "characters")])
def test_tokenizer_with_nested_repetition_is_rejected_with_its_file(pattern, message, tmp_path):
    Tokenizer.train(["alpha beta"] * 9, 300).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, content["pre_tokenizer"]]}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"tokenizer\.json.*{message}"):
        Tokenizer.load(tmp_path)
