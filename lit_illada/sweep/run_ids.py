"""Ids of the runs of a sweep, which name their folders."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count

from lit_illada.errors import UserError
from lit_illada.sweep.folder import PlannedRun
from lit_illada.sweep.spec import SweepSpec


def with_ids(runs: Sequence[PlannedRun], spec: SweepSpec, begun: Mapping[str, str]) -> list[PlannedRun]:
    """The runs with ids, and with the fingerprint in `parent` replaced by an id.

    begun: ids of the runs that the sweep's folder holds, by fingerprint; these keep them. Raises UserError where the
    id of another run belongs to one of these.
    """
    ids = {run.fingerprint: begun[run.fingerprint] for run in runs if run.fingerprint in begun}
    taken = {*begun.values()}
    for run in runs:
        if run.fingerprint in ids:
            continue
        id = _id(run, spec)
        if id in begun.values():
            raise UserError(f"the folder already holds a run {id!r} with other settings: choose another --folder")
        numbered = chain([id], (f"{id}-{n}" for n in count(2)))
        ids[run.fingerprint] = next(each for each in numbered if each not in taken)
        taken.add(ids[run.fingerprint])
    return [replace(r, id=ids[r.fingerprint], parent=ids[r.parent] if r.parent else None) for r in runs]


def _id(run: PlannedRun, spec: SweepSpec) -> str:
    """Id of a run: stage, common part of the names of its arms, and seed."""
    parts = [run.stage]
    if len(run.arms) == 1:
        parts += run.arms
    elif len(run.arms) < len(spec.all_arms()):
        shared = set.intersection(*(set(arm.split("+")) for arm in run.arms))
        parts += [word for word in run.arms[0].split("+") if word in shared] or run.arms[:1]
    if run.seed is not None:
        parts.append(f"s{run.seed}")
    return "-".join(re.sub(r"[^\w.+=]+", "-", part).strip("-.") for part in parts)
