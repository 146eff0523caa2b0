"""Which command reads which file, and why a damaged file may leave a result as it was.

A damaged file that a command reads must be refused in one line that names it. Every other case must be listed here with
its reason, and the command's result must then equal the undamaged one's bit for bit.
"""

from dataclasses import dataclass, field
from pathlib import PurePath

from attack.damage import Damage

NEWEST = PurePath("run/checkpoints/step=00000004.ckpt")
MISSING = ("missing",)
_FALLBACK = "a run without it is one that was killed earlier: the result is that of the checkpoint before it"
_OLDER = "a folder without checksums is one of an older version or another program, and everything else in it is whole"
_LINE_END = "only the final line end is missing"
_CHECKSUMS = {"missing": _OLDER, "truncated": _LINE_END}
_SUMMARY = (
    "figures for people, of which a resume copies those of the start; weights and final figures are computed anew"
)
_LOG = "a record for people; no command reads it"
_CHECKED = "what is used of it is checked by its sha256, the rest (class names, white space) decides nothing"
_SAME_CONTENT = "the content behind the link is the file's own and is checked like it"


@dataclass(frozen=True)
class Rule:
    """Files that match `pattern`. readers: the commands that read them. unread: why the others do not.

    tolerated: reasons by damage's kind or name, for which a reader may give the undamaged result.
    """

    pattern: str
    readers: tuple[str, ...]
    unread: str = ""
    tolerated: dict[str, str] = field(default_factory=dict)


_OF_RUN = ("resume", "generate run", "score run", "convert run", "sft run")
RULES = [
    Rule("data/manifest.json", ("data verify", "data inspect", "pretrain"), tolerated={
        "truncated": _LINE_END,
        "one bit flipped": "in what says how the data set was made, which only a new preparation compares",
        "wrong type": "as above",
        "absurd number": "as above",
    }),
    Rule("data/tokenizer/*", ("data verify", "data inspect", "pretrain"), tolerated={"*": _CHECKED}),
    Rule("data/train-*.tar", ("data verify", "pretrain"), "shows the first rows and the manifest's figures"),
    Rule("data/validation-*.tar", ("data verify", "pretrain"), "shows rows of the training split"),
    Rule(str(NEWEST), (*_OF_RUN, "data examples"), tolerated=dict.fromkeys(MISSING, _FALLBACK)),
    Rule("run/checkpoints/step=00000002.ckpt", (), "only the newest checkpoint is read"),
    Rule("run/config.yaml", ("resume",), "the checkpoint holds the model's config", tolerated={
        "truncated": _LINE_END,
        "an interpolation": "nothing is put in its place: the run's name, which decides nothing on a resume",
    }),
    Rule("run/summary.json", ("resume",), "figures, which only a resume continues", tolerated={"*": _SUMMARY}),
    Rule("run/tokenizer/*", (*_OF_RUN, "data examples"), tolerated={"*": _CHECKED}),
    Rule("run/*", (), _LOG),
    Rule("run/*/*", (), _LOG),
    Rule("export/checksums.json", ("convert export",), tolerated=_CHECKSUMS),
    Rule("export/*", ("convert export",)),
    Rule("converted/checksums.json", ("generate converted", "convert converted"), tolerated=_CHECKSUMS),
    Rule("converted/provenance.jsonl", (), _LOG),
    Rule("converted/*/*.safetensors", ("generate converted", "convert converted")),
    Rule("converted/*/*", ("generate converted", "convert converted"), tolerated={"*": _CHECKED}),
]  # fmt: skip


def rule_of(file: PurePath) -> Rule:
    """The first rule whose pattern the file matches."""
    return next(rule for rule in RULES if file.match(rule.pattern))


def names_of(file: PurePath) -> list[str]:
    """Words of which an error about the file must hold one."""
    if file.parent.name == "tokenizer":
        return [file.name, f"{file.parent}:", f"at {file.parent}", f"{file.parent} "]
    if file.name == "manifest.json":
        return [file.name, "the manifest", "no prepared data set at data"]
    return [file.name]


def reason_for_same(file: PurePath, command: str, damage: Damage) -> str | None:
    """Why an undamaged result is right for this case; None where the command must refuse the file."""
    rule = rule_of(file)
    if command not in rule.readers:
        return rule.unread or None
    if damage.name == "a link to a file outside":
        return _SAME_CONTENT
    return rule.tolerated.get(damage.name) or rule.tolerated.get(damage.kind) or rule.tolerated.get("*")
