"""The benchmarked training step: corruption, forward, loss, backward, clipping and optimizer, without a loop.

Used by the step, plain and GPU benchmarks and by the profile.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from lit_illada.batch import Layout, TokenBatch
from lit_illada.config import load
from lit_illada.model.config import AttentionKernel, ModelConfig
from lit_illada.model.flops import training_flops
from lit_illada.model.transformer import Transformer
from lit_illada.objective.config import DiffusionObjectiveConfig
from lit_illada.objective.diffusion import DiffusionObjective
from lit_illada.training.config.optim import OPTIMIZERS
from lit_illada.training.config.parallel import ActivationCheckpointing
from lit_illada.training.config.trainer import Precision
from lit_illada.training.distributed.activation_checkpointing import checkpoint_activations
from lit_illada.training.optim import build_optimizer

# of the models whose file leaves it to the tokenizer: the demo's, and one for larger models
_VOCABULARIES = {"pico": 4096, "nano": 4096}
_VOCABULARY = 32_768
_DOCUMENT = 600  # tokens of a document, on average
_CLIP_NORM = 1.0


@dataclass(frozen=True)
class Case:
    """model: a file of conf/model. optimizer: a row of the table. num_rows × row_length tokens a step, packed."""

    model: str
    num_rows: int
    row_length: int
    attention: AttentionKernel = AttentionKernel.AUTO
    precision: Precision = Precision.bf16_mixed
    is_compiled: bool = False
    recomputation: ActivationCheckpointing = ActivationCheckpointing.none
    optimizer: str = "adamw"

    @property
    def name(self) -> str:
        """What differs from a plain default, told in full: it is the figure's name."""
        parts = [f"{self.num_rows}x{self.row_length}", self.attention.value, self.precision.value]
        parts += ["compiled"] if self.is_compiled else []
        parts += [f"recompute-{self.recomputation}"] if self.recomputation is not ActivationCheckpointing.none else []
        return " ".join([self.model, *parts, self.optimizer])

    def config(self) -> ModelConfig:
        model: ModelConfig = load("pretrain", [f"model={self.model}", "data.row_length=8"]).model
        longest = max(self.row_length, model.max_position_embeddings)
        return replace(model, attention=self.attention, max_position_embeddings=longest).with_vocab_size(
            model.vocab_size or _VOCABULARIES.get(self.model, _VOCABULARY)
        )


class TrainingStep:
    """A model on a device with its objective and optimizer; called with a batch, it does one step.

    model: whatever takes noisy ids, a layout, a selection and targets and gives TokenScores.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ModelConfig,
        objective: DiffusionObjective,
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
        """Raises UserError where the case cannot run here."""
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
        optimizer = build_optimizer(model, OPTIMIZERS[case.optimizer]())
        return cls(model, config, objective.to(device), optimizer, case.precision, device)

    def __call__(self, batch: TokenBatch) -> Tensor:
        """The loss of the step, detached."""
        loss = self.backward(batch)
        with record_function("clip"):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP_NORM)
        with record_function("optimizer"):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss

    def backward(self, batch: TokenBatch) -> Tensor:
        """Forward and backward: the gradients lie on the parameters."""
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
        """Of the last step, which had this batch: its masked tokens count."""
        return training_flops(self.config, batch.layout, self.num_selected, copies=self.copies)


def batches(case: Case, vocab_size: int, seed: int = 0) -> Iterator[TokenBatch]:
    """Endless random tokens in packed documents, of lengths as chance has them: most are short, few fill a row."""
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
    """Their lengths, which fill a row; the last is cut."""
    left = row_length
    while left:
        drawn = torch.empty(()).exponential_(1 / _DOCUMENT, generator=generator)
        length = min(left, 1 + int(drawn))
        yield length
        left -= length


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Weights of an ordinary size, drawn where they lie: a step's speed does not depend on which."""
    for parameter in model.parameters():
        parameter.normal_(0, 0.02) if parameter.ndim > 1 else parameter.fill_(1)
