"""Estimated parameters, memory and FLOPs against those of real models and steps."""

import weakref
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode

from lit_illada.batch import Layout
from lit_illada.config import load
from lit_illada.cost.memory import MicroBatch, activation_bytes, kernel_on, optimizer_bytes, step_memory, trained_shapes
from lit_illada.model.config import AttentionKernel, ModelConfig, num_parameters, parameters_by_part
from lit_illada.model.flops import training_flops
from lit_illada.model.lora import add_lora, num_adapter_parameters
from lit_illada.model.lora_config import TARGETS, LoraConfig
from lit_illada.model.transformer import Transformer
from lit_illada.objective.blocks import divide
from lit_illada.training.config.optim import AdamW8bitConfig, AdamWConfig, MuonConfig
from lit_illada.training.config.parallel import ActivationCheckpointing, ParallelConfig, Strategy
from lit_illada.training.distributed.activation_checkpointing import checkpoint_activations
from lit_illada.training.optim import build_optimizer

OPTIMIZERS = [
    pytest.param(AdamWConfig(), id="adamw"),
    pytest.param(MuonConfig(), id="muon"),
    pytest.param(
        AdamW8bitConfig(),
        id="adamw8bit",
        marks=pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao"),
    ),
]
SMALL = ModelConfig(500, 64, 176, 3, 4, 2)
PRESETS = ["pico", "nano", "100m", "1b", "illada_8b", "llada_8b"]
PARTS = {"embed_tokens": "embedding", "self_attn": "attention", "mlp": "mlp", "norm": "norms", "lm_head": "lm_head"}
ROWS, LENGTH = 4, 64
ROWS_WITH = {4: 32, 2: 8}  # by bytes of a value: CPUs without instructions for bfloat16 compute it slowly
FSDP = ParallelConfig(Strategy.fsdp)


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_by_part_match_the_model(preset):
    config = load("pretrain", [f"model={preset}", "data.row_length=512"]).model.with_vocab_size(1000)
    with torch.device("meta"):
        model = Transformer(config)
    counted = dict.fromkeys(parameters_by_part(config), 0)
    for name, parameter in model.named_parameters():
        counted[next(part for key, part in PARTS.items() if key in name)] += parameter.numel()
    assert parameters_by_part(config) == counted
    assert sum(counted.values()) == num_parameters(config)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("has_biases", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_gradients_and_optimizer_state_match_estimate(optimizer, is_tied, has_biases):
    config = replace(SMALL, tie_word_embeddings=is_tied, attention_bias=has_biases)
    model, made = trained_one_step(config, optimizer)
    estimated = step_memory(config, optimizer, micro_batch(10, 4, AttentionKernel.SDPA))
    assert estimated.weights == sum(p.nbytes for p in model.parameters())
    assert estimated.gradients == sum(p.grad.nbytes for p in model.parameters())
    moments = [value for state in made.state.values() for value in state.values() if torch.is_tensor(value)]
    held = sum(held_bytes(moment) for moment in moments if moment.ndim)
    assert optimizer_bytes(trained_shapes(config), optimizer) == held


@pytest.mark.parametrize(("compute_bytes", "kernel"), [(4, "sdpa"), (2, "sdpa"), (2, "matmul")])
@pytest.mark.parametrize("num_heads_sharing", [1, 2])
def test_stored_activations_per_layer_match_estimate(compute_bytes, kernel, num_heads_sharing):
    config = replace(SMALL, attention=AttentionKernel(kernel), num_key_value_heads=4 // num_heads_sharing)
    deeper = replace(config, num_hidden_layers=5)
    batch = micro_batch(0, compute_bytes, config.attention)
    estimated = activation_bytes(deeper, batch) - activation_bytes(config, batch)
    assert saved_bytes(deeper, compute_bytes) - saved_bytes(config, compute_bytes) == pytest.approx(estimated, rel=0.1)


@pytest.mark.parametrize("is_accumulating", [False, True])
@pytest.mark.parametrize("vocab_size", [300, 20_000])
@pytest.mark.parametrize(("num_rows", "compute_bytes"), [(2, 4), (32, 4), (2, 2), (8, 2)])
def test_peak_of_a_step_matches_estimate(num_rows, compute_bytes, vocab_size, is_accumulating):
    """Counts all live tensors, but no memory that a kernel allocates and frees within one operation."""
    config = replace(SMALL, vocab_size=vocab_size, attention=AttentionKernel.SDPA)
    model, optimizer = trained_one_step(config, AdamWConfig())
    if not is_accumulating:
        optimizer.zero_grad(set_to_none=True)
    peak, num_selected = measured(model, optimizer, num_rows, compute_bytes)
    batch = micro_batch(num_selected, compute_bytes, config.attention, num_rows)
    estimated = step_memory(config, AdamWConfig(), batch, is_accumulating=is_accumulating)
    assert peak == pytest.approx(estimated.peak, rel=0.1)


@pytest.mark.parametrize("compute_bytes", [4, 2])
@pytest.mark.parametrize("kernel", [AttentionKernel.SDPA, AttentionKernel.MATMUL])
def test_peak_of_a_step_in_blocks_matches_estimate(kernel, compute_bytes):
    config = replace(SMALL, attention=kernel, block_length=8)
    model, optimizer = trained_one_step(config, AdamWConfig())
    optimizer.zero_grad(set_to_none=True)
    peak, num_selected = measured(model, optimizer, 32, compute_bytes)
    batch = replace(micro_batch(num_selected, compute_bytes, kernel, 32), is_packed=True)
    assert peak == pytest.approx(step_memory(config, AdamWConfig(), batch).peak, rel=0.1)


@pytest.mark.parametrize("compute_bytes", [4, 2])
@pytest.mark.parametrize("which", [ActivationCheckpointing.selective, ActivationCheckpointing.full])
def test_peak_with_recomputed_layers_matches_estimate(which, compute_bytes):
    """Few tokens with loss and many layers, so that activations dominate."""
    config = replace(SMALL, num_hidden_layers=12, attention=AttentionKernel.SDPA)
    model, optimizer = trained_one_step(config, AdamWConfig())
    for layer in model.model.layers:
        checkpoint_activations(layer, which)
    optimizer.zero_grad(set_to_none=True)
    num_rows = ROWS_WITH[compute_bytes] * 2
    peak, num_selected = measured(model, optimizer, num_rows, compute_bytes, every=16)
    batch = micro_batch(num_selected, compute_bytes, config.attention, num_rows)
    estimated = step_memory(config, AdamWConfig(), replace(batch, recomputation=which))
    assert peak == pytest.approx(estimated.peak, rel=0.1)
    assert estimated.peak < 0.7 * step_memory(config, AdamWConfig(), batch).peak


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "num_rows", "which"),
    [
        ("1b", 4, ActivationCheckpointing.none),
        ("illada_8b", 1, ActivationCheckpointing.selective),
        ("illada_8b", 2, ActivationCheckpointing.full),
    ],
)
def test_a_whole_step_of_a_large_model_on_fake_tensors_matches_estimate(preset, num_rows, which):
    """Forward, backward and AdamW on rows of 8192 tokens: shapes, dtypes and live bytes, without computing anything.

    On the device `cpu`, since torch refuses fake CUDA tensors without CUDA.
    """
    length = 8192
    config = load("pretrain", [f"model={preset}", "data.row_length=8"]).model
    config = replace(config.with_vocab_size(config.vocab_size or 32_768), attention=AttentionKernel.SDPA)
    num_selected = num_rows * length // 2
    with FakeTensorMode():
        model = Transformer(config)
        for layer in model.model.layers:
            checkpoint_activations(layer, which)
        optimizer = build_optimizer(model, AdamWConfig())

        def train():
            ids, targets = (
                torch.zeros(num_rows, length, dtype=torch.int64),
                torch.zeros(num_selected, dtype=torch.int64),
            )
            with torch.autocast("cpu", torch.bfloat16):
                scores = model(ids, Layout.whole_rows(num_rows, length), ids == 0, targets)
            assert scores.nll.shape == (num_selected,)
            assert scores.nll.dtype == torch.float32
            scores.nll.sum().backward()
            optimizer.step()

        train()
        optimizer.zero_grad(set_to_none=True)
        moments = [value for state in optimizer.state.values() for value in state.values() if value.ndim]
        with Live([*model.parameters(), *moments]) as live:
            train()
        assert all(p.grad.shape == p.shape and p.grad.dtype == p.dtype == torch.float32 for p in model.parameters())
    batch = MicroBatch(num_rows, length, num_selected, 2, AttentionKernel.SDPA, "cpu", recomputation=which)
    assert live.peak == pytest.approx(step_memory(config, AdamWConfig(), batch).peak, rel=0.1)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], list(TARGETS)])
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_adapters_have_gradients_and_optimizer_state(optimizer, is_tied, targets):
    config, lora = replace(SMALL, tie_word_embeddings=is_tied), LoraConfig(rank=8, targets=targets)
    model, made = trained_one_step(config, optimizer, lora)
    estimated = step_memory(config, optimizer, replace(micro_batch(10, 4, AttentionKernel.SDPA), lora=lora))
    assert estimated.weights == sum(p.nbytes for p in model.parameters())
    assert estimated.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    moments = [value for state in made.state.values() for value in state.values() if torch.is_tensor(value)]
    assert estimated.optimizer == sum(held_bytes(moment) for moment in moments if moment.ndim)


