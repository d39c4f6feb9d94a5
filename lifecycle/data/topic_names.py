"""What token shards call the documents of a source that have a topic: `SOURCE/topic-07`, and those without one
`SOURCE/none`. What a mixture may call a topic of all sources, or of a corpus's: `topic-07`, `CORPUS/topic-07`."""

import re

NONE = "none"

_NAME = re.compile(rf"topic-\d{{2,}}|{NONE}")


def topic_name(number: int) -> str:
    """The name of a topic, behind its source's."""
    return f"topic-{number:02d}"


def divided(name: str) -> tuple[str, str] | None:
    """(what a topic is a part of, "" for everything; the topic's name); None for a name that is no topic's."""
    whole, _, topic = name.rpartition("/")
    return (whole, topic) if _NAME.fullmatch(topic) else None
