"""The puzzlefs command: parses, calls, prints."""
