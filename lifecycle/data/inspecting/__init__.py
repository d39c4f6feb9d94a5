"""What can be asked of finished documents: surveys, samples, comparisons, fates, spans of text."""
