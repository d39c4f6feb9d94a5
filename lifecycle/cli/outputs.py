"""Where a verb writes what the user names: whether that can be written is told before the work, not after it."""

import tempfile
from pathlib import Path


def takes_file(kind: object, path: Path | None) -> None:
    """A validator of options: raises `ValueError` if no file can be written at a place, whose folders need not be there
    yet. None, the default of an option that nobody gave, is validated, too."""
    del kind
    if path is None:
        return
    if path.is_dir():
        raise ValueError("this is a folder; name a file")
    _require_writable(path, "file")


def takes_folder(kind: object, path: Path) -> None:
    """A validator of options: raises `ValueError` if a place, or the first folder above it that there is, is no folder
    that takes files."""
    del kind
    _require_writable(path / "file", "folder")


def _require_writable(path: Path, what: str) -> None:
    above = next(folder for folder in path.absolute().parents if folder.exists() or folder.is_symlink())
    if not above.is_dir():
        raise ValueError(f"{above} is no folder; remove it, or choose another {what}")
    try:
        with tempfile.TemporaryDirectory(dir=above, prefix=".lifecycle-"):  # some file systems say only so
            pass
    except OSError as error:
        raise ValueError(f"{above} takes no files ({error.strerror}); choose a {what} elsewhere") from None
