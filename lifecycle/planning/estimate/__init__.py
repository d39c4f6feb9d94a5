"""From a compiled module to seconds, tokens and money: networks, the expected step, budgets and their assumptions."""
