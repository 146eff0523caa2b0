"""Compositions share parsed files, and neither a composition nor its caller changes what the next one sees."""

import json

from lit_illada import config_files
from lit_illada.config_files import compose_files

CHOICES = [[], ["objective/mask_ratio=cosine"], ["objective/weighting=flat"], ["model=pico", "experiment=demo"], []]


def test_compositions_from_shared_files_equal_those_from_files_read_anew():
    shared = [json.dumps(compose_files("pretrain", choices)) for choices in CHOICES]
    for choices, text in zip(CHOICES, shared, strict=True):
        config_files._composed.cache_clear()
        config_files._parsed_files.cache_clear()
        assert json.dumps(compose_files("pretrain", choices)) == text


def test_a_caller_that_changes_its_composition_changes_no_other():
    before, changed = json.dumps(compose_files("pretrain")), compose_files("pretrain")
    for section in changed.values():
        if isinstance(section, dict):
            section.clear()
    assert json.dumps(compose_files("pretrain")) == before
