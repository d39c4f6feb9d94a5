"""The mesh: axes and rules, collectives by logical axis, placement of batches and states."""
