"""What does a training step hold on a device, part by part?

Shapes: N tokens of a micro-batch, T of a row, M masked tokens, L layers, D width, W key-value width, F feed-forward
width, H heads, V vocabulary, C vocabulary entries of one slice of the LM head. c: bytes of a number in the matrix
products, 4 or, under autocast, 2. Weights, gradients, optimizer and residual stream are float32 always.
"""

import math
from dataclasses import dataclass

from lit_illada.model.attention import LONGEST_MATMUL_ROW
from lit_illada.model.config import AttentionKernel, ModelConfig, num_linear_parameters, num_parameters
from lit_illada.model.hf import tensor_shapes
from lit_illada.model.lm_head import default_chunk_size
from lit_illada.training.optim import AdamW8bitConfig, MuonConfig, OptimizerConfig


@dataclass(frozen=True)
class MicroBatch:
    """What a device takes at once. num_selected: tokens that carry loss. kernel: never `auto`.

    is_packed: rows hold several documents, for which `sdpa` needs a mask.
    """

    num_rows: int
    row_length: int
    num_selected: int
    compute_bytes: int
    kernel: AttentionKernel
    device: str
    is_packed: bool = False

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.row_length


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one device.

    casts: the weights as autocast multiplies them. activations: what the layers keep for the backward pass. head: of
    the LM head and the loss, its logits and the gradient of its weight. is_accumulating: gradients lie there from the
    micro-batch before.
    """

    weights: int
    gradients: int
    optimizer: int
    moving_average: int
    casts: int
    activations: int
    head: int
    embedding_gradient: int
    is_accumulating: bool

    @property
    def state(self) -> int:
        return self.weights + self.optimizer + self.moving_average

    @property
    def checkpoint(self) -> int:
        return self.state

    @property
    def peak(self) -> int:
        """Activations go while gradients come, so that the most is held at one of the backward pass's two ends."""
        first = self.casts + self.activations + self.head + (self.gradients if self.is_accumulating else 0)
        last = self.casts + self.gradients + self.embedding_gradient
        return self.state + max(first, last)


def step_memory(
    model: ModelConfig,
    optimizer: OptimizerConfig,
    batch: MicroBatch,
    *,
    has_moving_average: bool = False,
    is_accumulating: bool = False,
) -> StepMemory:
    parameters = num_parameters(model)
    table = model.known_vocab_size * model.hidden_size
    return StepMemory(
        weights=4 * parameters,
        gradients=4 * parameters,
        optimizer=optimizer_bytes(model, optimizer),
        moving_average=4 * parameters if has_moving_average else 0,
        casts=2 * (num_linear_parameters(model) + table) if batch.compute_bytes == 2 else 0,
        activations=activation_bytes(model, batch),
        head=head_bytes(model, batch),
        # a tied embedding has its gradient as input and as output for a moment
        embedding_gradient=4 * table if model.tie_word_embeddings else 0,
        is_accumulating=is_accumulating,
    )


def optimizer_bytes(model: ModelConfig, optimizer: OptimizerConfig) -> int:
    """AdamW keeps two moments, Muon one momentum of the layers' matrices. AdamW's counters of steps are left out."""
    if isinstance(optimizer, AdamW8bitConfig):
        return sum(_eight_bit_bytes(math.prod(shape)) for shape in tensor_shapes(model).values())
    matrices = num_linear_parameters(model) if isinstance(optimizer, MuonConfig) else 0
    return 4 * matrices + 8 * (num_parameters(model) - matrices)


def _eight_bit_bytes(count: int) -> int:
    """A byte a number and four a block of 256, for two moments, and either's table of 256 values; float32 for tensors
    that are small or do not divide into blocks."""
    return 2 * (count + 4 * (count // 256) + 1024) if count >= 4096 and count % 256 == 0 else 8 * count


def activation_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """L · N · (bytes a token and layer) and the rotation's angles, kept from the forward to the backward pass."""
    angles = 4 * model.head_dim + 8
    return batch.num_tokens * (model.num_hidden_layers * layer_bytes(model, batch) + angles)


def recomputed_activation_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """Were every layer computed again in the backward pass: each one's input, and one layer in full."""
    return batch.num_tokens * (4 * model.hidden_size * model.num_hidden_layers + layer_bytes(model, batch))


def layer_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """A token's, in one layer.

    Two norms 2·(8D + 4). The inputs of the two groups of linear layers, 4D each; 6D and 4D under autocast, which casts
    for every layer of a group anew. Queries, keys and values c·(D + 2W), attention's output c·D, the feed-forward's
    four c·4F. Of attention c·H·T explicit scores or 4H for their sums, and c·T of mask for `sdpa` on packed rows.
    """
    D, H, c = model.hidden_size, model.num_attention_heads, batch.compute_bytes
    W = model.num_key_value_heads * model.head_dim
    # on CUDA the norm is one kernel and keeps its input alone; elsewhere also what its weight is multiplied with
    norms = 2 * ((4 if batch.device == "cuda" else 8) * D + 4)
    inputs = 8 * D if c == 4 else 10 * D
    scores = c * H * batch.row_length if batch.kernel is AttentionKernel.MATMUL else 4 * H
    if batch.kernel is AttentionKernel.SDPA and batch.is_packed:
        scores += c * batch.row_length
    return norms + inputs + c * (2 * D + 2 * W + 4 * model.intermediate_size) + scores


def head_bytes(model: ModelConfig, batch: MicroBatch) -> int:
    """The selected tokens' states M·(12D + c·D), the gradient of the weight, and the logits: 12·M·V where they are
    made at once, of one slice (10 or 12)·M·C where they are made slice by slice."""
    M, D, V, c = batch.num_selected, model.hidden_size, model.known_vocab_size, batch.compute_bytes
    C = default_chunk_size(M, D, batch.device)
    states = M * (12 + c) * D
    if V <= C:
        return states + max(12 * M * V, 4 * M * V + 4 * V * D)
    slices = M * C * (12 if c == 4 else 10)
    return states + max(slices + c * V * D, 4 * V * D + (0 if c == 4 else c * V * D))


def kernel_on(wanted: AttentionKernel, device: str, compute_bytes: int, row_length: int) -> AttentionKernel:
    """The kernel that `auto` takes on such a device, which need not be here; `choose_kernel` asks this machine."""
    if wanted is not AttentionKernel.AUTO:
        return wanted
    if device == "cuda":
        return AttentionKernel.VARLEN if compute_bytes == 2 else AttentionKernel.SDPA
    is_short = row_length <= LONGEST_MATMUL_ROW
    return AttentionKernel.MATMUL if is_short and compute_bytes == 2 else AttentionKernel.SDPA
