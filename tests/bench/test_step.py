"""Figures, batches and profile of the training-step benchmark."""

import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lit_illada.bench.figure import peak_bytes
from lit_illada.bench.loss import measure_small
from lit_illada.bench.profile import parts_of, parts_recorded, seconds_by_part
from lit_illada.bench.step import measure_groups
from lit_illada.bench.training_step import Case, TrainingStep, batches
from lit_illada.model.config import AttentionKernel
from lit_illada.training.config.parallel import ActivationCheckpointing
from lit_illada.training.config.trainer import Accelerator, Precision

CPU = torch.device("cpu")
TINY = Case("pico", 2, 64, precision=Precision.float32)


def test_every_figure_is_present_and_unavailable_cases_are_reported(tmp_path):
    recomputed = Case("pico", 2, 64, precision=Precision.float32, recomputation=ActivationCheckpointing.full)
    impossible = Case("pico", 2, 64, AttentionKernel.VARLEN, Precision.float32)
    figures = measure_groups([[TINY, recomputed, impossible]], CPU, repeats=2, steps=2, profile=tmp_path)
    assert "needs a CUDA device" in figures[impossible.name]["did_not_run"]
    for case in (TINY, recomputed):
        case_figures = figures[case.name]
        assert case_figures["tokens_per_s"]["min"] > 0
        assert 0 < case_figures["mfu"]["median"] < 1
        assert case_figures["gemm_peak_tflops"]["median"] > 0
    assert figures[recomputed.name][f"times {TINY.name}"]["min"] > 0
    trace = json.loads((tmp_path / f"{TINY.name.replace(' ', '_')}.json").read_text())
    assert {"attention", "mlp", "optimizer"} <= {event.get("name") for event in trace["traceEvents"]}
    table = (tmp_path / f"{TINY.name.replace(' ', '_')}.txt").read_text()
    assert "head and cross-entropy" in table
    assert "aten::mm" in table


def test_the_products_of_muon_are_part_of_the_flops_and_those_of_adamw_are_none():
    muon = Case("pico", 2, 64, precision=Precision.float32, optimizer="muon")
    figures = measure_groups([[TINY, muon]], CPU, repeats=1, steps=1)
    assert "optimizer_flops_fraction" not in figures[TINY.name]
    # a step has S = 5 iterations; a square matrix of width M costs 15 M³ products, any other one 2N/M + 17
    width, wide, key_value, layers = 128, 352, 64, 4
    products = (
        2 * 15 * width**3 + 3 * (2 * wide / width + 17) * width**3 + 2 * (2 * width / key_value + 17) * key_value**3
    )
    muon_flops = 2 * layers * products
    model_flops = muon_flops * (1 / figures[muon.name]["optimizer_flops_fraction"] - 1)
    batch = next(batches(muon, muon.config().known_vocab_size))
    step = TrainingStep.of(muon, CPU)
    step.backward(batch)
    assert model_flops == pytest.approx(step.flops(batch), rel=0.01)


def test_a_case_without_a_precision_has_that_of_training_and_is_measured_once():
    chosen = Precision.auto.resolve(Accelerator.cpu)
    figures = measure_groups([[Case("pico", 1, 32), Case("pico", 1, 32, precision=chosen)]], CPU, repeats=1, steps=1)
    assert list(figures) == [f"pico 1x32 auto {chosen} adamw"]


def test_bfloat16_is_not_measured_on_a_processor_without_it(monkeypatch):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    case = Case("pico", 1, 32, precision=Precision.bf16_mixed)
    figures = measure_groups([[case]], CPU, repeats=1, steps=1)
    assert "no bfloat16 instructions" in figures[case.name]["did_not_run"]


