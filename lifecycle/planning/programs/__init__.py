"""The programs a plan is made of: lowered, compiled for chips that are not here, kept; and lowering contracts."""
