"""lit_illada: pretrain, ablate and understand masked-diffusion language models with PyTorch Lightning.

The public names are those of `lit_illada.api`. `import lit_illada` is fast: the first use of a name imports torch and
Lightning (PEP 562).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_illada.api import *  # noqa: F403

__version__ = "0.1.0"

# repeated from api.__all__, so that other attributes, such as submodules, are looked up without importing it
_PUBLIC = frozenset(
    """
    AutoregressiveObjective DiffusionObjective DiffusionObjectiveConfig GenerateConfig Generation GenerationConfig
    LanguageModel Layout Likelihood MaskGrid ModelConfig PackedDataModule PretrainConfig PretrainModule SFTConfig
    SFTDataModule SFTModule TextBound TokenBatch TokenScores Tokenizer Transformer UserError build_datamodule
    build_model build_module build_objective build_sft_datamodule dump generate infill load load_checkpoint load_file
    load_module load_sft nll_bound prepare
    """.split()
)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("lit_illada.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
