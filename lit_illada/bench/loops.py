"""Speed of loop detection on one core, in 6400 generated texts of 512 words."""

from typing import Any

import numpy as np

from lit_illada.bench.figure import figure, seconds
from lit_illada.loops.detect.findings import detect

_WORDS = "wait let me check the sum of these numbers and so it is that we add take then next step result again".split()


def measure(repeats: int = 3, num_texts: int = 6400) -> dict[str, Any]:
    """Seconds for all texts, and texts/s. Goal: 20 s."""
    texts = [text(seed) for seed in range(num_texts)]
    passes = [seconds(lambda: [detect(item) for item in texts]) for _ in range(repeats)]
    return {
        f"seconds_{num_texts}_texts": figure(passes),
        "texts_per_s": figure([num_texts / passed for passed in passes]),
    }


def text(seed: int, length: int = 512) -> str:
    """Sentences of random words and numbers; every fourth text ends by repeating its last sentence."""
    rng = np.random.default_rng(seed)
    written: list[str] = []
    while len(written) < length:
        sentence = [*rng.choice(_WORDS, rng.integers(6, 14)).tolist(), str(rng.integers(100)), "."]
        written += sentence
        if seed % 4 == 0 and len(written) > length // 2:
            written += sentence * (length // len(sentence))
    return " ".join(written[:length])
