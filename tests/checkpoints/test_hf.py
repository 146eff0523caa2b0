"""Import and export of published checkpoints: equal logits, and unknown content is rejected.

The reference below computes logits from the files only, by the names and fields of the published code.
"""

import json
import math
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_illada.batch import Layout
from lit_illada.checkpoints.hf import UnaccountedError, load_model, open_hf, tensor_shapes, write_hf
from lit_illada.checkpoints.hf_layouts import LAYOUTS, layout_for, read_config
from lit_illada.checkpoints.safetensors_io import TensorFiles
from lit_illada.errors import UserError
from lit_illada.model.config import ModelConfig, num_parameters

CPU = torch.device("cpu")
IDS = torch.tensor([3, 17, 9, 41, 0, 26, 33, 8, 12])

LLADA_CONFIG = {
    "model_type": "llada", "architectures": ["LLaDAModelLM"], "d_model": 32, "n_layers": 2, "n_heads": 4,
    "n_kv_heads": 4, "mlp_hidden_size": 48, "vocab_size": 44, "embedding_size": 50, "max_sequence_length": 64,
    "rope": True, "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "weight_tying": False, "include_bias": False,
    "include_qkv_bias": False, "activation_type": "silu", "block_type": "llama", "layer_norm_type": "rms",
    "alibi": False, "mask_token_id": 43, "eos_token_id": 42,
}  # fmt: skip
LLAMA_CONFIG = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 50, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": False, "hidden_act": "silu", "initializer_range": 0.02,
}  # fmt: skip