@pytest.mark.parametrize("vocab_size", [300, 20_000])
@pytest.mark.parametrize("compute_bytes", [4, 2])
def test_peak_of_a_step_with_adapters_matches_estimate(compute_bytes, vocab_size):
    """Many layers, since the first one stores less: nothing below it is trained."""
    config = replace(SMALL, num_hidden_layers=8, vocab_size=vocab_size, attention=AttentionKernel.SDPA)
    lora = LoraConfig(rank=4)
    model, optimizer = trained_one_step(config, AdamWConfig(), lora)
    optimizer.zero_grad(set_to_none=True)
    num_rows = ROWS_WITH[compute_bytes]
    peak, num_selected = measured(model, optimizer, num_rows, compute_bytes)
    batch = micro_batch(num_selected, compute_bytes, config.attention, num_rows)
    estimated = step_memory(config, AdamWConfig(), replace(batch, lora=lora))
    assert peak == pytest.approx(estimated.peak, rel=0.1)


@pytest.mark.parametrize(("width", "kernel"), [(64, "varlen"), (48, "sdpa")])  # heads of 16 and of 12
def test_absent_gpu_gets_the_kernel_that_supports_its_head_size(width, kernel):
    assert kernel_on(replace(SMALL, hidden_size=width), "cuda", 2, 1024) == kernel


