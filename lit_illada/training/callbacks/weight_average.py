"""Callback that averages the weights on the device on which they are trained."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging


class WeightAverage(EMAWeightAveraging):
    """Lightning's exponential moving average of the weights, in the memory of the training device."""

    @property
    def state_key(self) -> str:
        # under this name earlier versions saved the state
        return EMAWeightAveraging.__qualname__

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copy the module to begin the average. Lightning moves the module to its device only after this hook: a copy
        of the module on the CPU would stay there, and every step would transfer all weights to it."""
        if stage == "fit":
            pl_module.to(trainer.strategy.root_device)
        super().setup(trainer, pl_module, stage)
