"""Checksums detect every flipped bit and do not depend on how the bytes are chunked."""

import random
import zipfile
import zlib
from itertools import pairwise

import pytest
import torch

from lit_illada.runtime import checksums
from lit_illada.runtime.checksums import (
    CHECKSUMS_FILE,
    Checksum,
    ChecksummedWriter,
    DamagedFileError,
    check_files,
    check_folder,
    check_zip,
    file_checksum,
    write_folder_checksums,
)
from lit_illada.runtime.files import FileError


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK_BYTES", 64)


def by_definition(content):
    blocks = [content[start : start + 64] for start in range(0, len(content), 64)]
    return f"{zlib.crc32(b''.join(zlib.crc32(block).to_bytes(4, 'little') for block in blocks)):08x}"


@pytest.mark.parametrize("size", [0, 1, 2, 63, 64, 65, 128, 1000])
def test_a_checksum_does_not_depend_on_how_bytes_are_chunked(size, small_blocks, tmp_path):
    content = random.Random(size).randbytes(size)
    file = tmp_path / "file"
    file.write_bytes(content)
    assert file_checksum(file) == by_definition(content)
    rng = random.Random(0)
    for _ in range(20):
        cuts = sorted({0, size, *(rng.randint(0, size) for _ in range(5))})
        pieces = [content[begin:end] for begin, end in pairwise(cuts)]
        whole = Checksum()
        with (tmp_path / "other").open("wb") as stream:
            writer = ChecksummedWriter(stream)
            for piece in pieces:
                whole.update(piece)
                writer.write(piece)
        assert (tmp_path / "other").read_bytes() == content
        assert writer.num_bytes == size
        assert whole.hexdigest() == writer.hexdigest() == by_definition(content)


def test_every_flipped_bit_of_a_zip_archive_is_detected(tmp_path):
    file = tmp_path / "state.ckpt"
    with file.open("w+b") as stream:
        writer = ChecksummedWriter(stream)
        torch.save({"weight": torch.arange(10.0)}, writer)
        writer.end_zip()
    assert check_zip(file)
    assert zipfile.ZipFile(file).testzip() is None  # still an archive that others read
    assert torch.load(file, weights_only=True)["weight"].tolist() == list(range(10))
    content, damaged = file.read_bytes(), tmp_path / "damaged.ckpt"
    comment = len(content) - 28
    for bit in random.Random(0).sample(range(8 * comment), 300):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        damaged.write_bytes(flipped)
        with pytest.raises(DamagedFileError, match=r"damaged.ckpt: damaged"):
            check_zip(damaged)


def test_a_folder_check_names_the_damaged_or_missing_file(tmp_path):
    for name in ("a.bin", "sub/b.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(range(100)))
    write_folder_checksums(tmp_path, ["a.bin", "sub/b.bin"])
    listing = tmp_path / CHECKSUMS_FILE
    assert check_files(listing) == {"a.bin", "sub/b.bin"}
    (tmp_path / "sub" / "b.bin").write_bytes(bytes(range(99)) + b"\0")
    with pytest.raises(DamagedFileError, match=r"sub/b.bin: damaged"):
        check_files(listing)
    (tmp_path / "sub" / "b.bin").unlink()
    with pytest.raises(DamagedFileError, match=r"sub/b.bin: missing"):
        check_files(listing)
    listing.write_text(listing.read_text().replace("sub", "sud"))
    with pytest.raises(DamagedFileError, match=r"checksums.json: damaged"):
        check_files(listing)


@pytest.mark.parametrize("folder", ["a link to nothing", "a folder"])
def test_an_unreadable_checksum_list_is_an_error(folder, tmp_path):
    assert check_folder(tmp_path) is None
    file = tmp_path / CHECKSUMS_FILE
    file.mkdir() if folder == "a folder" else file.symlink_to("nowhere")
    with pytest.raises(FileError, match=r"checksums\.json"):
        check_folder(tmp_path)
