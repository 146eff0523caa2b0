"""lit_illada: pretrain, ablate and understand masked-diffusion language models with PyTorch Lightning."""

__version__ = "0.1.0"
