"""Plans and searches for people: tables, bars and pages."""
