"""Names that a run gives: of its stages, and of the aliases that it moves."""

import re

DATA_STAGES = ("tagging", "documents", "tokenizer", "tokens", "rows")
WIN_RATES = "win-rates"
OTHER_STAGES = ("baseline", "bundle", "export", "register", "report", WIN_RATES)
PRODUCTION, CANDIDATE = "production", "candidate"  # the aliases that a run moves
EVALUATE = "evaluate-"  # with a training stage's name: the stage that evaluates its weights
STAGE_NAME = re.compile(r"[a-z][a-z0-9_-]*")
