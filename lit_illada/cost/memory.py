"""Memory of a training step on one device, by part.

Shapes: N tokens per micro-batch, T tokens per row, M masked tokens, L layers, D width, W key-value width, F
feed-forward width, H heads, V vocabulary, C vocabulary entries per slice of the LM head. Bytes per number: c in matrix
products, 4 or in bfloat16 2; s in the residual stream, 4, or c where FSDP gathers the weights. P: devices that share
the heads and the MLP of a layer (tensor parallelism). Weights, gradients and optimizer state are always float32.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from lit_illada.checkpoints.hf import tensor_shapes
from lit_illada.model.attention import NARROWEST_FLEX_HEAD
from lit_illada.model.config import AttentionKernel, ModelConfig, num_linear_parameters, num_parameters
from lit_illada.model.kernel_choice import LONGEST_MATMUL_ROW, sdpa_takes_groups, takes_heads
from lit_illada.model.lm_head import default_chunk_size, stores_logits
from lit_illada.model.lora import adapter_shapes, num_adapter_parameters
from lit_illada.model.lora_config import LoraConfig
from lit_illada.training.config.optim import AdamW8bitConfig, MuonConfig, OptimizerConfig, is_muon_parameter
from lit_illada.training.config.parallel import ActivationCheckpointing, ParallelConfig, Strategy

_UNSHARDED = ParallelConfig()


@dataclass(frozen=True)
class MicroBatch:
    """The micro-batch of one device, and how it is computed."""

    num_rows: int
    row_length: int
    """T, columns: tokens, or twice as many for block diffusion, which appends the clean row."""
    num_selected: int
    """M, tokens with loss."""
    compute_bytes: int
    """c, bytes per number in matrix products."""
    kernel: AttentionKernel
    """Attention kernel, never `auto`."""
    device: str
    """torch device type."""
    is_packed: bool = False
    """Whether rows contain several documents, for which `sdpa` needs a mask."""
    stream_bytes: int = 4
    """s, bytes per number in the residual stream."""
    num_tensor: int = 1
    """P, devices of tensor parallelism."""
    recomputation: ActivationCheckpointing = ActivationCheckpointing.none
    """Activations that the backward pass recomputes."""
    lora: LoraConfig | None = None
    """Adapters, if only those are trained."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.num_rows * self.row_length

    def shared(self, parallel: ParallelConfig, world_size: int) -> "MicroBatch":
        """The micro-batch as computed by each of `world_size` devices under this parallelism."""
        is_sharded = parallel.resolve(world_size) is Strategy.fsdp
        return replace(
            self,
            stream_bytes=self.compute_bytes if is_sharded else 4,
            num_tensor=parallel.tensor_parallel,
            recomputation=parallel.activation_checkpointing,
        )


@dataclass(frozen=True)
class StepMemory:
    """Memory of one device in a training step, bytes."""

    weights: int
    gradients: int
    optimizer: int
    """Optimizer state."""
    moving_average: int
    """Exponential moving average of the weights."""
    reference: int
    """Frozen copy of the trained weights, in alignment."""
    casts: int
    """Copies of weights for matrix products: of autocast, or gathered by FSDP."""
    activations: int
    """Activations stored for the backward pass."""
    recomputed: int
    """Activations of the layer that the backward pass recomputes at a time."""
    head: int
    """LM head and loss: logits and the gradient of the head's weight."""
    embedding_gradient: int
    """Second gradient of a tied embedding."""
    checkpoint: int
    """Size of a checkpoint on disk, all devices together."""
    holds_gradients: bool
    """Whether memory of gradients is in use during the forward pass: by those of earlier micro-batches, or as DDP's
    buckets."""

    @property
    def state(self) -> int:
        """Bytes held between steps."""
        return self.weights + self.optimizer + self.moving_average + self.reference

    @property
    def peak(self) -> int:
        """Peak of a step. Activations are freed as gradients are allocated: it is at one end of the backward pass."""
        first = (
            self.casts
            + self.activations
            + max(self.head, self.recomputed)
            + (self.gradients if self.holds_gradients else 0)
        )
        last = self.casts + self.gradients + self.embedding_gradient
        return self.state + max(first, last)