def test_muon_and_the_muon_of_torch_step_in_the_same_direction():
    """Roughly: in the bfloat16 iteration of torch, rounding errors stand in for the smallest singular values."""
    steps = []
    for name in ("muon", "torch-muon"):
        torch.manual_seed(0)
        case = Case("pico", 2, 64, precision=Precision.float32, optimizer=name)
        step = TrainingStep.of(case, CPU)
        before = [p.detach().clone() for p in step.model.parameters()]
        step(next(batches(case, 300)))
        steps.append([p.detach() - old for p, old in zip(step.model.parameters(), before, strict=True)])
    for ours, theirs in zip(*steps, strict=True):
        assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.7


def test_small_heads_are_timed_against_plain_ones():
    figures = measure_small(5, 40, 8, repeats=2)
    assert set(figures) == {"ours_ms", "plain_ms", "ratio"}
    assert figures["ratio"]["min"] > 0


def test_case_without_compiler_is_reported_and_others_are_measured(monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch.compiler.reset()
    compiled = Case("pico", 2, 64, precision=Precision.float32, is_compiled=True)
    with torch._inductor.config.patch(force_disable_caches=True):
        figures = measure_groups([[compiled, TINY]], CPU, repeats=1, steps=1)
    assert "No working C++ compiler" in figures[compiled.name]["did_not_run"]
    assert figures[TINY.name]["tokens_per_s"]["min"] > 0


def test_group_that_exceeds_memory_does_not_affect_next_group(monkeypatch):
    def rates(runner):
        if runner.case.num_rows == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return {"tokens_per_s": 1.0}

    monkeypatch.setattr("lit_illada.bench.step._Runner.rates", rates)
    smaller = Case("pico", 1, 64, precision=Precision.float32)
    figures = measure_groups([[TINY], [smaller]], CPU, repeats=1, steps=1)
    assert figures[TINY.name] == {"did_not_run": "OutOfMemoryError: CUDA out of memory"}
    assert figures[smaller.name]["tokens_per_s"]["median"] == 1


def test_every_matrix_product_is_attributed_to_its_part_forward_and_backward():
    step = TrainingStep.of(TINY, CPU)
    batch = next(batches(TINY, 4096))
    with parts_recorded(step.model), profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        step(batch)
    events = list(profiler.events())
    layers = step.config.num_hidden_layers
    linear = [part for event, part in zip(events, parts_of(events), strict=True) if event.name == "aten::mm"]
    # a linear layer is one product forward and two backward; the head's are of its slices, here one
    assert linear.count("attention") == 3 * 4 * layers
    assert linear.count("mlp") == 3 * 3 * layers
    assert linear.count("head and cross-entropy") == 3
    assert set(linear) == {"attention", "mlp", "head and cross-entropy"}
    assert sum(seconds_by_part(events).values()) == pytest.approx(sum(e.self_cpu_time_total for e in events) * 1e-6)


def test_recording_parts_removes_its_hooks():
    step = TrainingStep.of(TINY, CPU)
    with parts_recorded(step.model):
        assert step.model._forward_hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in step.model.modules())


def test_batches_are_packed_rows_and_deterministic():
    first, again = (next(batches(Case("nano", 3, 512), 4096)) for _ in range(2))
    assert first.input_ids.shape == (3, 512)
    assert int(first.layout.cu_seqlens[-1]) == 3 * 512
    assert not first.layout.is_whole_rows
    assert torch.equal(first.input_ids, again.input_ids)
    assert torch.equal(first.layout.cu_seqlens, again.layout.cu_seqlens)


def test_peak_memory_is_maximum_allocation_of_the_work():
    held = peak_bytes(CPU, lambda: torch.zeros(2**24).add_(1).sum())
    if held is None:
        pytest.skip("this kernel does not count")
    assert held == pytest.approx(4 * 2**24, rel=0.2)


def test_step_reduces_loss():
    step = TrainingStep.of(TINY, CPU)
    batch = next(batches(TINY, 4096))
    losses = [step(batch).item() for _ in range(4)]
    assert losses[-1] < losses[0]
