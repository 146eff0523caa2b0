"""Estimates the duration of runs from finished runs, or else from the speed of matrix products on this machine."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lit_illada.sweep.folder import PlannedRun
from lit_illada.sweep.progress import RunStatus
from lit_illada.training.config.trainer import Accelerator, Precision
from lit_illada.training.matmul_speed import matmul_flops_per_s

# fraction of the throughput of large matrix products that runs reached in measurements, which small models reach too:
# 0.3 in alignment to 0.8 in pretraining of the demo, float32 on one core
TYPICAL_MFU = {Accelerator.cpu: 0.4, Accelerator.gpu: 0.35}
# seconds for interpreter, libraries, data, first and last validation
_START_S = 15.0


@dataclass(frozen=True)
class Speed:
    """Training speed of the runs of a sweep, measured or assumed."""

    seconds_per_flop: dict[str, float]
    """Measured, by model, precision and devices."""
    assumed_flops_per_s: float
    """Speed per device of runs without a measured value."""
    origin: str
    """Source of the estimate, as printed."""

    def seconds(self, run: PlannedRun) -> float | None:
        """Estimated duration of a run, seconds; None if its FLOPs are not known."""
        if run.flops is None:
            return None
        if (measured := self.seconds_per_flop.get(_kind(run))) is not None:
            return run.flops * measured
        devices = run.config["trainer"]["devices"] * run.config["trainer"]["num_nodes"]
        return _START_S + run.flops / (self.assumed_flops_per_s * devices)


def speed_of(statuses: Sequence[RunStatus], accelerator: Accelerator, threads: int) -> Speed:
    """Speed measured on finished runs if they cover all kinds of run, else on matrix products."""
    measured = {
        _kind(s.run): s.elapsed_s / s.run.flops
        for s in statuses
        if s.elapsed_s and s.run.flops and s.fraction_done == 1
    }
    if measured and {_kind(s.run) for s in statuses if s.run.flops} <= set(measured):
        return Speed(measured, 1.0, "from the durations of finished runs")
    dtype = Precision.auto.resolve(accelerator).dtype
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    peak = matmul_flops_per_s(accelerator.device, dtype, timings=2)
    torch.set_num_threads(before)
    mfu = TYPICAL_MFU[accelerator]
    origin = f"rough guess: matrix products reach {peak:.2g} FLOP/s here, and a run is assumed to reach {mfu:.0%} of it"
    return Speed(measured, peak * mfu, origin)


def _kind(run: PlannedRun) -> str:
    """Key of runs that are assumed to take equally long per FLOP."""
    trainer = run.config.get("trainer", {})
    return json.dumps([run.config.get("model"), trainer.get("precision"), trainer.get("devices")], sort_keys=True)
