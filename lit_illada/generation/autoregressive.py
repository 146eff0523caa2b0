"""Autoregressive generation of a causal model: token by token, with a key-value cache.

Shapes: B rows, A of them active in a step, P columns before the first new token, T tokens so far, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_illada.batch import Layout
from lit_illada.errors import UserError
from lit_illada.generation.canvas import Commit, Generation, check_lengths, left_padded
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.draws import Draws
from lit_illada.generation.logit_controls import NO_KINDS, LogitControl, Positions, TokenKinds, default_controls
from lit_illada.generation.loop_control.mitigation import Mitigations
from lit_illada.generation.proposals import Proposals, propose
from lit_illada.generation.reader import LogitsFn
from lit_illada.model.kv_cache import KeyValueCache

# settings without effect here: a causal model generates one token per step, always caches, and has no [M] in its prompt
_DIFFUSION_ONLY = (
    "canvas",
    "commit_rule",
    "commit_schedule",
    "remask",
    "cache",
    "guidance_scale",
    "zero_stop_confidence",
    "on_loop",
    "early_exit",
)


@torch.no_grad()
def generate_autoregressive(
    logits_fn: LogitsFn,
    prompts: Sequence[Tensor],
    config: GenerationConfig,
    *,
    bos_token_id: int,
    mask_token_id: int,
    stop_token_ids: Sequence[int],
    max_position_embeddings: int,
    kinds: TokenKinds = NO_KINDS,
    controls: Sequence[LogitControl] = (),
    row_numbers: Sequence[int] | None = None,
    on_commit: Callable[[Commit], None] | None = None,
) -> Generation:
    """Continues every prompt, (length,) int64 each, until its stop token or to `max_new_tokens`.

    bos_token_id: token before the first token of a text, as in training. Other arguments as in `generate`.
    Raises UserError for a setting that only diffusion models have.
    """
    _refuse_diffusion_settings(config)
    check_lengths(prompts, config.max_new_tokens, max_position_embeddings)
    device = prompts[0].device
    bos = torch.tensor([bos_token_id], device=device)
    token_ids_BT, num_padding = left_padded([torch.cat((bos, prompt)) for prompt in prompts], bos_token_id)
    num_inputs = token_ids_BT.shape[1]
    stops = torch.tensor(list(stop_token_ids), dtype=torch.int64, device=device)
    draws = Draws(config.seed, range(len(prompts)) if row_numbers is None else row_numbers, device)
    mitigations = Mitigations(
        config, kinds, mask_token_id=mask_token_id, stop_token_ids=stops, num_rows=len(prompts),
        prompt_length=num_inputs - 1,
    )  # fmt: skip
    controls = [*default_controls(config.min_new_tokens, mask_token_id, stops), *mitigations.controls, *controls]
    cache, rows = KeyValueCache(), list(range(len(prompts)))
    for step in range(config.max_new_tokens):
        index = torch.tensor(rows, device=device)
        logits_AV = _next_logits(logits_fn, token_ids_BT[index], [num_padding[row] for row in rows], cache, step == 0)
        proposals = _propose(logits_AV, token_ids_BT[index, 1:], index, num_inputs - 1, controls, config, draws)
        token_ids_BT = F.pad(token_ids_BT, (0, 1), value=stops[0].item() if len(stops) else bos_token_id)
        token_ids_BT[index, -1] = proposals.token_ids[:, 0]
        column = num_inputs + step - 1  # of the new token, without the BOS column
        mitigations.committed(rows, slice(column, column + 1), proposals.token_ids, proposals.is_masked)
        if on_commit is not None:
            on_commit(_as_commit(step, num_inputs - 1, token_ids_BT[:, 1:], index, proposals))
        is_stopped_A = torch.isin(proposals.token_ids[:, 0], stops)
        if is_stopped_A.any():
            active = (~is_stopped_A).nonzero()[:, 0].tolist()
            rows = [rows[number] for number in active]
            if not rows:
                break
            cache = cache.of_rows(active)
    return Generation.of(token_ids_BT[:, num_inputs:], stops, step + 1, mitigations.events_of)


def _next_logits(
    logits_fn: LogitsFn, token_ids_AT: Tensor, num_padding: list[int], cache: KeyValueCache, is_first: bool
) -> Tensor:
    """Logits (A, V) float64 after the last token. The first call computes all columns, later ones the newest."""
    num_columns, device = token_ids_AT.shape[1], token_ids_AT.device
    start = 0 if is_first else num_columns - 1
    input_ids = token_ids_AT[:, start:]
    is_last = torch.zeros_like(input_ids, dtype=torch.bool)
    is_last[:, -1] = True
    layout = Layout.left_padded(num_padding, num_columns, device)
    return logits_fn(input_ids, layout, is_last, cache=cache, start=start).to(torch.float64, copy=True)


def _propose(
    logits_AV: Tensor,
    token_ids_AT: Tensor,
    batch_rows_A: Tensor,
    prompt_length: int,
    controls: Sequence[LogitControl],
    config: GenerationConfig,
    draws: Draws,
) -> Proposals:
    """Proposes the next token of every active row from the controlled logits. token_ids: without the BOS column."""
    num_rows, device = len(batch_rows_A), logits_AV.device
    columns_A = torch.full_like(batch_rows_A, token_ids_AT.shape[1])
    number_A = torch.arange(num_rows, device=device)
    positions = Positions(token_ids_AT, number_A, columns_A, prompt_length, batch_rows_A)
    for control in controls:
        logits_AV = control(logits_AV, positions)
    return propose(
        logits_AV,
        torch.ones(num_rows, 1, dtype=torch.bool, device=device),
        draws.of(batch_rows_A.tolist()),
        temperature=config.temperature,
        top_p=config.top_p,
        uncertain_token_ids=batch_rows_A[:0],
    )


def _as_commit(step: int, prompt_length: int, token_ids_BT: Tensor, index: Tensor, proposals: Proposals) -> Commit:
    """The step as `on_commit` callbacks receive it, spread over the whole batch."""

    def last(values_A1: Tensor) -> Tensor:
        values_BT = values_A1.new_zeros(token_ids_BT.shape)
        values_BT[index, -1] = values_A1[:, 0]
        return values_BT

    is_committed_BT = last(proposals.is_masked)
    return Commit(
        0,
        step,
        prompt_length,
        token_ids_BT,
        is_committed_BT,
        torch.zeros_like(is_committed_BT),
        last(proposals.confidence),
        last(proposals.entropy),
    )


def _refuse_diffusion_settings(config: GenerationConfig) -> None:
    default = GenerationConfig()
    for name in _DIFFUSION_ONLY:
        if getattr(config, name) != getattr(default, name):
            raise UserError(
                f"generation.{name} is set, but the model is causal: it generates token by token, and only "
                "max_new_tokens, min_new_tokens, temperature, top_p, seed, thinking_stop and repetition apply"
            )
