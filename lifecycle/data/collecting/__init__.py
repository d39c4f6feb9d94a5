"""Pages of the web, fetched into archives that are then a source like any other."""
