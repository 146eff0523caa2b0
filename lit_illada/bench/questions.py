"""Questions of `bench answers` and the quality of the texts: held-out problems, or beginnings of held-out text."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from lit_illada import build
from lit_illada.batch import TokenBatch
from lit_illada.checkpoints.open import Checkpoint
from lit_illada.checkpoints.start import load_sft
from lit_illada.config import PretrainConfig, SFTConfig, load_file
from lit_illada.data.sft_datamodule import Difficulty, EvaluationExample
from lit_illada.data.tokenizer import Tokenizer
from lit_illada.errors import UserError
from lit_illada.generation.config import GenerationConfig
from lit_illada.model.transformer import Transformer
from lit_illada.run_folder import RunFolder
from lit_illada.runtime.paths import sweeps_dir
from lit_illada.runtime.yaml_files import read_yaml
from lit_illada.scoring.candidates import Candidate, Score
from lit_illada.scoring.config import ScoreRule, ScoringConfig
from lit_illada.scoring.likelihood import Likelihood, nll
from lit_illada.scoring.scorer import build_scorer
from lit_illada.stats.intervals import wilson

_PROMPT_TOKENS = 16  # of held-out text; a longer prompt makes the autoregressive cache worth more
_NEW_TOKENS = 32  # after held-out text
_MAX_DEPTH = 3  # of the problems for loop_base, most of which both of its models solve


class Questions(Protocol):
    """Prompts, and the quality of models and of their texts."""

    @property
    def config(self) -> SFTConfig | PretrainConfig:
        """Config of the diffusion run."""
        ...

    @property
    def prompts(self) -> Sequence[Sequence[int]]:
        """Token ids of each prompt."""
        ...

    @property
    def generation(self) -> GenerationConfig:
        """Settings of the run's generation, before the commit rule and the cache of a way."""
        ...

    def judge_model(self, model: Transformer, tokenizer: Tokenizer) -> dict[str, Any]:
        """Figures of a model, whatever the way of decoding."""
        ...

    def judge_texts(self, texts: Sequence[Sequence[int]], twin: Transformer | None) -> dict[str, Any]:
        """Figures of the continuations of all prompts. twin: the autoregressive model, if there is one."""
        ...


def read_questions(run: Path, checkpoint: Checkpoint, num_prompts: int) -> Questions:
    """The questions that fit a run: problems of a fine-tuned one, held-out text of a pretrained or adapted one.

    Raises UserError for a folder that is no such run, and for one whose data have too few questions.
    """
    if run.parent == sweeps_dir() / "loop_base":  # converted, so its config is that of the sweeps
        overrides = read_yaml(sweeps_dir() / "scale" / "loops.yaml")["overrides"]["sft"]
        config, _ = load_sft(run, [*overrides, f"sft_data.source.easy.max_depth={_MAX_DEPTH}"])
        return Problems.read(config, checkpoint.tokenizer, num_prompts, run)
    folder = RunFolder.open(run)
    tree = read_yaml(folder.config)
    if "alignment" in tree:
        raise UserError(f"{run} is an alignment run: bench answers takes runs of pretrain and sft")
    if "sft_data" in tree:
        return Problems.read(load_file("sft", folder.config), checkpoint.tokenizer, num_prompts, run)
    return HeldOutText.read(load_file("pretrain", folder.config), checkpoint.tokenizer, num_prompts)


