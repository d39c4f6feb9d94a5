"""The stages of a run: one short file per kind, the graph, and the chain that runs it. Only the CLI imports this
room."""
