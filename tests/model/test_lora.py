"""LoRA: identity at initialisation, the only trained weights, exact merging."""

import copy
import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lit_illada.errors import UserError
from lit_illada.model.lora import MergedTensors, add_lora, merge_lora
from lit_illada.model.lora_config import LoraConfig
from lit_illada.training.config.optim import AdamWConfig
from lit_illada.training.optim import build_optimizer

CONFIG = LoraConfig(rank=3, alpha=6.0, targets=["q_proj", "v_proj", "down_proj"])


def adapted(model, config=CONFIG):
    add_lora(model, config, seed=1)
    return model


def train_a_step(model, ids, layout):
    optimizer = build_optimizer(model, AdamWConfig(learning_rate=0.05, weight_decay=0.0))
    model(ids, layout, None, ids).nll.mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("attention_bias", [False, True])
def test_initial_logits_equal_the_base_models(make_model, packed, attention_bias):
    ids, layout, _ = packed
    model = make_model(attention_bias=attention_bias)
    before = model(ids, layout)
    assert torch.equal(adapted(model)(ids, layout), before)


def test_only_the_adapters_are_trained(make_model, packed):
    ids, layout, _ = packed
    model = adapted(make_model())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_a_step(model, ids, layout)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad and name.endswith("lora_b")}
    assert len(changed) == 2 * 3
    train_a_step(model, ids, layout)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".lora_" in name}


def test_state_dict_has_the_base_models_names_and_two_more_per_layer(make_model):
    base = set(make_model().state_dict())
    names = set(adapted(make_model()).state_dict())
    layers = {
        f"model.layers.{n}.{m}" for n in range(2) for m in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
    }
    assert names - base == {f"{layer}.{part}" for layer in layers for part in ("lora_a", "lora_b")}
    assert base <= names


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention_bias", [False, True])
def test_merged_weights_give_the_same_outputs_in_a_plain_model(make_model, packed, dtype, attention_bias):
    ids, layout, _ = packed
    plain = make_model(attention_bias=attention_bias)
    model = adapted(copy.deepcopy(plain).to(dtype))
    train_a_step(model, ids, layout)
    train_a_step(model, ids, layout)
    before = model(ids, layout)
    merge_lora(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(type(a) is type(b) for a, b in zip(model.modules(), plain.modules(), strict=True))
    assert all(p.requires_grad for p in model.parameters())
    error = {torch.float32: {"atol": 1e-5, "rtol": 1e-5}, torch.bfloat16: {"atol": 0.3, "rtol": 0.1}}[dtype]
    torch.testing.assert_close(model(ids, layout), before, **error)
    assert not torch.allclose(model(ids, layout).float(), plain(ids, layout), atol=0.05)


def test_a_checkpoint_with_adapters_reads_as_the_merged_one(make_model, packed):
    ids, layout, _ = packed
    model = adapted(make_model())
    train_a_step(model, ids, layout)
    read = MergedTensors(model.state_dict(), CONFIG.scale)
    merge_lora(model)
    expected = model.state_dict()
    assert list(read) == list(expected)
    assert len(read) == len(expected)
    assert all(torch.equal(read[name], expected[name]) for name in expected)
    assert "model.layers.0.self_attn.q_proj.lora_a" not in read


def test_autocast_and_bfloat16_bases_train_float32_adapters(make_model, packed):
    ids, layout, _ = packed
    for model in (adapted(make_model()), adapted(make_model().bfloat16())):
        with torch.autocast("cpu", torch.bfloat16):
            nll = model(ids, layout, None, ids).nll
        nll.mean().backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {torch.float32}
        assert all(p.grad.isfinite().all() for p in trained)


def test_the_same_generator_gives_the_same_adapters(make_model):
    one, other = adapted(make_model()), adapted(make_model())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "adapter.rank is 0"),
        ({"alpha": 0.0}, "adapter.alpha is 0.0"),
        ({"targets": []}, "adapter.targets is empty"),
        ({"targets": ["query_proj"]}, "did you mean"),
    ],
)
def test_invalid_settings_are_rejected(options, message):
    with pytest.raises(UserError, match=message):
        LoraConfig(**options)


def test_a_rank_above_that_of_the_layer_is_rejected(make_model):
    with pytest.raises(UserError, match=r"adapter\.rank is 40: model\.layers\.0\.self_attn\.q_proj is only 32 × 32"):
        add_lora(make_model(), LoraConfig(rank=40))


def _train_sharded(rank, folder, make_model, packed):
    ids, layout, _ = packed
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    model = adapted(make_model())
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for _ in range(2):
        train_a_step(model, ids, layout)
    weights = {name: value.full_tensor() for name, value in model.state_dict().items()}
    if rank == 0:
        torch.save(weights, folder / "weights.pt")
    dist.destroy_process_group()


def test_lora_sharded_over_two_processes_trains_the_same(make_model, packed, tmp_path):
    ids, layout, _ = packed
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_train_sharded, args=(n, tmp_path, make_model, packed)) for n in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    model = adapted(make_model())
    for _ in range(2):
        train_a_step(model, ids, layout)
    sharded = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(sharded[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_adapted_blocks_compile_without_a_graph_break(make_model, packed):
    ids, layout, _ = packed
    model, compiled = adapted(make_model()), adapted(make_model())
    for layer in compiled.model.layers:
        layer.compile(fullgraph=True)
    scores = [m(ids, layout, None, ids).nll for m in (model, compiled)]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-5)
