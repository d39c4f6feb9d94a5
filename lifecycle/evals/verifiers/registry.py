"""The verifiers by name: `check` of an evaluation task, and `name` of a reward."""

from lifecycle.evals.verifiers.base import Verifier
from lifecycle.evals.verifiers.code import Code
from lifecycle.evals.verifiers.maths import Maths
from lifecycle.evals.verifiers.texts import Contains, Exact, JsonSchema, LastNumber, Regex

VERIFIERS: dict[str, type[Verifier]] = {
    kind.verifier: kind for kind in (Exact, Contains, LastNumber, Regex, JsonSchema, Maths, Code)
}
