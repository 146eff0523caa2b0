from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_illada.data.config import DataConfig, StdlibSource
from lit_illada.data.corpora.assignment import digest_of, split_of
from lit_illada.data.corpora.sources import files_of, read
from lit_illada.data.dataset.manifest import MANIFEST_FILE, VALIDATION, preparation_settings
from lit_illada.data.prepare.prepare import prepare
from lit_illada.data.prepare.work_folder import finished_manifest
from lit_illada.data.sections import SECTION_SETTINGS, NearDuplicates, line_runs, sections
from lit_illada.errors import UserError


@pytest.fixture(scope="module")
def stdlib():
    """(validation, training): the documents of the standard library by the split of the default settings."""
    splits = [], []
    for document in read(StdlibSource(), pytest.fail):
        split = split_of(digest_of(document.text.encode()), DataConfig().validation_fraction)
        splits[split != VALIDATION].append(document)
    return splits


def function(name, num_lines):
    return f"def {name}():\n" + "".join(f"    {name}_{line} = {line}\n" for line in range(num_lines)) + "\n"


@given(st.lists(st.sampled_from(["x\n", "    y\n", "\n", "z" * 300 + "\n"]), max_size=60))
def test_sections_cover_the_text_and_have_line_numbers(lines):
    text = "".join(lines)
    pieces = list(sections(text))
    assert "".join(section for _, section in pieces) == text
    for number, section in pieces:
        assert "".join(lines[number - 1 :]).startswith(section)
        assert len(section) < 4 * 400 + 301


def test_section_ends_between_definitions():
    text = "".join(function(name, 30) for name in "abcd")
    assert [section for _, section in sections(text)] == [function(name, 30) for name in "abcd"]
    short = "".join(function(name, 2) for name in "abc")
    assert [section for _, section in sections(short)] == [short]


def test_near_duplicate_is_removed_and_rewritten_text_is_not():
    seen = NearDuplicates()
    original = function("a", 20)
    assert seen.accepts(original)
    assert not seen.accepts(original)
    assert not seen.accepts(original.replace("a_7 = 7", "a_7 = 8").replace("    ", "\t"))
    assert seen.accepts(original.replace("a_", "b_"))


def test_the_standard_library_has_five_hundred_validation_documents_that_are_no_copies_of_training_ones(stdlib):
    validation, training = stdlib
    assert len(validation) >= 500
    trained = set().union(*(line_runs(document.text) for document in training))
    copies = [d for d in validation if len((runs := line_runs(d.text)) & trained) > 0.5 * len(runs)]
    assert len(copies) <= 0.01 * len(validation)


def test_files_of_a_part_hold_what_they_hold_in_the_whole(stdlib):
    files = files_of(StdlibSource())[100:140]
    part = [document.origin for document in read(StdlibSource(), pytest.fail, files)]
    whole = {document.origin for split in stdlib for document in split}
    assert part
    assert set(part) == {origin for origin in whole if Path(origin.rpartition(":")[0]) in files}


def test_data_set_of_other_sections_is_refused(tmp_path, make_config, make_texts):
    prepared = make_config(tmp_path / "set", make_texts(30))
    config = DataConfig(dir=prepared.dir, source=StdlibSource())
    manifest = prepare(prepared)
    settings = preparation_settings(config)
    file = tmp_path / "set" / MANIFEST_FILE
    file.write_text(replace(manifest, settings=settings).to_json(), encoding="utf-8")
    assert finished_manifest(config) is not None
    for name in SECTION_SETTINGS:
        older = {key: value for key, value in settings.items() if key != f"source.{name}"}
        file.write_text(replace(manifest, settings=older).to_json(), encoding="utf-8")
        with pytest.raises(UserError, match=r"was cut into documents by another version: .*--overwrite"):
            finished_manifest(config)
