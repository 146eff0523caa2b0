"""Speed of the training step against a plain implementation of the demo's model and objective.

The plain implementation computes the logits of every token and a dense attention mask, without fused operations, under
bfloat16 autocast if the demo uses it.
"""

from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_illada import build
from lit_illada.batch import Layout, TokenBatch, TokenScores
from lit_illada.bench.figure import Figure, figure, seconds
from lit_illada.bench.training_step import TrainingStep
from lit_illada.config import PretrainConfig, load
from lit_illada.data.prepare.prepare import prepare
from lit_illada.model.attention import visible_tokens
from lit_illada.model.transformer import Transformer
from lit_illada.training.optim import build_optimizer


def measure(repeats: int = 7, steps: int = 4) -> dict[str, Any]:
    """Figures of `measure_model` for the demo's model, and under its name for pico, the model of small sweeps."""
    return {**measure_model("nano", repeats, steps), "pico": measure_model("pico", repeats, steps)}


def measure_model(model: str, repeats: int, steps: int) -> dict[str, Figure]:
    """Tokens/s of both steps, which alternate, and the ratio ours / plain within a repeat. Goal: at least 1.3."""
    with TemporaryDirectory() as scratch:
        config = load("pretrain", ["experiment=demo", f"model={model}", f"data.dir={Path(scratch) / 'stdlib'}"])
        prepare(config.data)
        ours, plain, batches = both(config, steps)
    num_tokens = sum(batch.input_ids.numel() for batch in batches)

    def rate(step: TrainingStep) -> float:
        return num_tokens / seconds(lambda: [step(batch) for batch in batches], step.device)

    # warm-up
    for step in (ours, plain):
        rate(step)
    pairs = [(rate(ours), rate(plain)) for _ in range(repeats)]
    return {
        "ours_tokens_per_s": figure([rate for rate, _ in pairs]),
        "plain_tokens_per_s": figure([rate for _, rate in pairs]),
        "ratio": figure([first / second for first, second in pairs]),
    }


def both(config: PretrainConfig, num_batches: int) -> tuple[TrainingStep, TrainingStep, list[TokenBatch]]:
    """Our step and the plain one, with equal weights, and the first `num_batches` batches of the run."""
    datamodule = build.build_datamodule(config)
    config = config.resolve(datamodule.tokenizer.vocab_size)
    accelerator, precision = config.trainer.hardware()
    steps = []
    for is_plain in (False, True):
        transformer = build.build_model(config.model, config.seed)
        model = PlainTransformer(transformer) if is_plain else transformer
        model = model.to(accelerator.device)
        objective = build.build_objective(
            config.objective, datamodule.tokenizer, config.seed, config.trainer.batch_rows
        ).to(accelerator.device)  # type: ignore[attr-defined]
        optimizer = build_optimizer(model, config.optim.optimizer)
        steps.append(TrainingStep(model, config.model, objective, optimizer, precision, accelerator.device))
    return steps[0], steps[1], list(islice(datamodule.train_dataloader(), num_batches))


class PlainTransformer(nn.Module):
    """The same model, written plainly: logits of every token, a dense mask, no fused operations.

    Parameters have the same names as in Transformer, so that weights and optimizer groups apply.
    """

    def __init__(self, like: Transformer) -> None:
        super().__init__()
        self.config = like.config
        # shares the submodules; only forward differs
        self.model, self.lm_head = like.model, like.lm_head

    def forward(self, input_ids: Tensor, layout: Layout, select: Tensor, targets: Tensor) -> TokenScores:
        """Scores the selected tokens, as Transformer does."""
        config, backbone = self.config, self.model
        x = backbone.embed_tokens(input_ids)
        mask = visible_tokens(layout, config.is_causal)
        half = torch.arange(0, config.head_dim, 2, device=x.device).float() / config.head_dim
        angles = layout.position_ids[:, None, :, None].float() * config.rope_theta**-half
        cos, sin = (torch.cat([table, table], -1) for table in (angles.cos(), angles.sin()))
        for layer in backbone.layers:
            x = x + self._attention(layer.self_attn, layer.input_layernorm(x), mask, cos, sin)  # type: ignore[arg-type, operator]
            x = x + layer.mlp(layer.post_attention_layernorm(x))  # type: ignore[operator]
        head = backbone.embed_tokens if self.lm_head is None else self.lm_head
        logits = F.linear(backbone.norm(x), head.weight).float()
        wanted = torch.zeros_like(input_ids).masked_scatter(select, targets)
        nll = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view_as(wanted)
        is_correct = logits.detach().argmax(-1) == wanted
        return TokenScores(nll[select], is_correct[select])

    def _attention(self, attention: Any, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        q, k, v = (project(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2) for project in projections)
        q, k = ((heads * cos + _rotate_half(heads) * sin).to(v.dtype) for heads in (q, k))
        out = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=q.shape[1] != k.shape[1])
        return attention.o_proj(out.transpose(1, 2).flatten(-2))


def _rotate_half(heads: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    return torch.cat([-second, first], -1)
