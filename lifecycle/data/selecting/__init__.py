"""From tagged documents to kept, held-out and removed ones: rules, comparisons, split."""
