"""Map steps: what is measured of a document, and what is changed in it, and the rules over that."""
