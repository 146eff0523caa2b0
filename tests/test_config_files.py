"""Compositions share parsed files, and neither a composition nor its caller changes what the next one sees."""

import json

import pytest

from lit_illada import config_files
from lit_illada.config import SCHEMAS
from lit_illada.config_files import compose_files
from lit_illada.errors import UserError
from lit_illada.runtime.paths import conf_dir

CHOICES = [[], ["objective/mask_ratio=cosine"], ["objective/weighting=flat"], ["model=pico", "experiment=demo"], []]


def test_compositions_from_shared_files_equal_those_from_files_read_anew():
    shared = [json.dumps(compose_files("pretrain", choices)) for choices in CHOICES]
    for choices, text in zip(CHOICES, shared, strict=True):
        config_files._composed_by_hydra.cache_clear()
        config_files._parsed_files.cache_clear()
        assert json.dumps(compose_files("pretrain", choices)) == text


def test_a_caller_that_changes_its_composition_changes_no_other():
    before, changed = json.dumps(compose_files("pretrain")), compose_files("pretrain")
    for section in changed.values():
        if isinstance(section, dict):
            section.clear()
    assert json.dumps(compose_files("pretrain")) == before


def _groups():
    files = conf_dir().glob("*/**/*.yaml")
    return sorted({file.parent.relative_to(conf_dir()).as_posix() for file in files})


def _differences(command, bases, groups, names=lambda files: files):
    """Choices whose composition by exchange of a file differs from Hydra's."""
    state, num_exchanged = config_files._state_of_files(), 0
    for base in bases:
        for group in groups:
            for name in names(config_files._files(group)):
                tree, choices = compose_files(command, base), (*base, f"{group}={name}")
                is_plain = config_files._is_plain(state, choices[-1])
                if is_plain and config_files._exchange(state, tree, choices[-1]):
                    num_exchanged += 1
                    hydra = config_files._composed_by_hydra(state, command, choices)
                    if json.dumps(hydra) != json.dumps(tree):  # also the order of the keys
                        yield choices
    assert num_exchanged


@pytest.mark.parametrize("command", ["pretrain", "align", "score"])
def test_exchanging_a_file_composes_what_hydra_composes(command):
    assert not list(_differences(command, [()], _groups(), lambda files: files[-1:]))


@pytest.mark.slow
@pytest.mark.parametrize("command", SCHEMAS)
def test_exchanging_any_file_composes_what_hydra_composes(command):
    method = {"pretrain": "objective", "sft": "objective", "align": "alignment"}.get(command)
    bases = [(), *((f"{method}={name}",) for name in config_files._files(method))] if method else [()]
    assert not list(_differences(command, bases, _groups()))


def test_arms_that_choose_other_plain_files_share_one_composition():
    config_files._composed_by_hydra.cache_clear()
    for name in ("cosine", "band", "beta"):
        tree = compose_files("pretrain", ["objective=illada", "model=pico", f"objective/mask_ratio={name}"])
        assert tree["objective"]["mask_ratio"]["name"] == name
    assert config_files._composed_by_hydra.cache_info().misses == 1


def test_a_group_that_the_chosen_files_lack_is_rejected_as_by_hydra():
    with pytest.raises(UserError, match="mask_ratio"):
        compose_files("pretrain", ["objective=autoregressive", "objective/mask_ratio=cosine"])