@dataclass(frozen=True)
class Problems:
    """Easy held-out problems of a fine-tuned run, judged by exact match."""

    config: SFTConfig
    datamodule: Any
    examples: Sequence[EvaluationExample]

    @classmethod
    def read(cls, config: SFTConfig, tokenizer: Tokenizer, num: int, run: Path) -> "Problems":
        """Raises UserError where the run's data have no reference answers."""
        datamodule = build.build_sft_datamodule(config, tokenizer)
        if Difficulty.EASY not in datamodule.difficulties:
            raise UserError(
                f"{run} was fine-tuned on data without reference answers: choose a run fine-tuned on problems"
            )
        return cls(config, datamodule, datamodule.evaluation_examples(Difficulty.EASY, num))

    @property
    def prompts(self) -> Sequence[Sequence[int]]:
        return [example.prompt_ids for example in self.examples]

    @property
    def generation(self) -> GenerationConfig:
        return self.config.evaluation.generation

    def judge_model(self, model: Transformer, tokenizer: Tokenizer) -> dict[str, Any]:
        return {}

    def judge_texts(self, texts: Sequence[Sequence[int]], twin: Transformer | None) -> dict[str, Any]:
        """exact_match, and its 95 % interval of Wilson."""
        right = [self.datamodule.is_right(example, ids) for example, ids in zip(self.examples, texts, strict=True)]
        low, high = wilson(sum(right), len(right))
        return {"exact_match": sum(right) / len(right), "exact_match_low": low, "exact_match_high": high}


@dataclass(frozen=True)
class HeldOutText:
    """Beginnings of validation rows of a pretrained run, judged by the model's bound and by the twin's likelihood."""

    config: PretrainConfig
    tokenizer: Tokenizer
    num_prompts: int

    @classmethod
    def read(cls, config: PretrainConfig, tokenizer: Tokenizer, num: int) -> "HeldOutText":
        """Raises UserError for rows that are too short, and for too few of them."""
        if config.data.row_length < _PROMPT_TOKENS:
            raise UserError(
                f"data.row_length is {config.data.row_length}: bench answers takes prompts of {_PROMPT_TOKENS} tokens"
            )
        questions = cls(config, tokenizer, num)
        if len(questions.prompts) < num:
            raise UserError(f"{config.data.dir}: {len(questions.prompts)} held-out prompts, {num} are needed")
        return questions

    @cached_property
    def prompts(self) -> Sequence[Sequence[int]]:
        """The first tokens of validation rows that begin within one document."""
        prompts = []
        for batch in self._batches(None):
            for ids in batch.input_ids[:, :_PROMPT_TOKENS].tolist():
                if self.tokenizer.eos_token_id not in ids:
                    prompts.append(ids)
                if len(prompts) == self.num_prompts:
                    return prompts
        return prompts

    @property
    def generation(self) -> GenerationConfig:
        return replace(GenerationConfig(), max_new_tokens=_NEW_TOKENS, block_length=_NEW_TOKENS)

    def judge_model(self, model: Transformer, tokenizer: Tokenizer) -> dict[str, Any]:
        """nats_per_token of the validation rows: a bound, or exact for a causal model; with its standard error."""
        metric, device = Likelihood(), model.lm_head_weight.device
        score = build.build_validation_score(self.config, tokenizer)
        if model.config.is_causal:  # the twin, which the run's config does not describe
            score = partial(nll, eos_token_id=tokenizer.eos_token_id)
        for batch in self._batches(self.config.trainer.val_rows):
            metric.update(score(model, batch.to(device)), batch.to(device))
        values = metric.compute()
        return {"nats_per_token": float(values["nll_bound"]), "nats_stderr": float(values["nll_bound_stderr"])}

    def judge_texts(self, texts: Sequence[Sequence[int]], twin: Transformer | None) -> dict[str, Any]:
        """text_nats_per_token: −log p of the continuations under the twin; nothing without a twin."""
        if twin is None:
            return {}
        scorer = build_scorer(twin, self.tokenizer, ScoringConfig())
        pairs = [(list(prompt), list(ids)) for prompt, ids in zip(self.prompts, texts, strict=True) if ids]
        scores = scorer.scores([[Candidate.answering(*pair)] for pair in pairs], ScoreRule.EXACT)
        whole = Score.sum([score for (score,) in scores])
        return {"text_nats_per_token": -whole.value / whole.num_tokens if whole.num_tokens else None}

    def _batches(self, num_rows: int | None) -> list[TokenBatch]:
        """Validation batches. num_rows: None: all rows."""
        datamodule = build.build_datamodule(self.config)
        datamodule.validation_rows = datamodule.val_rows.rows_per_epoch if num_rows is None else num_rows
        return datamodule.val_dataloader()  # type: ignore[return-value]
