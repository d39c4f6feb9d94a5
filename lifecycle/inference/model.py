"""A model that is ready for inference: weights, tokenizer, chat template, defaults and a version."""

from dataclasses import dataclass, field, replace

from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Model:
    """The model that an engine runs. `version` is the content hash of the loaded bundle, "" for a model made in
    memory."""

    config: ModelConfig
    params: Params  # layers in stacks, as they are trained, or apart, as an engine takes them
    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: SamplingParams = field(default_factory=SamplingParams)  # for settings that a request does not give
    version: str = ""

    @property
    def without_weights(self) -> "Model":
        """The rest of it: an engine's programs have weights of their own, and two copies may not fit a device."""
        return replace(self, params={})

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer unless the request has its own."""
        return self.defaults.stop_ids if self.defaults.stop_ids is not None else tuple(self.template.stop_ids)
