"""Operating a model: evaluating it, versioning it, guarding its promotion, logging its requests, tracing its origin."""
