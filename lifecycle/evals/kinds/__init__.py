"""The built-in kinds of tasks. A kind is one file here and a registration below."""

from lifecycle.evals.kinds.bits_per_byte import BitsPerByteTask
from lifecycle.evals.kinds.generation import GenerationTask
from lifecycle.evals.kinds.greedy_match import GreedyMatchTask
from lifecycle.evals.kinds.multiple_choice import MultipleChoiceTask
from lifecycle.evals.kinds.schema import SchemaTask
from lifecycle.evals.tasks import register

register("bits_per_byte", BitsPerByteTask)
register("multiple_choice", MultipleChoiceTask)
register("generate", GenerationTask)
register("greedy_match", GreedyMatchTask)
register("schema", SchemaTask)
