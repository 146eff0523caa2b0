import math

import pytest
import torch

from lit_illada.batch import Layout
from lit_illada.model.config import AttentionKernel, num_non_embedding_parameters, num_parameters
from lit_illada.model.transformer import Transformer, _selected

HERE = [AttentionKernel.MATMUL, AttentionKernel.SDPA]


def reference_logits(model, token_ids):
    """Logits (L, V), float64, of one document, by explicit loops over heads, queries and keys."""
    config = model.config
    weights = {name: value.detach().double() for name, value in model.state_dict().items()}
    embedding = weights["model.embed_tokens.weight"]
    x = embedding[torch.tensor(token_ids)]
    for n in range(config.num_hidden_layers):
        layer = {
            k.removeprefix(f"model.layers.{n}."): w for k, w in weights.items() if k.startswith(f"model.layers.{n}.")
        }
        h = norm(x, layer["input_layernorm.weight"], config.rms_norm_eps)
        x = x + attention(h, layer, config) @ layer["self_attn.o_proj.weight"].T
        h = norm(x, layer["post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = h @ layer["mlp.gate_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * (h @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T
    x = norm(x, weights["model.norm.weight"], config.rms_norm_eps)
    return x @ weights.get("lm_head.weight", embedding).T


def norm(x, weight, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def attention(h, layer, config):
    length, dim = len(h), config.head_dim
    q, k, v = (h @ layer[f"self_attn.{name}_proj.weight"].T for name in "qkv")
    heads_per_group = config.num_attention_heads // config.num_key_value_heads
    out = torch.zeros(length, config.hidden_size, dtype=torch.float64)
    for head in range(config.num_attention_heads):
        mine = slice(head * dim, (head + 1) * dim)
        shared = slice(head // heads_per_group * dim, (head // heads_per_group + 1) * dim)
        queries = [rotated(q[i, mine], i, config.rope_theta) for i in range(length)]
        keys = [rotated(k[j, shared], j, config.rope_theta) for j in range(length)]
        for i in range(length):
            seen = range(i + 1) if config.is_causal else range(length)
            weights = torch.softmax(torch.stack([queries[i] @ keys[j] / math.sqrt(dim) for j in seen]), 0)
            out[i, mine] = sum(w * v[j, shared] for w, j in zip(weights, seen, strict=True))
    return out


def rotated(vector, position, theta):
    """Entry i is paired with entry i + D/2, and the pair turned by position · theta^(−2i/D)."""
    half = len(vector) // 2
    out = vector.clone()
    for i in range(half):
        angle = position * theta ** (-2 * i / len(vector))
        a, b = vector[i], vector[i + half]
        out[i] = a * math.cos(angle) - b * math.sin(angle)
        out[i + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


@pytest.mark.parametrize("attention", HERE)
@pytest.mark.parametrize("num_key_value_heads", [2, 4])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("tie_word_embeddings", [False, True])
def test_packed_rows_equal_a_slow_reference_on_each_document(
    make_model, packed, attention, num_key_value_heads, is_causal, tie_word_embeddings
):
    ids, layout, documents = packed
    model = make_model(
        attention=attention,
        num_key_value_heads=num_key_value_heads,
        is_causal=is_causal,
        tie_word_embeddings=tie_word_embeddings,
    )
    expected = torch.cat([reference_logits(model, document.tolist()) for document in documents])
    logits = model(ids, layout)
    assert logits.shape == (3, 12, 50)
    torch.testing.assert_close(logits.flatten(0, 1).double(), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", HERE)
@pytest.mark.parametrize("is_causal", [False, True])
def test_packed_rows_equal_the_model_on_each_document(make_model, packed, attention, is_causal):
    ids, layout, documents = packed
    model = make_model(attention=attention, is_causal=is_causal)
    separate = [model(document[None], Layout.whole_rows(1, len(document)))[0] for document in documents]
    torch.testing.assert_close(model(ids, layout).flatten(0, 1), torch.cat(separate), atol=5e-6, rtol=1e-5)


def test_selected_rows_are_the_full_logits_rows(make_model, packed):
    ids, layout, _ = packed
    model = make_model()
    select = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.4
    torch.testing.assert_close(model(ids, layout, select), model(ids, layout)[select])
    assert model(ids, layout, torch.zeros_like(select)).shape == (0, 50)


def test_selecting_a_known_number_of_tokens_gives_equal_states_and_gradients():
    x = torch.randn(3, 5, 4, requires_grad=True)
    select = torch.arange(15).view(3, 5) % 3 == 1
    counted, known = _selected(x, select, None), _selected(x, select, 5)
    assert torch.equal(counted, known)
    gradients = [torch.autograd.grad(states.square().sum(), x)[0] for states in (counted, known)]
    assert torch.equal(*gradients)
    assert _selected(x, torch.zeros_like(select), 0).shape == (0, 4)


def test_scores_are_the_cross_entropy_of_the_selected_logits(make_model, packed):
    ids, layout, _ = packed
    model = make_model(tie_word_embeddings=False)
    select = torch.rand(ids.shape, generator=torch.Generator().manual_seed(3)) < 0.4
    scores, logits = model(ids, layout, select, ids[select]), model(ids, layout, select)
    torch.testing.assert_close(scores.nll, torch.nn.functional.cross_entropy(logits, ids[select], reduction="none"))
    assert scores.is_correct.equal(logits.argmax(-1) == ids[select])
    everywhere = model(ids, layout, None, ids)
    torch.testing.assert_close(everywhere.nll.view_as(ids)[select], scores.nll)


@pytest.mark.parametrize("is_causal", [False, True])
def test_a_later_token_changes_earlier_logits_only_if_bidirectional(make_model, is_causal):
    model, ids = make_model(is_causal=is_causal), torch.arange(8)[None]
    changed = ids.clone()
    changed[0, 5] = 42
    layout = Layout.whole_rows(1, 8)
    before, after = model(ids, layout)[0, :5], model(changed, layout)[0, :5]
    assert torch.equal(before, after) == is_causal


def test_positions_count_from_the_start_of_the_segment(make_model):
    """The same document twice in a row gives the same logits twice."""
    ids = torch.arange(6).repeat(2)[None]
    logits = make_model()(ids, Layout.from_lengths(torch.tensor([6, 6]), 12))[0]
    torch.testing.assert_close(logits[:6], logits[6:])


def test_parameter_names_are_those_of_the_released_checkpoint(make_model):
    layer_names = {"input_layernorm", "post_attention_layernorm"}
    layer_names |= {f"self_attn.{name}_proj" for name in "qkvo"} | {
        f"mlp.{name}_proj" for name in ("gate", "up", "down")
    }
    expected = {f"model.layers.{n}.{name}.weight" for n in range(2) for name in layer_names}
    expected |= {"model.embed_tokens.weight", "model.norm.weight"}
    assert set(make_model().state_dict()) == expected
    assert set(make_model(tie_word_embeddings=False).state_dict()) == expected | {"lm_head.weight"}


@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": False}, {"num_key_value_heads": 4}, {"attention_bias": True}]
)
def test_parameter_counts_are_correct(make_model, changes):
    model = make_model(**changes)
    assert num_parameters(model.config) == sum(p.numel() for p in model.parameters())
    inner = [p.numel() for name, p in model.named_parameters() if "embed_tokens" not in name and "lm_head" not in name]
    assert num_non_embedding_parameters(model.config) == sum(inner)


def test_initialisation_is_the_released_one(make_model):
    model = make_model(
        hidden_size=256, intermediate_size=512, vocab_size=2000, initializer_range=0.02, tie_word_embeddings=False
    )
    branch_end = 0.02 / (2 * 2) ** 0.5
    for name, weight in model.named_parameters():
        if "norm" in name:
            assert weight.eq(1).all()
            continue
        std = (2 * 256) ** -0.5 if "embed" in name else branch_end if "o_proj" in name or "down" in name else 0.02
        assert weight.std().item() == pytest.approx(std, rel=0.02), name
        assert abs(weight.mean().item()) < 4 * std / weight.numel() ** 0.5, name


def test_the_same_seed_gives_the_same_weights_also_from_the_meta_device(make_model, tiny):
    model = make_model(seed=7)
    with torch.device("meta"):
        late = Transformer(tiny)
    late.to_empty(device="cpu")
    late.init_weights(7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), late.parameters(), strict=True))
    assert not torch.equal(model.lm_head_weight, make_model(seed=8).lm_head_weight)


def test_a_tied_embedding_learns_from_both_its_uses(make_model, packed):
    ids, layout, _ = packed
    grads = []
    for tied in (True, False):
        model = make_model(tie_word_embeddings=tied)
        if not tied:
            model.load_state_dict({**make_model().state_dict(), "lm_head.weight": make_model().lm_head_weight})
        model(ids, layout, None, ids).nll.mean().backward()
        grads.append(model.model.embed_tokens.weight.grad + (0 if tied else model.lm_head.weight.grad))
    torch.testing.assert_close(*grads, atol=1e-6, rtol=1e-5)


def test_autocast_computes_in_bfloat16_and_scores_in_float32(make_model, packed):
    ids, layout, _ = packed
    model = make_model()
    exact = model(ids, layout, None, ids).nll
    with torch.autocast("cpu", torch.bfloat16):
        assert model(ids, layout).dtype is torch.bfloat16
        scores = model(ids, layout, None, ids)
    scores.nll.mean().backward()
    assert scores.nll.dtype is torch.float32
    torch.testing.assert_close(scores.nll, exact, atol=0.15, rtol=0.05)
    assert all(p.grad.dtype is torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_compiled_blocks_have_no_graph_break_and_equal_eager_ones(make_model, packed):
    ids, layout, _ = packed
    model, compiled = make_model(), make_model()
    for layer in compiled.model.layers:
        layer.compile(fullgraph=True)
    scores = [m(ids, layout, None, ids) for m in (model, compiled)]
    torch.testing.assert_close(scores[0].nll, scores[1].nll, atol=1e-5, rtol=1e-5)
    for each in scores:
        each.nll.mean().backward()
    for a, b in zip(model.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)
