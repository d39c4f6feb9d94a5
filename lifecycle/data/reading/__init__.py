"""Sources, containers and formats: from files to documents as they were read."""
