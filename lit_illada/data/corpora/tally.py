"""Counts of stored and removed documents, and the errors for unusable corpora."""

from dataclasses import dataclass, field

from lit_illada.data.config import DataConfig, OnBadDocument, TextSource
from lit_illada.data.dataset.manifest import TRAIN, VALIDATION
from lit_illada.errors import UserError

_MAX_BAD_EXAMPLES = 20


@dataclass
class Tally:
    """Counts of stored and removed documents, or of skipped fine-tuning examples."""

    policy: OnBadDocument
    documents: dict[str, int] = field(default_factory=lambda: {TRAIN: 0, VALIDATION: 0})  # stored, by split
    duplicates: int = 0  # removed because an earlier one is equal
    empty: int = 0  # removed because they have no text
    bad: int = 0  # removed because of an error
    examples: list[str] = field(default_factory=list)  # messages of the first errors

    def on_bad(self, error: UserError) -> None:
        """Raises the error, or counts it, as the policy says."""
        if self.policy is OnBadDocument.RAISE:
            raise error
        self.bad += 1
        if len(self.examples) < _MAX_BAD_EXAMPLES:
            self.examples.append(str(error))

    def add(self, empty: int, bad: int, examples: list[str]) -> None:
        """Adds the counts of another process, which read the following documents."""
        self.empty += empty
        self.bad += bad
        self.examples = [*self.examples, *examples][:_MAX_BAD_EXAMPLES]

    def empty_split(self, config: DataConfig) -> UserError | None:
        """The error for a corpus that leaves a split without documents; None where both have some."""
        num_documents = sum(self.documents.values())
        if not num_documents:
            return self._empty_corpus(config)
        empty = next((split for split in (TRAIN, VALIDATION) if not self.documents[split]), None)
        if empty is None:
            return None
        given = "1 document" if num_documents == 1 else f"{num_documents} documents"
        ways = "give more files, or change data.validation_fraction"
        if isinstance(config.source, TextSource) and config.source.document_separator is None:
            ways = f"set data.source.document_separator (without it a file is one document), {ways}"
        return UserError(
            f"the corpus has {given} and the {empty} split got none of them "
            f"(data.validation_fraction={config.validation_fraction}): {ways}"
        )

    def _empty_corpus(self, config: DataConfig) -> UserError:
        left_out = f"{self.empty} empty, {self.bad} unreadable documents removed"
        first = f"; the first: {self.examples[0]}" if self.examples else ""
        paths = getattr(config.source, "paths", [])
        named = f" of {', '.join(paths[:3])}{', …' if len(paths) > 3 else ''}" if paths else ""
        return UserError(f"the corpus{named} has no text ({left_out}{first})")