# a checkpoint as others publish it: its config.json, and whether its code is causal and predicts the next token
PUBLISHED = {
    "illada, tied, GQA": ({**LLAMA_CONFIG, "model_type": "illada", "tie_word_embeddings": True}, False, False),
    "illada, untied, MHA": ({**LLAMA_CONFIG, "model_type": "illada", "num_key_value_heads": 4}, False, False),
    "llada, untied, MHA": (LLADA_CONFIG, False, False),
    "llada, tied, GQA, QKV bias": (
        {**LLADA_CONFIG, "weight_tying": True, "n_kv_heads": 2, "include_qkv_bias": True}, False, False,
    ),
    "dream, untied, GQA, QKV bias": ({**LLAMA_CONFIG, "model_type": "Dream"}, False, True),
    "llama, untied, GQA": ({**LLAMA_CONFIG, "model_type": "llama"}, True, False),
    "llama, tied, MHA": (
        {**LLAMA_CONFIG, "model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 4}, True, False,
    ),
    "qwen2, tied, GQA, QKV bias": ({**LLAMA_CONFIG, "model_type": "qwen2", "tie_word_embeddings": True}, True, False),
    "qwen2, untied, MHA, QKV bias": ({**LLAMA_CONFIG, "model_type": "qwen2", "num_key_value_heads": 4}, True, False),
}  # fmt: skip


def tensors_of(folder):
    """Every tensor of the folder's files, by its published name."""
    return {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}


def published_logits(folder, ids, is_causal, predicts_next):
    """(L, V) float64: what the published code computes, one layer, head and query at a time."""
    config = json.loads((folder / "config.json").read_text())
    w = {name: value.double() for name, value in tensors_of(folder).items()}
    if config["model_type"] == "llada":
        sizes = {"d": "d_model", "layers": "n_layers", "heads": "n_heads", "kv": "n_kv_heads"}
        embedding, last_norm = w["model.transformer.wte.weight"], w["model.transformer.ln_f.weight"]
        head = embedding if config["weight_tying"] else w["model.transformer.ff_out.weight"]
        block, first_norm, second_norm, attention, mlp = "model.transformer.blocks", "attn_norm", "ff_norm", "", ""
        out, gate, up, down = "attn_out", "ff_proj", "up_proj", "ff_out"
    else:
        sizes = {"d": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
        sizes["kv"] = "num_key_value_heads"
        embedding, last_norm = w["model.embed_tokens.weight"], w["model.norm.weight"]
        head = embedding if config["tie_word_embeddings"] else w["lm_head.weight"]
        block, first_norm, second_norm = "model.layers", "input_layernorm", "post_attention_layernorm"
        attention, mlp = "self_attn.", "mlp."
        out, gate, up, down = "o_proj", "gate_proj", "up_proj", "down_proj"
    d, layers, heads, kv = (config[sizes[key]] for key in ("d", "layers", "heads", "kv"))
    eps, theta, dim = config["rms_norm_eps"], config["rope_theta"], d // heads

    def norm(x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def rotated(vector, position):
        first, second = vector[: dim // 2], vector[dim // 2 :]
        angles = torch.tensor([position * theta ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)
        return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()))

    x = embedding[ids]
    for n in range(layers):
        h = norm(x, w[f"{block}.{n}.{first_norm}.weight"])
        q, k, v = (linear(h, f"{block}.{n}.{attention}{letter}_proj") for letter in "qkv")
        rows = []
        for i in range(len(ids)):
            parts = []
            for one in range(heads):
                mine = slice(one * dim, (one + 1) * dim)
                group = one // (heads // kv)
                shared = slice(group * dim, (group + 1) * dim)
                seen = range(i + 1) if is_causal else range(len(ids))
                query = rotated(q[i, mine], i)
                scores = torch.stack([query @ rotated(k[j, shared], j) / math.sqrt(dim) for j in seen])
                parts.append(torch.softmax(scores, 0) @ v[list(seen)][:, shared])
            rows.append(torch.cat(parts))
        x = x + linear(torch.stack(rows), f"{block}.{n}.{attention}{out}")
        h = norm(x, w[f"{block}.{n}.{second_norm}.weight"])
        gated = torch.nn.functional.silu(linear(h, f"{block}.{n}.{mlp}{gate}"))
        x = x + linear(gated * linear(h, f"{block}.{n}.{mlp}{up}"), f"{block}.{n}.{mlp}{down}")
    logits = norm(x, last_norm) @ head.T
    return torch.cat((logits[:1], logits[:-1])) if predicts_next else logits


def our_logits(model, ids):
    return model(ids[None], Layout.whole_rows(1, len(ids)))[0].double()


def published_shapes(config):
    """Name -> shape of every tensor that the published code has for this config, written out."""
    if config["model_type"] == "llada":
        d, kv = config["d_model"], config["d_model"] // config["n_heads"] * config["n_kv_heads"]
        f, rows, top = config["mlp_hidden_size"], config["embedding_size"], "model.transformer."
        shapes = {f"{top}wte.weight": (rows, d), f"{top}ln_f.weight": (d,)}
        if not config["weight_tying"]:
            shapes[f"{top}ff_out.weight"] = (rows, d)
        for n in range(config["n_layers"]):
            b = f"{top}blocks.{n}."
            shapes |= {f"{b}attn_norm.weight": (d,), f"{b}ff_norm.weight": (d,), f"{b}q_proj.weight": (d, d)}
            shapes |= {f"{b}k_proj.weight": (kv, d), f"{b}v_proj.weight": (kv, d), f"{b}attn_out.weight": (d, d)}
            shapes |= {f"{b}ff_proj.weight": (f, d), f"{b}up_proj.weight": (f, d), f"{b}ff_out.weight": (d, f)}
            if config["include_qkv_bias"]:
                shapes |= {f"{b}q_proj.bias": (d,), f"{b}k_proj.bias": (kv,), f"{b}v_proj.bias": (kv,)}
        return shapes
    d, f, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = d // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (rows, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (rows, d)
    for n in range(config["num_hidden_layers"]):
        b = f"model.layers.{n}."
        shapes |= {f"{b}input_layernorm.weight": (d,), f"{b}post_attention_layernorm.weight": (d,)}
        shapes |= {f"{b}self_attn.q_proj.weight": (d, d), f"{b}self_attn.o_proj.weight": (d, d)}
        shapes |= {f"{b}self_attn.{letter}_proj.weight": (kv, d) for letter in "kv"}
        shapes |= {f"{b}mlp.gate_proj.weight": (f, d), f"{b}mlp.up_proj.weight": (f, d)}
        shapes[f"{b}mlp.down_proj.weight"] = (d, f)
        if config["model_type"] in ("qwen2", "Dream"):
            shapes |= {f"{b}self_attn.q_proj.bias": (d,)}
            shapes |= {f"{b}self_attn.{letter}_proj.bias": (kv,) for letter in "kv"}
    return shapes


def publish(folder, config, dtype=torch.float32):
    """Write a random checkpoint in a published layout."""
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: (torch.randn(shape, generator=generator) * 0.3 + ("norm" in name or "ln_f" in name)).to(dtype)
        for name, shape in published_shapes(config).items()
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return tensors


def export(folder, model, layout, **options):
    settings = {"mask_token_id": 1, "eos_token_id": 2, "dtype": None, "max_shard_bytes": 2**40, **options}
    folder.mkdir(exist_ok=True)
    tensors = {name: value.detach() for name, value in model.state_dict().items()}
    write_hf(folder, layout, model.config, tensors, **settings)


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_imported_checkpoint_gives_the_published_codes_logits(name, tmp_path):
    config, is_causal, predicts_next = PUBLISHED[name]
    publish(tmp_path / "hf", config)
    checkpoint = open_hf(tmp_path / "hf")
    model = load_model(checkpoint.config, checkpoint.tensors, CPU)
    expected = published_logits(tmp_path / "hf", IDS, is_causal, predicts_next)
    assert (model.config.is_causal, model.config.predicts_next) == (is_causal, predicts_next)
    torch.testing.assert_close(our_logits(model, IDS), expected, atol=3e-5, rtol=1e-4)


OURS = {
    "tied, GQA": ({}, ["illada", "llada"]),
    "untied, MHA": ({"tie_word_embeddings": False, "num_key_value_heads": 4}, ["illada", "llada"]),
    "QKV bias": ({"attention_bias": True}, ["llada"]),
    "shifted": ({"predicts_next": True}, ["dream"]),
    "shifted, QKV bias": ({"predicts_next": True, "attention_bias": True}, ["dream"]),
    "causal": ({"is_causal": True, "tie_word_embeddings": False}, ["llama", "qwen2"]),
    "causal, MHA, QKV bias": ({"is_causal": True, "attention_bias": True, "num_key_value_heads": 4}, ["qwen2"]),
}


@pytest.mark.parametrize(("name", "to"), [(name, to) for name, (_, able) in OURS.items() for to in able])
def test_an_exported_model_gives_its_own_logits_in_the_published_code_and_comes_back(name, to, make_model, tmp_path):
    changes, _ = OURS[name]
    model = make_model(**changes)
    with torch.no_grad():
        for layer in model.model.layers if model.config.attention_bias else []:
            for letter in "qkv":
                getattr(layer.self_attn, f"{letter}_proj").bias.normal_(generator=torch.Generator().manual_seed(2))
    export(tmp_path / "hf", model, LAYOUTS[to])
    expected = our_logits(model, IDS)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    is_causal, predicts_next = config["model_type"] in ("llama", "qwen2"), config["model_type"] == "Dream"
    torch.testing.assert_close(
        published_logits(tmp_path / "hf", IDS, is_causal, predicts_next), expected, atol=3e-5, rtol=1e-4
    )
    assert {n: tuple(v.shape) for n, v in tensors_of(tmp_path / "hf").items()} == published_shapes(config)
    back = open_hf(tmp_path / "hf")
    torch.testing.assert_close(our_logits(load_model(back.config, back.tensors, CPU), IDS), expected)


@pytest.mark.parametrize(("name", "able"), [(name, able) for name, (_, able) in OURS.items()])
def test_a_layout_that_does_not_fit_is_rejected_with_those_that_do(name, able, make_model):
    config = make_model(**OURS[name][0]).config
    assert layout_for(config) is LAYOUTS[able[0]]
    for other in LAYOUTS.keys() - set(able):
        with pytest.raises(UserError, match=f"the {other} layout cannot .* those that can: {', '.join(able)}$"):
            layout_for(config, other)


def test_shards_are_small_complete_and_indexed(make_model, tmp_path):
    model = make_model()
    export(tmp_path / "hf", model, LAYOUTS["illada"], max_shard_bytes=20_000)
    shards = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(path.stat().st_size < 25_000 for path in shards)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * p.numel() for p in model.parameters())
    for name, shard in index["weight_map"].items():
        assert name in load_file(tmp_path / "hf" / shard)
    checkpoint = open_hf(tmp_path / "hf")
    assert torch.equal(our_logits(load_model(checkpoint.config, checkpoint.tensors, CPU), IDS), our_logits(model, IDS))


def test_the_dtype_is_preserved_or_converted(make_model, tmp_path):
    export(tmp_path / "hf", make_model(), LAYOUTS["illada"], dtype=torch.bfloat16)
    assert {value.dtype for value in tensors_of(tmp_path / "hf").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    checkpoint = open_hf(tmp_path / "hf")
    assert load_model(checkpoint.config, checkpoint.tensors, CPU).lm_head_weight.dtype is torch.bfloat16
    half = load_model(checkpoint.config, checkpoint.tensors, CPU, torch.float32)
    torch.testing.assert_close(our_logits(half, IDS), our_logits(make_model(), IDS), atol=0.2, rtol=0.05)


def test_a_tied_head_may_be_repeated_but_not_differ(tmp_path):
    config, _, _ = PUBLISHED["illada, tied, GQA"]
    tensors = publish(tmp_path / "hf", config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    assert set(open_hf(tmp_path / "hf").unused) == {
        "lm_head.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    }
    tensors["lm_head.weight"][3, 3] += 1
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UserError, match=r"ties lm_head\.weight to model\.embed_tokens\.weight, but they differ"):
        open_hf(tmp_path / "hf")


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path):
    tensors = publish(tmp_path / "hf", LLADA_CONFIG)
    tensors["model.transformer.blocks.1.up_prj.weight"] = tensors.pop("model.transformer.blocks.1.up_proj.weight")
    tensors["model.transformer.blocks.0.q_norm.weight"] = torch.ones(8)
    tensors["model.transformer.ln_f.weight"] = torch.ones(31)
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UnaccountedError) as caught:
        open_hf(tmp_path / "hf")
    up = "model.transformer.blocks.1.up"
    assert set(caught.value.problems) == {
        f"{up}_proj.weight is missing (nearest: {up}_prj.weight)",
        f"{up}_prj.weight does not belong to the model (nearest: {up}_proj.weight)",
        "model.transformer.blocks.0.q_norm.weight does not belong to the model",
        "model.transformer.ln_f.weight has shape 31, but the config implies 32",
    }
    assert "and 1 more" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "lada"}, "unknown model_type .*'lada'.*did you mean 'llada'"),
        ({"model_type": None}, "unknown model_type"),
        ({"model_type": ["llada"]}, "unknown model_type"),
        ({"mlp_hidden_size": None, "mlp_ratio": "x"}, "no field 'mlp_hidden_size'"),
        ({"d_model": None}, "no field 'd_model', which llada checkpoints must have"),
        ({"n_layers": "many"}, "n_layers is 'many', not a whole number"),
        ({"rope_theta": "high"}, "rope_theta is 'high', not a number"),
        ({"weight_tying": 1}, "weight_tying is 1, not true or false"),
        ({"n_heads": 5}, "must divide"),
        ({"alibi": True}, "alibi is True, but only False is supported"),
        ({"include_bias": True}, "include_bias is True"),
        ({"activation_type": "gelu"}, "activation_type is 'gelu', but only 'silu'"),
    ],
)
def test_an_unsupported_config_is_rejected_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        read_config({**LLADA_CONFIG, **changes}, "config.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "positions are scaled .'llama3'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "positions are scaled"),
        ({"head_dim": 16}, "head_dim is 16"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_an_unsupported_llama_config_is_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        read_config({**LLAMA_CONFIG, "model_type": "llama", **changes}, "config.json")


def test_alternative_and_defaulted_config_fields_are_read():
    derived = {**LLADA_CONFIG, "mlp_hidden_size": None, "mlp_ratio": 4, "embedding_size": None, "n_kv_heads": None}
    _, config = read_config(derived, "config.json")
    assert (config.intermediate_size, config.vocab_size, config.num_key_value_heads) == (128, 44, 4)
    newer = {**LLAMA_CONFIG, "model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}}
    del newer["rope_theta"]
    assert read_config(newer, "config.json")[1].rope_theta == 7e5


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_rejected_without_executing_it(tmp_path):
    publish(tmp_path / "hf", LLADA_CONFIG)
    (tmp_path / "hf" / "model.safetensors").unlink()
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle, which could execute code.*only safetensors"):
        open_hf(tmp_path / "hf")
    assert not (tmp_path / "executed").exists()
    # one that is named as if it were none
    (tmp_path / "hf" / "pytorch_model.bin").rename(tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UserError, match="not a valid safetensors file"):
        open_hf(tmp_path / "hf")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("downloaded", [0, 4, 300, 0.5, 0.999])
def test_a_partially_downloaded_file_is_rejected(downloaded, tmp_path):
    publish(tmp_path / "hf", LLADA_CONFIG)
    file = tmp_path / "hf" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: downloaded if isinstance(downloaded, int) else int(downloaded * len(content))])
    with pytest.raises(UserError, match=r"model\.safetensors: not a valid safetensors file.*download it again"):
        open_hf(tmp_path / "hf")


