"""How does a causal model write text? Token by token, each from all before it, whose keys and values are kept.

Shapes: B rows, A of them in a step, P columns before the first new token, T tokens so far, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_illada.batch import Layout
from lit_illada.errors import UserError
from lit_illada.generation.canvas import Commit, Generation, left_padded, require_room
from lit_illada.generation.config import GenerationConfig
from lit_illada.generation.draws import Draws
from lit_illada.generation.logit_controls import NO_KINDS, LogitControl, Place, TokenKinds, own_controls
from lit_illada.generation.loop_control.mitigation import Mitigations
from lit_illada.generation.proposals import Proposals, propose
from lit_illada.generation.reader import LogitsFn
from lit_illada.model.kv_cache import KeyValueCache

# what a causal model has no use for: it writes one token a step, always from a cache, and its prompt cannot be masked
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
    """Continues every prompt, (length,) int64 each, until its stop token or to the budget; no blocks.

    bos_token_id: what stands before the first token of a text, as in training. The rest as in `generate`. Raises
    UserError for a setting that only denoising has.
    """
    _refuse_diffusion_settings(config)
    require_room(prompts, config.max_new_tokens, max_position_embeddings)
    device = prompts[0].device
    bos = torch.tensor([bos_token_id], device=device)
    token_ids_BT, num_padding = left_padded([torch.cat((bos, prompt)) for prompt in prompts], bos_token_id)
    num_inputs = token_ids_BT.shape[1]
    stops = torch.tensor(list(stop_token_ids), dtype=torch.int64, device=device)
    draws = Draws(config.seed, range(len(prompts)) if row_numbers is None else row_numbers, device)
    mitigations = Mitigations(
        config,
        kinds,
        mask_token_id=mask_token_id,
        stop_token_ids=stops,
        num_rows=len(prompts),
        prompt_length=num_inputs - 1,
    )
    controls = [*own_controls(config.min_new_tokens, mask_token_id, stops), *mitigations.controls, *controls]
    cache, start = KeyValueCache(), 0
    rows = list(range(len(prompts)))
    for step in range(config.max_new_tokens):
        index = torch.tensor(rows, device=device)
        input_ids_AT = token_ids_BT[index, start:]
        layout = Layout.left_padded([num_padding[row] for row in rows], num_inputs + step, device)
        is_last_AT = torch.zeros_like(input_ids_AT, dtype=torch.bool)
        is_last_AT[:, -1] = True
        logits_AV = logits_fn(input_ids_AT, layout, is_last_AT, cache=cache, start=start)
        logits_AV = logits_AV.to(torch.float64, copy=True)
        start = num_inputs + step
        columns_A = torch.full_like(index, start - 1)
        number_A = torch.arange(len(rows), device=device)
        place = Place(token_ids_BT[index, 1:], number_A, columns_A, num_inputs - 1, index)
        for control in controls:
            logits_AV = control(logits_AV, place)
        proposals = propose(
            logits_AV,
            torch.ones(len(rows), 1, dtype=torch.bool, device=device),
            draws.of(rows),
            temperature=config.temperature,
            top_p=config.top_p,
            uncertain_token_ids=stops[:0],
        )
        token_ids_BT = F.pad(token_ids_BT, (0, 1), value=stops[0].item() if len(stops) else bos_token_id)
        token_ids_BT[index, -1] = proposals.token_ids[:, 0]
        mitigations.committed(rows, slice(start - 1, start), proposals.token_ids, proposals.is_masked)
        if on_commit is not None:
            on_commit(_told(step, num_inputs - 1, token_ids_BT[:, 1:], index, proposals))
        is_stopped_A = torch.isin(proposals.token_ids[:, 0], stops)
        if is_stopped_A.any():
            going_on = (~is_stopped_A).nonzero()[:, 0].tolist()
            rows = [rows[position] for position in going_on]
            if not rows:
                break
            cache.keep(going_on)
    return Generation.of(token_ids_BT[:, num_inputs:], stops, step + 1, mitigations.events_of)


def _told(step: int, prompt_length: int, token_ids_BT: Tensor, index: Tensor, proposals: Proposals) -> Commit:
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
    usual = GenerationConfig()
    for name in _DIFFUSION_ONLY:
        if getattr(config, name) != getattr(usual, name):
            raise UserError(
                f"generation.{name} is set, but the model is causal: it writes token by token, and only "
                "max_new_tokens, min_new_tokens, temperature, top_p, seed, thinking_stop and repetition say how"
            )
