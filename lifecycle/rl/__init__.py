"""Where training and inference meet: rewards of completions, and environments that answer a model."""