def test_a_missing_shard_and_a_wrong_index_are_reported(make_model, tmp_path):
    folder = tmp_path / "hf"
    export(folder, make_model(), LAYOUTS["illada"], max_shard_bytes=20_000)
    shards = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    message = json.loads(index.read_text())
    shards[1].rename(folder / "elsewhere")
    with pytest.raises(UserError, match=f"1 of {len(shards)} shards are missing, the first is {shards[1].name}"):
        open_hf(folder)
    (folder / "elsewhere").rename(shards[1])
    index.write_text(json.dumps({"weight_map": {**message["weight_map"], "model.norm.weight": shards[0].name}}))
    with pytest.raises(UserError, match=r"lists model\.norm\.weight in .*, which does not contain it"):
        open_hf(folder)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "../../etc/passwd"}}))
    with pytest.raises(UserError, match="is not the name of a safetensors file in that folder"):
        open_hf(folder)
    index.write_text("{}")
    with pytest.raises(UserError, match="no weight_map"):
        open_hf(folder)


@pytest.mark.parametrize(("content", "message"), [("{", "not JSON"), ("[]", "must be an object, not a list")])
def test_a_malformed_config_is_reported(content, message, tmp_path):
    publish(tmp_path / "hf", LLADA_CONFIG)
    (tmp_path / "hf" / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        open_hf(tmp_path / "hf")


def test_missing_and_quantised_weights_are_reported(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        open_hf(tmp_path)
    publish(tmp_path / "hf", LLADA_CONFIG)
    (tmp_path / "hf" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights \("):
        open_hf(tmp_path / "hf")
    save_file({"x": torch.ones(3, dtype=torch.int8)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="x has dtype I8"):
        TensorFiles([tmp_path / "x.safetensors"])


class Watched(dict):
    """Tensors that record the process's anonymous memory, in MB, at each access.

    Mapped pages of files do not count, since the system may drop them at any time.
    """

    def __init__(self, tensors):
        super().__init__()
        self.tensors = tensors
        self.seen_mb = [self.now_mb()]

    def __getitem__(self, name):
        self.seen_mb.append(self.now_mb())
        return self.tensors[name]

    @staticmethod
    def now_mb():
        return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_loading_never_holds_two_copies(tmp_path):
    """A model of 290 MB adds little more than itself to the process, from the first tensor to the last."""
    sizes = {"vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 4}
    config = ModelConfig(**sizes, num_attention_heads=8, num_key_value_heads=8)
    tensors = {name: torch.zeros(shape) for name, shape in tensor_shapes(config).items()}
    options = {"mask_token_id": 0, "eos_token_id": 1, "dtype": None, "max_shard_bytes": 10**8}
    write_hf(tmp_path, LAYOUTS["llada"], config, tensors, **options)
    del tensors

    def grown_mb(tensors):
        watched = Watched(tensors)
        model = load_model(config, watched, CPU)
        assert torch.equal(model.lm_head_weight, tensors["model.embed_tokens.weight"])
        return max(*watched.seen_mb, Watched.now_mb()) - watched.seen_mb[0]

    mapped = open_hf(tmp_path).tensors
    model_mb = num_parameters(config) * 4 / 2**20
    assert model_mb > 280
    # no lower bound: memory that earlier tests have freed may serve again
    assert grown_mb(mapped) < 1.1 * model_mb


def test_the_published_names_are_those_of_the_papers_checkpoints():
    """Written out, to detect an error that both directions share."""
    name = LAYOUTS["llada"].published_name
    assert name("model.layers.7.mlp.gate_proj.weight") == "model.transformer.blocks.7.ff_proj.weight"
    assert name("model.layers.7.mlp.down_proj.weight") == "model.transformer.blocks.7.ff_out.weight"
    assert name("lm_head.weight") == "model.transformer.ff_out.weight"
    assert name("model.norm.weight") == "model.transformer.ln_f.weight"
    assert all(re.fullmatch(r"GSAI-ML/i?LLaDA-8B-Base", LAYOUTS[key].code) for key in ("illada", "llada"))
