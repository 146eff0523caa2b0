"""Peak throughput and memory of GPU models, for estimates without the GPU."""

from dataclasses import dataclass

from lit_illada.training.config.trainer import Precision


@dataclass(frozen=True)
class Device:
    """A GPU model: the manufacturer's peak throughput for dense matrices, and its memory."""

    bf16_flops_per_s: float
    float32_flops_per_s: float
    """Without TF32."""
    memory_bytes: float

    def peak(self, precision: Precision) -> float:
        """Peak throughput at a precision, FLOP/s."""
        return self.bf16_flops_per_s if precision is Precision.bf16_mixed else self.float32_flops_per_s


# NVIDIA's data sheets of the SXM cards: "H200 Tensor Core GPU", "H100 Tensor Core GPU" (which state bfloat16 with
# sparsity, twice the dense rate taken here) and "A100 Tensor Core GPU"
GPUS = {
    "h200": Device(989e12, 67e12, 141e9),
    "h100": Device(989e12, 67e12, 80e9),
    "a100": Device(312e12, 19.5e12, 80e9),
}
