"""The programs of a plan: lowered, compiled for chips that are not present, and cached; and lowering contracts."""
