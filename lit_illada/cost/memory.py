"""What does a training step hold on a device, part by part?

Shapes: N tokens of a micro-batch, T of a row, M masked tokens, L layers, D width, W key-value width, F feed-forward
width, H heads, V vocabulary, C vocabulary entries of one slice of the LM head. c: bytes of a number in the matrix
products, 4 or, in bfloat16, 2. s: of one in the residual stream, 4, or c where fsdp gathers the weights. P: devices
that share a layer's heads and MLP. Weights, gradients and optimizer are float32 always.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from lit_illada.checkpoints.hf import tensor_shapes
from lit_illada.model.attention import LONGEST_MATMUL_ROW, takes_heads
from lit_illada.model.config import AttentionKernel, ModelConfig, num_linear_parameters, num_parameters
from lit_illada.model.lm_head import default_chunk_size
from lit_illada.model.lora import adapter_shapes, num_adapter_parameters
from lit_illada.model.lora_config import LoraConfig
from lit_illada.training.config.optim import AdamW8bitConfig, MuonConfig, OptimizerConfig
from lit_illada.training.config.parallel import ActivationCheckpointing, ParallelConfig, Strategy
from lit_illada.training.optim import is_muon_parameter

ALONE = ParallelConfig()


@dataclass(frozen=True)
class MicroBatch:
    """What a device takes at once. num_selected: tokens that carry loss. kernel: never `auto`.

    is_packed: rows hold several documents, for which `sdpa` needs a mask. stream_bytes: s. num_tensor: P.
    lora: adapters are all that is trained.
    """

    num_rows: int
    row_length: int
    num_selected: int
    compute_bytes: int
    kernel: AttentionKernel
    device: str
    is_packed: bool = False
    stream_bytes: int = 4
    num_tensor: int = 1
    recomputation: ActivationCheckpointing = ActivationCheckpointing.none
    lora: LoraConfig | None = None

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.row_length

    def shared(self, parallel: ParallelConfig, world_size: int) -> "MicroBatch":
        """The same on each of so many devices."""
        is_cut = parallel.resolve(world_size) is Strategy.fsdp
        return replace(
            self,
            stream_bytes=self.compute_bytes if is_cut else 4,
            num_tensor=parallel.tensor_parallel,
            recomputation=parallel.activation_checkpointing,
        )


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one device.

    casts: the weights as they are multiplied: autocast's, or those that fsdp gathers. activations: what the layers keep
    for the backward pass. recomputed: what one of them computes again in it. head: of the LM head and the loss, its
    logits and the gradient of its weight. is_accumulating: gradients lie there from the micro-batch before.
    checkpoint: on disk, of all devices together.
    """

    weights: int
    gradients: int
    optimizer: int
    moving_average: int
    casts: int
    activations: int
    recomputed: int
    head: int
    embedding_gradient: int
    checkpoint: int
    is_accumulating: bool

    @property
    def state(self) -> int:
        return self.weights + self.optimizer + self.moving_average

    @property
    def peak(self) -> int:
        """Activations go while gradients come, so that the most is held at one of the backward pass's two ends."""
        first = (
            self.casts
            + self.activations
            + max(self.head, self.recomputed)
            + (self.gradients if self.is_accumulating else 0)
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
    parallel: ParallelConfig = ALONE,
    world_size: int = 1,
) -> StepMemory:
    trained = trained_shapes(model, batch.lora)
    adapters = num_adapter_parameters(model, batch.lora) or 0
    parameters, matrices = num_parameters(model) + adapters, num_linear_parameters(model)
    is_cut = parallel.resolve(world_size) is Strategy.fsdp
    _, num_parts, num_tensor = parallel.mesh_shape(world_size) if is_cut else (1, 1, 1)
    whole = parameters - matrices + matrices // num_tensor
    held = whole // num_parts
    whole_trained = whole if batch.lora is None else adapters
    moments = optimizer_bytes(trained, optimizer)
    keeps_whole_gradients = is_cut and is_accumulating and not parallel.reduce_every_micro_batch
    moving_average = 4 * parameters if has_moving_average else 0
    is_recomputed = batch.recomputation is not ActivationCheckpointing.none
    table = model.known_vocab_size * model.hidden_size
    return StepMemory(
        weights=4 * held,
        gradients=4 * (whole_trained if keeps_whole_gradients else whole_trained // num_parts),
        optimizer=moments * held // parameters,
        moving_average=moving_average,
        casts=gathered_bytes(model, batch) if is_cut else 2 * (matrices + table) if batch.compute_bytes == 2 else 0,
        activations=activation_bytes(model, batch),
        recomputed=recomputed_bytes(model, batch) if is_recomputed else 0,
        head=head_bytes(model, batch),
        # a tied embedding has its gradient as input and as output for a moment
        embedding_gradient=4 * table if model.tie_word_embeddings and batch.lora is None else 0,
        checkpoint=4 * parameters + moments + moving_average,
        is_accumulating=is_accumulating,
    )


def gathered_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """Of fsdp at once: a block, the next one, a block's gradients not yet summed, and what lies outside of blocks."""
    matrices = num_linear_parameters(model)
    block = matrices // model.num_hidden_layers // batch.num_tensor
    return batch.compute_bytes * (3 * block + num_parameters(model) - matrices)


def trained_shapes(model: ModelConfig, lora: LoraConfig | None = None) -> dict[str, tuple[int, ...]]:
    """Of all that is trained, by name."""
    return tensor_shapes(model) if lora is None else adapter_shapes(model, lora)


def optimizer_bytes(shapes: Mapping[str, tuple[int, ...]], optimizer: OptimizerConfig) -> int:
    """AdamW keeps two moments, Muon one momentum of the layers' matrices. AdamW's counters of steps are left out."""
    if isinstance(optimizer, AdamW8bitConfig):
        return sum(_eight_bit_bytes(math.prod(shape)) for shape in shapes.values())
    has_one = [
        isinstance(optimizer, MuonConfig) and is_muon_parameter(name, len(shape)) for name, shape in shapes.items()
    ]
    return sum((4 if one else 8) * math.prod(shape) for one, shape in zip(has_one, shapes.values(), strict=True))


def _eight_bit_bytes(count: int) -> int:
    """A byte a number and four a block of 256, for two moments, and either's table of 256 values; float32 for tensors
    that are small or do not divide into blocks."""
    return 2 * (count + 4 * (count // 256) + 1024) if count >= 4096 and count % 256 == 0 else 8 * count


def activation_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """L · N · (bytes a token and layer) and the rotation's angles, kept from the forward to the backward pass."""
    angles = 4 * model.head_dim + 8
    return batch.num_tokens * (model.num_hidden_layers * kept_layer_bytes(model, batch) + angles)


def recomputed_activation_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """Were every layer computed again in the backward pass: each one's input, and one layer in full."""
    inputs = batch.stream_bytes * model.hidden_size * model.num_hidden_layers
    return batch.num_tokens * (inputs + layer_bytes(model, batch))


def recomputed_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """One layer in full, and two gradients of the feed-forward's width: its activations stay until it is done."""
    gradients = 2 * batch.compute_bytes * model.intermediate_size // batch.num_tensor
    return batch.num_tokens * (layer_bytes(model, batch) + gradients)


def kept_layer_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """A token's, in one layer: of a recomputed one its input s·D alone; `selective` keeps what its linear layers give,
    c·(D + 2W + 2F)/P and c·2D, and attention's output and sums, (c·D + 4H)/P, but of explicit scores.
    """
    if batch.recomputation is ActivationCheckpointing.none:
        return layer_bytes(model, batch)
    D, c = model.hidden_size, batch.compute_bytes
    if batch.recomputation is ActivationCheckpointing.full:
        return batch.stream_bytes * D
    W = model.num_key_value_heads * model.head_dim
    attention = 0 if batch.kernel is AttentionKernel.MATMUL else c * D + 4 * model.num_attention_heads
    shared = c * (D + 2 * W + 2 * model.intermediate_size) + attention
    return batch.stream_bytes * D + 2 * c * D + shared // batch.num_tensor


def layer_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """A token's, in one layer.

    Two norms 2·(2s·D + 4). The inputs of the two groups of linear layers, s·D each; 6D and 4D under autocast, which
    casts for every layer of a group anew. Queries, keys and values c·(D + 2W), attention's output c·D, the
    feed-forward's four c·4F. Of attention c·H·T explicit scores or 4H for their sums, and c·T of mask for `sdpa` on
    packed rows. Heads and feed-forward are shared by P devices. With adapters the norms are frozen and keep their
    inputs alone, and each adapter keeps c times its rank.
    """
    D, H, c = model.hidden_size, model.num_attention_heads, batch.compute_bytes
    W = model.num_key_value_heads * model.head_dim
    # on CUDA the norm is one kernel and keeps its input alone; elsewhere also what its weight is multiplied with
    s = batch.stream_bytes
    norms = 2 * ((s if batch.device == "cuda" or batch.lora is not None else 2 * s) * D + 4)
    adapters = 0 if batch.lora is None else c * batch.lora.rank * len(batch.lora.targets)
    inputs = 2 * s * D if c == s else 10 * D
    scores = c * H * batch.row_length if batch.kernel is AttentionKernel.MATMUL else 4 * H
    if batch.kernel is AttentionKernel.SDPA and batch.is_packed:
        scores += c * batch.row_length
    return norms + inputs + adapters + (c * (2 * D + 2 * W + 4 * model.intermediate_size) + scores) // batch.num_tensor


def head_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """The selected tokens' states M·(12D + c·D), the gradient of a trained weight, and the logits: 12·M·V where they
    are made at once, of one slice (10 or 12)·M·C where they are made slice by slice."""
    M, D, V, c = batch.num_selected, model.hidden_size, model.known_vocab_size, batch.compute_bytes
    C = default_chunk_size(M, D, batch.device)
    states = M * (12 + c) * D
    if V <= C:
        return states + max(12 * M * V, 4 * M * V + (4 * V * D if batch.lora is None else 0))
    slices = M * C * (12 if c == 4 else 10)
    if batch.lora is not None:
        return states + slices
    return states + max(slices + c * V * D, 4 * V * D + (0 if c == 4 else c * V * D))


def kernel_on(model: ModelConfig, device: str, compute_bytes: int, row_length: int) -> AttentionKernel:
    """The kernel that `auto` takes on such a device, which need not be here; `choose_kernel` asks this machine."""
    if model.attention is not AttentionKernel.AUTO:
        return model.attention
    if device == "cuda":
        is_taken = compute_bytes == 2 and takes_heads(AttentionKernel.VARLEN, model.head_dim)
        return AttentionKernel.VARLEN if is_taken else AttentionKernel.SDPA
    is_short = row_length <= LONGEST_MATMUL_ROW
    return AttentionKernel.MATMUL if is_short and compute_bytes == 2 else AttentionKernel.SDPA
