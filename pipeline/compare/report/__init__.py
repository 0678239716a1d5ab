"""The comparison for people: table, picture, page."""
