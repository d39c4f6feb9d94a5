"""The document steps in their order: new filters are added to this list.

The order matters: all measures are of normalised text, lines are removed once the language is known and before the
rest is measured, quality and what is unwanted are measured before personal data is masked, and the id and the keys of
near-duplicates are made of the final text.
"""

from collections.abc import Callable

from lifecycle.data.clean_lines import lines_step
from lifecycle.data.config import DataConfig
from lifecycle.data.identity import identity_step
from lifecycle.data.language import language_step
from lifecycle.data.minhash import signature_step
from lifecycle.data.normalise import normalise_step
from lifecycle.data.pii import pii_step
from lifecycle.data.quality import quality_step
from lifecycle.data.steps import DocumentStep
from lifecycle.data.unwanted import unwanted_step

_STEPS: tuple[Callable[[DataConfig], DocumentStep], ...] = (
    normalise_step,
    language_step,
    lines_step,
    quality_step,
    unwanted_step,
    pii_step,
    identity_step,
    signature_step,
)


def document_steps(config: DataConfig) -> tuple[DocumentStep, ...]:
    """All steps with their settings, in order."""
    return tuple(make(config) for make in _STEPS)
