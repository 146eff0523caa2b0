import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from lit_illada.data.config import MIN_VOCAB_SIZE, OUR_TOKENS, TokenNames
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError

TRAINED = Tokenizer.train(["the cat sat on the mat, the end. " * 20, "ünïcödé 😀 text\n\n\tindented"] * 5, 300)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_decoding_inverts_encoding_and_bytes_per_token_sum_to_text_size(text: str):
    ids = TRAINED.encode(text)
    assert TRAINED.decode(ids) == text
    assert TRAINED.bytes_per_token()[ids].sum() == len(text.encode())
    assert TRAINED.encode_batch([text, "x"]) == [ids, TRAINED.encode("x")]


def test_special_tokens_have_distinct_ids_and_no_bytes():
    ids = [
        TRAINED.mask_token_id,
        TRAINED.eos_token_id,
        TRAINED.system_token_id,
        TRAINED.user_token_id,
        TRAINED.assistant_token_id,
        TRAINED.think_open_token_id,
        TRAINED.think_close_token_id,
    ]
    assert len(set(ids)) == 7
    sizes = TRAINED.bytes_per_token()
    assert sizes.shape == (TRAINED.vocab_size,)
    assert np.flatnonzero(sizes == 0).tolist() == sorted(ids)
    assert TRAINED.decode([TRAINED.mask_token_id]) == "<|mask|>"
    assert TRAINED.decode([TRAINED.mask_token_id, *TRAINED.encode("a")], skip_special_tokens=True) == "a"


def test_wordless_tokens_contain_no_letters():
    wordless = set(TRAINED.wordless_ids)
    for text in ("7", ".", ",", "\n", " ", "=", "+"):
        assert wordless.issuperset(TRAINED.encode(text))
    assert wordless.issuperset({TRAINED.mask_token_id, TRAINED.eos_token_id, TRAINED.think_close_token_id})
    assert wordless.isdisjoint(TRAINED.encode("thecatü"))


@pytest.mark.parametrize("token", vars(OUR_TOKENS).values())
def test_text_of_special_token_stays_text(token: str):
    ids = TRAINED.encode(f"a{token}b")
    assert min(ids) >= len(vars(OUR_TOKENS))
    assert TRAINED.decode(ids) == f"a{token}b"
    assert TRAINED.encode_batch([f"a{token}b"]) == [ids]


def test_tokenizer_training_is_deterministic():
    texts = [f"some text number {i}, and so on" for i in range(50)]
    assert Tokenizer.train(texts, 320).sha256 == Tokenizer.train(texts, 320).sha256
    assert Tokenizer.train(texts, 320).sha256 != Tokenizer.train(texts, 319).sha256
    assert Tokenizer.train(["ab"], 5000).vocab_size <= MIN_VOCAB_SIZE + 2


def test_saved_folder_loads_equally_here_and_in_transformers(tmp_path: Path):
    TRAINED.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.sha256, loaded.names, loaded.vocab_size) == (TRAINED.sha256, TRAINED.names, TRAINED.vocab_size)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (config["mask_token"], config["eos_token"]) == ("<|mask|>", "<|eos|>")
    assert config["extra_special_tokens"]["think_close_token"] == "<|/think|>"
    assert Backend.from_file(str(tmp_path / "tokenizer.json")).token_to_id("<|mask|>") == TRAINED.mask_token_id


def foreign(folder: Path, config: dict) -> Path:
    """A tokenizer as others publish it: sentencepiece-like, its mask a plain added token, padding switched on."""
    vocab = {"<unk>": 0, "</s>": 1, "<0x0A>": 2, "▁": 3, "▁hello": 4, "é": 5}
    backend = Backend(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_tokens(["[MASK]", "plain"])
    backend.enable_padding(length=50)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_foreign_tokenizer_loads_with_given_token_names(tmp_path: Path):
    folder = foreign(tmp_path / "foreign", {"eos_token": {"content": "</s>"}})
    with pytest.raises(UserError, match=r"defines no mask_token: set data\.tokenizer\.token_names\.mask_token"):
        Tokenizer.load(folder)
    tokenizer = Tokenizer.load(folder, TokenNames(mask_token="[MASK]"))
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.think_open_token_id) == (6, 1, None)
    assert tokenizer.vocab_size == 8
    assert tokenizer.bytes_per_token().tolist() == [5, 0, 1, 1, 6, 2, 0, 5]
    assert tokenizer.mask_token_id not in tokenizer.encode("[MASK]")
    tokenizer.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").sha256 == tokenizer.sha256