def test_absent_gpu_gets_the_kernel_that_supports_its_mask():
    blocks, narrow = replace(SMALL, block_length=8), replace(SMALL, block_length=8, hidden_size=48)
    assert kernel_on(blocks, "cuda", 2, 1024) is AttentionKernel.FLEX
    assert kernel_on(narrow, "cuda", 2, 1024) is AttentionKernel.SDPA  # heads of 12
    assert kernel_on(SMALL, "cuda", 2, 1024, has_annealing=True) is AttentionKernel.SDPA
    assert kernel_on(SMALL, "cuda", 2, 1024) is AttentionKernel.VARLEN
    assert kernel_on(SMALL, "cpu", 2, 64, has_annealing=True) is AttentionKernel.MATMUL


def test_key_value_heads_that_are_repeated_on_a_gpu_need_the_memory_of_query_heads():
    all_heads, batch = replace(SMALL, num_key_value_heads=4), micro_batch(10, 2, AttentionKernel.SDPA)
    batch = replace(batch, device="cuda")
    assert activation_bytes(SMALL, batch) < activation_bytes(all_heads, batch)
    for repeated in (replace(batch, is_packed=True), replace(batch, compute_bytes=4)):
        assert activation_bytes(SMALL, repeated) == activation_bytes(all_heads, repeated)


def test_gradients_of_ddp_are_held_as_its_buckets_all_the_time():
    config = replace(SMALL, hidden_size=256, num_attention_heads=16)
    batch = micro_batch(10, 4, AttentionKernel.SDPA)
    one = step_memory(config, AdamWConfig(), batch)
    two = step_memory(config, AdamWConfig(), batch, parallel=ParallelConfig(Strategy.ddp), world_size=2)
    assert two.gradients == one.gradients
    assert two.peak == step_memory(config, AdamWConfig(), batch, is_accumulating=True).peak
    assert two.peak > one.peak


def test_selective_recomputation_saves_no_output_of_flex_attention_and_flash_attention_4():
    selective = replace(micro_batch(10, 2, AttentionKernel.VARLEN), recomputation=ActivationCheckpointing.selective)
    saved = activation_bytes(SMALL, selective)
    output = 2 * SMALL.hidden_size + 4 * SMALL.num_attention_heads  # with the log-sum-exp, bytes per token and layer
    for kernel in (AttentionKernel.FLEX, AttentionKernel.FLASH4):
        recomputed = activation_bytes(SMALL, replace(selective, kernel=kernel))
        assert saved - recomputed == selective.num_tokens * SMALL.num_hidden_layers * output


