"""The benchmark of the LM head limits its size to what the processor computes in a minute."""

import pytest

from lit_illada.bench import loss


@pytest.mark.parametrize(("flops_per_s", "expected"), [(1e12, 8192), (4e11, 4096), (7.5e10, 512), (1e9, 512)])
def test_a_slow_processor_gets_fewer_tokens(flops_per_s, expected, monkeypatch):
    monkeypatch.setattr(loss, "matmul_flops_per_s", lambda *_: flops_per_s)
    assert loss._affordable_tokens(155_136, 4096) == expected
    assert expected == 512 or 8 * expected * 155_136 * 4096 / flops_per_s <= 60


def test_both_ways_have_the_same_mean_and_name_their_tokens(monkeypatch):
    monkeypatch.setattr(loss, "SMALL_SIZES", [(8, 50, 16)])
    figures = loss.measure(num_tokens=64, vocab_size=500, hidden_size=16)
    assert figures["chunked"]["num_tokens"] == figures["plain"]["num_tokens"] == 64
    assert figures["chunked"]["nll"] == pytest.approx(figures["plain"]["nll"], abs=1e-4)
    assert figures["8 × 50 × 16"]["ratio"]["min"] > 0
