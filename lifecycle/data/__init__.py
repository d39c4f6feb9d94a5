"""From raw files to clean documents, token shards and rows."""
