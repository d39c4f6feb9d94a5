"""Operations worth their own implementation: each a plain reference, fast versions, and one dispatch."""