def step_memory(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    batch: MicroBatch,
    *,
    has_moving_average: bool = False,
    is_accumulating: bool = False,
    parallel: ParallelConfig = _UNSHARDED,
    world_size: int = 1,
    has_reference: bool = False,
) -> StepMemory:
    """Estimates the memory of a training step on each of `world_size` devices.

    has_reference: whether a frozen copy of the trained weights is held.
    """
    trained = trained_shapes(model, batch.lora)
    adapters = num_adapter_parameters(model, batch.lora) or 0
    parameters, matrices = num_parameters(model) + adapters, num_linear_parameters(model)
    is_sharded = parallel.resolve(world_size) is Strategy.fsdp
    _, num_parts, num_tensor = parallel.mesh_shape(world_size) if is_sharded else (1, 1, 1)
    whole = parameters - matrices + matrices // num_tensor
    per_device = whole // num_parts
    whole_trained = whole if batch.lora is None else adapters
    moments = optimizer_bytes(trained, optimizer)
    has_whole_gradients = is_sharded and is_accumulating and not parallel.reduce_every_micro_batch
    moving_average = 4 * parameters if has_moving_average else 0
    reference = 4 * whole_trained if has_reference else 0
    is_recomputed = batch.recomputation is not ActivationCheckpointing.none
    table = model.known_vocab_size * model.hidden_size
    return StepMemory(
        weights=4 * per_device,
        gradients=4 * (whole_trained if has_whole_gradients else whole_trained // num_parts),
        optimizer=moments * per_device // parameters,
        moving_average=moving_average,
        reference=reference // num_parts,
        casts=gathered_bytes(model, batch) if is_sharded else 2 * (matrices + table) if batch.compute_bytes == 2 else 0,
        activations=activation_bytes(model, batch),
        recomputed=recomputed_bytes(model, batch) if is_recomputed else 0,
        head=head_bytes(model, batch),
        # for a moment a tied embedding has two gradients, as input and as LM head
        embedding_gradient=4 * table if model.tie_word_embeddings and batch.lora is None else 0,
        checkpoint=4 * parameters + moments + moving_average + reference,
        holds_gradients=is_accumulating or parallel.resolve(world_size) is Strategy.ddp,
    )


def gathered_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """Weights that FSDP holds at once: a block, the prefetched one, unreduced gradients of a block, and all that is not
    in blocks."""
    matrices = num_linear_parameters(model)
    block = matrices // model.num_hidden_layers // batch.num_tensor
    return batch.compute_bytes * (3 * block + num_parameters(model) - matrices)


def trained_shapes(model: ModelConfig, lora: LoraConfig | None = None) -> Mapping[str, tuple[int, ...]]:
    """Shapes of the trained parameters by name."""
    return _model_shapes(model) if lora is None else adapter_shapes(model, lora)


@cache  # building the model on the meta device takes as long as all other estimates of a run
def _model_shapes(model: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    return tensor_shapes(model)


def optimizer_bytes(shapes: Mapping[str, tuple[int, ...]], optimizer: OptimizerConfig) -> int:
    """Bytes of optimizer state: two moments for AdamW, one momentum for matrices of Muon; no step counters."""
    if isinstance(optimizer, AdamW8bitConfig):
        return sum(_eight_bit_bytes(math.prod(shape)) for shape in shapes.values())
    has_one = [
        isinstance(optimizer, MuonConfig) and is_muon_parameter(name, len(shape)) for name, shape in shapes.items()
    ]
    return sum((4 if one else 8) * math.prod(shape) for one, shape in zip(has_one, shapes.values(), strict=True))


def _eight_bit_bytes(count: int) -> int:
    """8-bit AdamW: for each of two moments a byte per number, a float32 per block of 256 and a table of 256 float32;
    float32 moments for tensors that are small or not divisible into blocks."""
    return 2 * (count + 4 * (count // 256) + 1024) if count >= 4096 and count % 256 == 0 else 8 * count


def activation_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """Activations stored for the backward pass: L · N · (bytes per token and layer), and the rotary angles."""
    angles = 4 * model.head_dim + 8
    return batch.num_tokens * (model.num_hidden_layers * stored_layer_bytes(model, batch) + angles)


def recomputed_activation_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """Activations if every layer were recomputed: the input of each, and one layer in full."""
    inputs = batch.stream_bytes * model.hidden_size * model.num_hidden_layers
    return batch.num_tokens * (inputs + layer_bytes(model, batch))


def recomputed_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """A recomputed layer in the backward pass: its activations and two gradients of feed-forward width."""
    gradients = 2 * batch.compute_bytes * model.intermediate_size // batch.num_tensor
    return batch.num_tokens * (layer_bytes(model, batch) + gradients)


def stored_layer_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """Bytes stored per token and layer: all activations, only the input s·D with full recomputation, or with selective
    recomputation also the outputs of linear layers, c·(D + 2W + 2F)/P + c·2D, and the output and log-sum-exp of
    attention, (c·D + 4H)/P, where the kernel's are saved.
    """
    if batch.recomputation is ActivationCheckpointing.none:
        return layer_bytes(model, batch)
    D, c = model.hidden_size, batch.compute_bytes
    if batch.recomputation is ActivationCheckpointing.full:
        return batch.stream_bytes * D
    W = model.num_key_value_heads * model.head_dim
    is_recomputed = batch.kernel in (AttentionKernel.MATMUL, AttentionKernel.FLEX, AttentionKernel.FLASH4)
    attention = 0 if is_recomputed else c * D + 4 * model.num_attention_heads
    shared = c * (D + 2 * W + 2 * model.intermediate_size) + attention
    return batch.stream_bytes * D + 2 * c * D + shared // batch.num_tensor


def layer_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """Bytes of all activations per token and layer.

    - norms: 2·(2s·D + 4); with frozen weights, or on CUDA, only their inputs
    - inputs of the two groups of linear layers: s·D each; 6D and 4D under autocast, which casts for every layer of a
      group separately
    - queries, keys and values c·(D + 2W), or 3D where SDPA needs repeated heads; output of attention c·D; feed-forward
      c·4F
    - explicit attention scores c·H·T, or log-sum-exp 4H, plus a mask c·T for `sdpa` on packed rows
    - adapters: c times the rank each

    Heads and feed-forward are divided among P devices.
    """
    D, H, c = model.hidden_size, model.num_attention_heads, batch.compute_bytes
    W = model.num_key_value_heads * model.head_dim
    # on CUDA the norm is one kernel that stores only its input; elsewhere also the normalised input
    s = batch.stream_bytes
    norms = 2 * ((s if batch.device == "cuda" or batch.lora is not None else 2 * s) * D + 4)
    adapters = 0 if batch.lora is None else c * batch.lora.rank * len(batch.lora.targets)
    inputs = 2 * s * D if c == s else 10 * D
    has_mask = batch.kernel is AttentionKernel.SDPA and batch.is_packed
    if batch.kernel is AttentionKernel.SDPA and not sdpa_takes_groups(batch.device, c == 2, has_mask):
        W = D
    scores = c * H * batch.row_length if batch.kernel is AttentionKernel.MATMUL else 4 * H
    if has_mask:
        scores += c * batch.row_length
    return norms + inputs + adapters + (c * (2 * D + 2 * W + 4 * model.intermediate_size) + scores) // batch.num_tensor


def head_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """Bytes of LM head and loss: hidden states of the selected tokens M·(12D + c·D), the gradient of a trained weight,
    and logits and their gradient, 2c·M·V if stored or (10 or 12)·M·C for one slice."""
    M, D, V, c = batch.num_selected, model.hidden_size, model.known_vocab_size, batch.compute_bytes
    states = M * (12 + c) * D
    slices = 2 * c * M * V
    if not stores_logits(M, V, c, batch.device):
        slices = M * default_chunk_size(M, D, batch.device, V) * (12 if c == 4 else 10)
    if batch.lora is not None:
        return states + slices
    return states + max(slices + c * V * D, 4 * V * D + (0 if c == 4 else c * V * D))


def kernel_on(
    model: ModelConfig, device: str, compute_bytes: int, row_length: int, *, has_annealing: bool = False
) -> AttentionKernel:
    """The kernel that a model selects on a device that need not be present; `choose_kernel` inspects this machine.

    has_annealing: whether attention grows from causal to bidirectional, with a mask within segments.
    """
    is_masked = model.block_length is not None or has_annealing
    is_default = model.attention is AttentionKernel.AUTO and device == "cuda" and is_masked
    if is_default or model.attention is AttentionKernel.FLEX:
        fits_flex = not is_masked or (model.block_length is not None and model.head_dim >= NARROWEST_FLEX_HEAD)
        return AttentionKernel.FLEX if fits_flex else AttentionKernel.SDPA
    if model.attention is not AttentionKernel.AUTO:
        return model.attention
    if device == "cuda":
        is_taken = compute_bytes == 2 and takes_heads(AttentionKernel.VARLEN, model.head_dim)
        return AttentionKernel.VARLEN if is_taken else AttentionKernel.SDPA
    is_short = row_length <= LONGEST_MATMUL_ROW
    return AttentionKernel.MATMUL if is_short and compute_bytes == 2 else AttentionKernel.SDPA
