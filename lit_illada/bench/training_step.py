"""The benchmarked training step: corruption, forward, loss, backward, clipping and optimizer, without a loop.

Used by the step, plain and GPU benchmarks and by the profile.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from lit_illada.batch import Layout, TokenBatch
from lit_illada.bench.precision import default_precision, require_bfloat16
from lit_illada.config import load
from lit_illada.model.config import AttentionKernel, ModelConfig
from lit_illada.model.flops import training_flops
from lit_illada.model.transformer import Transformer
from lit_illada.objective.autoregressive import AutoregressiveObjective
from lit_illada.objective.config import DiffusionObjectiveConfig
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.training.config.optim import OPTIMIZERS
from lit_illada.training.config.parallel import ActivationCheckpointing
from lit_illada.training.config.trainer import Precision
from lit_illada.training.distributed.activation_checkpointing import checkpoint_activations
from lit_illada.training.optim import JointOptimizer, build_optimizer

# for models whose config leaves the vocabulary size to the tokenizer: the demo's, and that of larger models
_VOCABULARIES = {"pico": 4096, "nano": 4096}
_VOCABULARY = 32_768
_DOCUMENT = 600  # mean tokens per document
_CLIP_NORM = 1.0


@dataclass(frozen=True)
class Case:
    """The setting of a training step."""

    model: str
    """Name of a file in conf/model."""
    num_rows: int
    """Rows per step."""
    row_length: int
    """Tokens per row."""
    attention: AttentionKernel = AttentionKernel.AUTO
    precision: Precision = Precision.auto
    is_compiled: bool = False
    recomputation: ActivationCheckpointing = ActivationCheckpointing.none
    optimizer: str = "adamw"
    """Key of OPTIMIZERS, or "torch-muon": torch's Muon, one matrix after another, instead of ours."""

    @property
    def name(self) -> str:
        """Key of the figures: model, sizes, kernel, precision, optimizer, and the options that are on."""
        parts = [f"{self.num_rows}x{self.row_length}", self.attention.value, self.precision.value]
        parts += ["compiled"] if self.is_compiled else []
        parts += [f"recompute-{self.recomputation}"] if self.recomputation is not ActivationCheckpointing.none else []
        return " ".join([self.model, *parts, self.optimizer])

    def on(self, device: torch.device) -> "Case":
        """The case with the precision that `auto` chooses on a device."""
        return self if self.precision is not Precision.auto else replace(self, precision=default_precision(device))

    def config(self) -> ModelConfig:
        """The model config with known vocabulary size and enough positions for the row length."""
        model: ModelConfig = load("pretrain", [f"model={self.model}", "data.row_length=8"]).model
        longest = max(self.row_length, model.max_position_embeddings)
        return replace(model, attention=self.attention, max_position_embeddings=longest).with_vocab_size(
            model.vocab_size or _VOCABULARIES.get(self.model, _VOCABULARY)
        )


class TrainingStep:
    """A model on a device with its objective and optimizer; a call runs one step on a batch.

    model: maps noisy ids, layout, selection and targets to TokenScores.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ModelConfig,
        objective: DiffusionObjective | AutoregressiveObjective,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        device: torch.device,
    ) -> None:
        self.model = model
        self.config = config
        self.objective = objective
        self.optimizer = optimizer
        self.precision = precision
        self.device = device

    @classmethod
    def of(cls, case: Case, device: torch.device) -> "TrainingStep":
        """Builds model, objective and optimizer. Raises UserError if the case cannot run on this machine."""
        case = case.on(device)
        if case.precision is Precision.bf16_mixed:
            require_bfloat16(device)
        config = case.config()
        with torch.device(device):
            model = Transformer(config)
        fill(model)
        for layer in model.model.layers:
            checkpoint_activations(layer, case.recomputation)
        if case.is_compiled:
            for layer in model.model.layers:
                layer.compile()
        mask_token_id = config.known_vocab_size - 1
        objective = DiffusionObjective(DiffusionObjectiveConfig(), mask_token_id, 0, case.num_rows)
        optimizer = _optimizer(model, case.optimizer)
        return cls(model, config, objective.to(device), optimizer, case.precision, device)

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Runs a step; returns its loss, nats per counted token, detached."""
        loss = self.backward(batch)
        self.update()
        return loss

    def update(self) -> None:
        """Clips the gradients, runs the optimizer and clears the gradients."""
        with record_function("clip"):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM)
        with record_function("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()

    def backward(self, batch: TokenBatch) -> Tensor:
        """Runs forward and backward, leaving gradients on the parameters; returns the detached loss."""
        with record_function("data"):
            batch = batch.to(self.device)
        with record_function("corruption"):
            noisy = self.objective.corrupt(batch)
        is_mixed = self.precision is Precision.bf16_mixed
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_mixed):
            scores = self.model(noisy.noisy_ids, noisy.layout, noisy.is_masked, noisy.targets)
            with record_function("objective"):
                summed = self.objective.loss(scores, noisy)
                loss = summed.sum / summed.count
        self.num_selected, self.copies = noisy.targets.numel(), len(noisy.noisy_ids) // len(batch.row_ids)
        loss.backward()
        return loss.detach()

    def flops(self, batch: TokenBatch) -> int:
        """FLOPs of the last step, which must have used this batch; they depend on the number of masked tokens."""
        return training_flops(self.config, batch.layout, self.num_selected, copies=self.copies)


def _optimizer(model: nn.Module, name: str) -> torch.optim.Optimizer:
    if name != "torch-muon":
        return build_optimizer(model, OPTIMIZERS[name]())
    joint = build_optimizer(model, OPTIMIZERS["muon"]())
    matrices, *rest = joint.param_groups
    return JointOptimizer([torch.optim.Muon([matrices]), torch.optim.AdamW(rest, fused=True)])


def batches(case: Case, vocab_size: int, seed: int = 0) -> Iterator[TokenBatch]:
    """Endless batches of random tokens in packed documents with exponentially distributed lengths."""
    generator = torch.Generator().manual_seed(seed)
    B, T = case.num_rows, case.row_length
    step = 0
    while True:
        lengths = [length for _ in range(B) for length in documents(T, generator)]
        layout = Layout.from_lengths(torch.tensor(lengths), T)
        ids = torch.randint(vocab_size - 1, (B, T), generator=generator)
        row_ids = torch.arange(step * B, (step + 1) * B)
        yield TokenBatch(ids, torch.ones_like(ids, dtype=torch.bool), row_ids, layout)
        step += 1


def documents(row_length: int, generator: torch.Generator) -> Iterator[int]:
    """Yields document lengths that fill a row; the last one is truncated."""
    left = row_length
    while left:
        drawn = torch.empty(()).exponential_(1 / _DOCUMENT, generator=generator)
        length = min(left, 1 + int(drawn))
        yield length
        left -= length


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Fills the weights with random values in place, on their device; the speed does not depend on the values."""
    for parameter in model.parameters():
        parameter.normal_(0, 0.02) if parameter.ndim > 1 else parameter.fill_(1)
