"""Signs an altered file anew, as a hostile author would: a checksum proves that nothing changed, not more."""

from pathlib import Path


def sign_checkpoint(path: Path) -> None:
    """End a checkpoint file with the checksum of its content."""
    from lit_illada.runtime.checksums import ChecksummedWriter

    content = path.read_bytes()
    with path.open("w+b") as stream:
        writer = ChecksummedWriter(stream)
        writer.write(content)
        writer.end_zip()


def sign_folder(folder: Path) -> None:
    """List the checksums of an export's or a converted folder's files anew."""
    from lit_illada.runtime.checksums import CHECKSUMS_FILE, write_folder_checksums

    files = [
        path for path in folder.rglob("*") if path.is_file() and path.name not in (CHECKSUMS_FILE, "provenance.jsonl")
    ]
    write_folder_checksums(folder, [str(path.relative_to(folder)) for path in files])