def sentencepiece_like(folder: Path) -> Tokenizer:
    """A tokenizer that decodes as Llama 2's: a leading space of whatever it decodes is dropped."""
    vocab = {"<mask>": 0, "</s>": 1, "<0xC3>": 2, "<0xA9>": 3, "▁Wait": 4, ",": 5, "▁let": 6, "me": 7, "▁": 8}
    backend = Backend(models.BPE(vocab, [], byte_fallback=True))
    strip = decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"mask_token": "<mask>", "eos_token": "</s>"}')
    return Tokenizer.load(folder)


def test_texts_of_single_tokens_have_the_spaces_of_the_whole_text(tmp_path: Path):
    tokenizer = sentencepiece_like(tmp_path)
    ids = [4, 5, 6, 8, 7, 1, 4]
    assert tokenizer.decode(ids) == "Wait, let me</s> Wait"
    assert tokenizer.token_texts(ids) == ["Wait", ",", " let", " ", "me", "</s>", " Wait"]
    assert "".join(tokenizer.decode([index]) for index in ids) == "Wait,letme</s>Wait"
    assert tokenizer.token_texts([]) == []
    ours = TRAINED.encode("a b, a b")
    assert TRAINED.token_texts(ours) == [TRAINED.decode([index]) for index in ours]


def test_parts_of_a_text_have_the_spaces_between_them(tmp_path: Path):
    tokenizer = sentencepiece_like(tmp_path)
    assert tokenizer.decode_parts([[4, 5], [6], [], [8, 7]]) == ["Wait,", " let", "", " me"]
    ours = TRAINED.encode("one two"), TRAINED.encode(" three")
    assert TRAINED.decode_parts(ours) == ["one two", " three"]


def test_missing_special_token_is_named(tmp_path: Path):
    folder = foreign(tmp_path / "foreign", {"mask_token": "[MASK]", "eos_token": "</s>"})
    with pytest.raises(UserError, match=r"no token '<think>': set data\.tokenizer\.token_names\.think_open_token"):
        Tokenizer.load(folder, TokenNames(think_open_token="<think>"))


def test_folder_without_tokenizer_is_rejected(tmp_path: Path):
    with pytest.raises(UserError, match="no tokenizer at"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"mask_token": "m", "eos_token": "e"}')
    with pytest.raises(UserError, match="cannot be read by the tokenizers library"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: not JSON"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("entry", [{"a": 1}, {"content": 3}, ["x"], 7])
def test_token_that_is_not_a_string_is_named_with_its_file(entry, tmp_path):
    TRAINED.save(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "mask_token": entry}))
    with pytest.raises(UserError, match=r"tokenizer_config\.json: mask_token must be a string"):
        Tokenizer.load(tmp_path)


def test_saving_preserves_bos_and_pad_tokens(tmp_path):
    TRAINED.save(tmp_path / "converted")
    config_file = tmp_path / "converted" / "tokenizer_config.json"
    config = json.loads(config_file.read_text()) | {"bos_token": {"content": "a"}, "pad_token": "<|eos|>"}
    config_file.write_text(json.dumps(config))
    loaded = Tokenizer.load(tmp_path / "converted")
    loaded.save(tmp_path / "run")
    saved = json.loads((tmp_path / "run" / "tokenizer_config.json").read_text())
    assert (saved["bos_token"], saved["pad_token"]) == ("a", "<|eos|>")
    assert loaded.sha256 == TRAINED.sha256 == Tokenizer.load(tmp_path / "run").sha256


def test_pattern_with_endless_backtracking_gives_one_line_error(tmp_path):
    TRAINED.save(tmp_path)
    file = tmp_path / "tokenizer.json"
    tree = json.loads(file.read_text())
    pattern = {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False}
    tree["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern, tree["pre_tokenizer"]]}
    file.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=r"^tokenizer\.json: its pattern cannot split a text"):
        Tokenizer.load(tmp_path).encode("a" * 40 + "b")
