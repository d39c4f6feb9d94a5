"""What worker processes begin with: the server that forks them imports it once, so that each starts in 10 ms."""

from lifecycle.data.measures.minhash import simplified
from lifecycle.data.ngrams import word_hashes
from lifecycle.data.selecting import pipeline
from lifecycle.data.tagging import tagging

__all__ = ["pipeline", "tagging"]

word_hashes("")  # loads the compiled loops
simplified()  # and the tables of characters
