"""Work in processes of its own: with limits, killed when it exceeds them, and closed off where it is not trusted."""
