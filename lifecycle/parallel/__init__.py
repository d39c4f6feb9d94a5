"""Where arrays and work go on a mesh: axes and rules, collectives by logical axis, placement of batches."""
