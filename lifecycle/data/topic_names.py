"""What token shards call the documents of a source that have a topic: `SOURCE/topic-07`, and those without one
`SOURCE/none`."""

import re

NONE = "none"

_NAME = re.compile(r"topic-\d{2,}")


def topic_name(number: int) -> str:
    """The name of a topic, behind its source's."""
    return f"topic-{number:02d}"


def is_part(name: str, source: str) -> bool:
    """Whether this may be the name of a source's documents with a topic, or of those without one."""
    own, _, topic = name.rpartition("/")
    return own == source and (topic == NONE or _NAME.fullmatch(topic) is not None)