def test_sharded_state_is_divided_among_devices():
    eight = step_memory(SMALL, AdamWConfig(), micro_batch(10, 4, AttentionKernel.SDPA), parallel=FSDP, world_size=8)
    one = step_memory(SMALL, AdamWConfig(), micro_batch(10, 4, AttentionKernel.SDPA))
    assert (eight.weights, eight.gradients, eight.optimizer) == (
        one.weights // 8,
        one.gradients // 8,
        one.optimizer // 8,
    )
    assert eight.checkpoint == one.checkpoint
    pairs = replace(FSDP, shard_size=2)
    two = step_memory(SMALL, AdamWConfig(), micro_batch(10, 4, AttentionKernel.SDPA), parallel=pairs, world_size=8)
    assert two.weights == one.weights // 2
    accumulating = step_memory(
        SMALL,
        AdamWConfig(),
        micro_batch(10, 4, AttentionKernel.SDPA),
        is_accumulating=True,
        parallel=FSDP,
        world_size=8,
    )
    assert accumulating.gradients == one.gradients


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=8)], ids=["all", "adapters"])
def test_flops_match_torch_flop_counter(lora):
    config = replace(SMALL, num_hidden_layers=8, attention=AttentionKernel.MATMUL, num_key_value_heads=4)
    model, _ = trained_one_step(config, AdamWConfig(), lora)
    is_selected = torch.rand(ROWS, LENGTH, generator=torch.Generator().manual_seed(0)) < 0.5
    with FlopCounterMode(display=False) as counter:
        step(model, torch.randint(300, (ROWS, LENGTH)), is_selected, 4)
    estimated = training_flops(
        config, Layout.whole_rows(ROWS, LENGTH), int(is_selected.sum()), num_adapter_parameters(config, lora)
    )
    assert estimated == pytest.approx(counter.get_total_flops(), rel=0.1)


def held_bytes(moment):
    """Bytes of a moment; an 8-bit one consists of three tensors."""
    return sum(
        part.nbytes for part in ([moment.codes, moment.scale, moment.qmap] if hasattr(moment, "codes") else [moment])
    )


def micro_batch(num_selected, compute_bytes, kernel, num_rows=ROWS):
    return MicroBatch(num_rows, LENGTH, num_selected, compute_bytes, kernel, "cpu")


def trained_one_step(config, optimizer, lora=None):
    """A model and its optimizer after one step, with gradients."""
    model = Transformer(config)
    model.init_weights(0)
    if lora is not None:
        add_lora(model, lora)
    made = build_optimizer(model, optimizer)
    step(model, torch.randint(300, (1, 8)), torch.ones(1, 8, dtype=torch.bool), 4)
    made.step()
    return model, made


def measured(model, optimizer, num_rows, compute_bytes, every=2):
    """Peak bytes of live tensors in a step, and its number of tokens with loss (one in `every`)."""
    ids, is_selected = torch.randint(300, (num_rows, LENGTH)), torch.zeros(num_rows, LENGTH, dtype=torch.bool)
    is_selected[:, ::every] = True
    if model.config.block_length is not None:  # only noisy tokens have loss
        is_selected[:, LENGTH // 2 :] = False
    held = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    held += [value for state in optimizer.state.values() for value in state.values() if value.ndim]
    with Live(held) as live:
        step(model, ids, is_selected, compute_bytes)
    return live.peak, int(is_selected.sum())


def step(model, ids, is_selected, compute_bytes):
    forward(model, ids, is_selected, compute_bytes).backward()


def forward(model, ids, is_selected, compute_bytes):
    with torch.autocast("cpu", torch.bfloat16, enabled=compute_bytes == 2):
        return model(ids, layout_of(model, *ids.shape), is_selected, ids[is_selected]).nll.sum()


def layout_of(model, num_rows, num_columns):
    """Whole rows, or for a model in blocks rows [noisy | clean]."""
    if model.config.block_length is None:
        return Layout.whole_rows(num_rows, num_columns)
    layout = Layout.whole_rows(num_rows, num_columns // 2)
    is_maskable = torch.ones(num_rows, num_columns // 2, dtype=torch.bool)
    return replace(layout, blocks=divide(layout, is_maskable, model.config.block_length)).with_clean_copy()


def saved_bytes(config, compute_bytes):
    """Bytes of the tensors that autograd saves for the backward pass, without weights and their casts."""
    model = Transformer(config)
    model.init_weights(0)
    saved = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def save(tensor):
        is_cast = tensor.dtype is torch.bfloat16 and tensor.shape in shapes
        if tensor.untyped_storage().data_ptr() not in weights and not is_cast:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    matrices = [parameter for parameter in model.parameters() if parameter.ndim == 2]
    shapes = {shape for matrix in matrices for shape in (matrix.shape, matrix.T.shape)}
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        loss = forward(model, ids, ids == 0, compute_bytes)
    assert loss > 0
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


class Live(TorchDispatchMode):
    """Tracks the peak bytes of live tensors."""

    def __init__(self, held):
        super().__init__()
        self.now = self.peak = 0
        self.seen = set()
        for tensor in held:
            self.count(tensor)

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        made = function(*arguments, **(keywords or {}))
        for tensor in tree_flatten(made)[0]:
            if torch.is_tensor(tensor):
                self.count(tensor)
        return made

    def count(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.seen:
            return
        self.seen.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.free, key, storage.nbytes())

    def free(self, key, nbytes):
        self.seen.discard(key)
        self.now -= nbytes
