"""Models to score with: exact conditionals of a small distribution, an inconsistent table, and a tiny transformer."""

import itertools
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

from lit_illada.batch import TokenScores
from lit_illada.model.config import ModelConfig
from lit_illada.model.transformer import Transformer
from lit_illada.scoring.candidates import Candidate
from lit_illada.scoring.model import ScoringModel

NUM_WORDS, MASK, EOS, VOCABULARY = 3, 3, 4, 5


class Conditionals:
    """p(token at n | visible tokens) for rows of any length, by enumeration of a random Markov chain."""

    def __init__(self, seed=0):
        self.chain = (
            torch.rand(NUM_WORDS, NUM_WORDS, generator=torch.Generator().manual_seed(seed)).double() ** 2 + 0.05
        )
        self.chain /= self.chain.sum(1, keepdim=True)

    def log_prob(self, ids):
        steps = [self.chain[a, b].log().item() for a, b in itertools.pairwise(ids)]
        return -torch.log(torch.tensor(float(NUM_WORDS), dtype=torch.float64)).item() + sum(steps)

    @cache  # noqa: B019
    def marginals(self, visible):
        """(T, NUM_WORDS) probabilities, given a tuple of ids."""
        rows = torch.tensor(list(itertools.product(range(NUM_WORDS), repeat=len(visible))))
        visible = torch.tensor(visible)
        fits = ((rows == visible) | (visible == MASK)).all(1)
        weights = torch.tensor([self.log_prob(row) for row in rows.tolist()], dtype=torch.float64).exp() * fits
        return torch.stack([(weights[:, None] * (rows == v)).sum(0) for v in range(NUM_WORDS)], 1) / weights.sum()


class MadeUp:
    """Random probabilities by visible tokens and position, consistent with no joint distribution."""

    def marginals(self, visible):
        seed = int("1" + "".join(map(str, visible)), 7)
        noise = torch.rand(len(visible), NUM_WORDS, generator=torch.Generator().manual_seed(seed)).double()
        return (6 * noise).softmax(1)


@dataclass
class Asked:
    """A table of marginals as a model, which ignores padding and counts forward passes."""

    table: object
    num_forwards: int = 0

    def __call__(self, noisy_ids, layout, select, targets=None):
        self.num_forwards += 1
        segments = layout.segment_ids()
        logits = []
        for row, row_segments, chosen in zip(noisy_ids, segments, select, strict=True):
            length = int((row_segments == row_segments[0]).sum())
            assert not chosen[length:].any(), "padding is selected"
            marginals = self.table.marginals(tuple(row[:length].tolist()))
            padded = torch.full((length, VOCABULARY), -torch.inf, dtype=torch.float64)
            padded[:, :NUM_WORDS] = marginals.log()
            logits.append(padded[chosen[:length]])
        logits_MV = torch.cat(logits)
        if targets is None:
            return logits_MV
        nll = -logits_MV.log_softmax(1)[torch.arange(len(targets)), targets]
        return TokenScores(nll, logits_MV.argmax(1) == targets)


@pytest.fixture(scope="session")
def conditionals():
    return Conditionals()


@pytest.fixture(scope="session")
def made_up():
    return MadeUp()


@pytest.fixture(scope="session")
def ask():
    """A ScoringModel of a table of marginals; `.score.num_forwards` counts its passes."""

    def ask(table):
        request = Asked(table)
        return ScoringModel(request, request, MASK, EOS, max_length=64, is_causal=False, device=torch.device("cpu"))

    return ask


@pytest.fixture(scope="session")
def answers():
    """All answers of one length to a prompt."""

    def answers(prompt_ids, length):
        rows = itertools.product(range(NUM_WORDS), repeat=length)
        return [Candidate.answering(prompt_ids, list(row)) for row in rows]

    return answers


@pytest.fixture(scope="session")
def real():
    """A tiny transformer with random weights, of 23 tokens, 0 for [M] and 1 for EOS."""

    def real(is_causal=False, seed=0, block_length=None):
        config = ModelConfig(23, 16, 32, 2, 2, 1, max_position_embeddings=64, initializer_range=0.5)
        model = Transformer(replace(config, is_causal=is_causal, block_length=block_length)).eval()
        model.init_weights(seed)
        kind = {"is_causal": is_causal, "block_length": block_length}
        return ScoringModel(model, model, 0, 1, max_length=64, device=torch.device("cpu"), **kind)

    return real
