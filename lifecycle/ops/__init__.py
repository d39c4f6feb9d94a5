"""Operations: registry and promotion gate, request log and cost, lineage."""
