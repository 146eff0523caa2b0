"""How long will a run take here? By runs that are finished, or else by how fast this machine multiplies."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lit_illada.sweep.folder import PlannedRun
from lit_illada.sweep.progress import RunStatus
from lit_illada.training.callbacks.throughput import matmul_flops_per_s
from lit_illada.training.config.trainer import Accelerator, Precision

# of the speed of large matrix products, as runs of this code were seen to reach; small models reach less
TYPICAL_MFU = {Accelerator.cpu: 0.15, Accelerator.gpu: 0.35}
# interpreter, libraries, data, the first validation and the last
_START_S = 15.0


@dataclass(frozen=True)
class Speed:
    """seconds_per_flop: as seen, by model and precision; others go by `assumed_flops_per_s`. origin: for the reader."""

    seconds_per_flop: dict[str, float]
    assumed_flops_per_s: float
    origin: str

    def seconds(self, run: PlannedRun) -> float | None:
        """None for a run whose work is not known before it begins."""
        if run.flops is None:
            return None
        if (seen := self.seconds_per_flop.get(_kind(run))) is not None:
            return run.flops * seen
        devices = run.config["trainer"]["devices"] * run.config["trainer"]["num_nodes"]
        return _START_S + run.flops / (self.assumed_flops_per_s * devices)


def speed_of(statuses: Sequence[RunStatus], accelerator: Accelerator, threads: int) -> Speed:
    seen = {
        _kind(s.run): s.elapsed_s / s.run.flops
        for s in statuses
        if s.elapsed_s and s.run.flops and s.fraction_done == 1
    }
    if seen and {_kind(s.run) for s in statuses if s.run.flops} <= set(seen):
        return Speed(seen, 1.0, "as long as the runs that are finished took")
    dtype = Precision.auto.resolve(accelerator).dtype
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    peak = matmul_flops_per_s(accelerator.device, dtype)
    torch.set_num_threads(before)
    share = TYPICAL_MFU[accelerator]
    origin = f"by matrix products here, {peak:.2g} FLOP/s, of which a run is taken to reach {share:.0%}: a rough guess"
    return Speed(seen, peak * share, origin)


def _kind(run: PlannedRun) -> str:
    trainer = run.config.get("trainer", {})
    return json.dumps([run.config.get("model"), trainer.get("precision"), trainer.get("devices")], sort_keys=True)
