from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import yaml

from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig, num_non_embedding_parameters, num_parameters
from lit_illada.model.transformer import Transformer

PRESETS = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))


def preset(name):
    return ModelConfig(**(yaml.safe_load(next(path for path in PRESETS if path.stem == name).read_text()) or {}))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_has_only_known_fields_in_their_order(path):
    values = yaml.safe_load(path.read_text()) or {}
    assert list(values) == [field.name for field in fields(ModelConfig) if field.name in values]
    preset(path.stem)


@pytest.mark.parametrize(
    ("name", "total", "non_embedding"), [("illada_8b", "7.62", "6.98"), ("llada_8b", "8.02", "6.98")]
)
def test_published_models_have_their_published_sizes(name, total, non_embedding):
    config = preset(name)
    with torch.device("meta"):
        model = Transformer(config)
    counted = sum(p.numel() for p in model.parameters())
    assert counted == num_parameters(config)
    assert f"{counted / 1e9:.2f}" == total
    assert f"{num_non_embedding_parameters(config) / 1e9:.2f}" == non_embedding


def test_smollm2_has_its_published_size():
    config = preset("smollm2_135m")
    assert (num_parameters(config), num_non_embedding_parameters(config)) == (134_515_008, 106_203_456)


@pytest.mark.parametrize(
    ("name", "least", "most"), [("nano", 3e6, 8e6), ("100m", 0.09e9, 0.11e9), ("1b", 0.9e9, 1.1e9)]
)
def test_named_sizes_hold_with_a_tokenizer_of_usual_size(name, least, most):
    config = preset(name).with_vocab_size(4096 if name == "nano" else 32768)
    assert least < num_parameters(config) < most


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 0}, "model.hidden_size is 0: it must be above 0"),
        ({"num_hidden_layers": -1}, "model.num_hidden_layers is -1"),
        ({"rope_theta": 0.0}, "model.rope_theta is 0.0"),
        ({"rms_norm_eps": float("nan")}, "model.rms_norm_eps is nan"),
        ({"vocab_size": 1}, "model.vocab_size is 1: it must be 2 or more, or null"),
        ({"num_attention_heads": 5}, "num_attention_heads is 5: it must divide model.hidden_size, which is 256"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3: it must divide model.num_attention_heads, which is 4"),
        ({"hidden_size": 12, "num_attention_heads": 4}, "is 3: rotary positions need an even size"),
    ],
)
def test_an_invalid_model_is_rejected_with_value_and_fix(changes, message):
    with pytest.raises(UserError, match=message):
        replace(ModelConfig(), **changes)


def test_vocabulary_size_is_the_tokenizers_unless_given():
    assert ModelConfig().with_vocab_size(300).vocab_size == 300
    assert ModelConfig(vocab_size=512).with_vocab_size(300).vocab_size == 512
    with pytest.raises(UserError, match=r"vocab_size is 200 but the tokenizer has 300 tokens: set .* to 300 or more"):
        ModelConfig(vocab_size=200).with_vocab_size(300)
