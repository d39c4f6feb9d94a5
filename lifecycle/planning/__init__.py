"""Planning: what a run needs and how fast it would be on chips that are not present, according to the compiler."""
