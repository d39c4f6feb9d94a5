"""Lists that users keep in files: an entry on each line, in UTF-8."""

from pathlib import Path

from lifecycle.core.config import ConfigError

SHOWN_CHARS = 100  # of an entry, in a message


def shown_entry(entry: object) -> str:
    """An entry as a message has it, however long it is: a file that is no list may be one line."""
    text = repr(entry)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def list_lines(path: Path) -> list[str]:
    """The lines of a list; raises `ConfigError` for a file that cannot be read or is no text, naming it."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeError as error:
        raise ConfigError(f"{path}: no list of text: {error}; save it as UTF-8, an entry on each line") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a file with an entry on each line") from None
