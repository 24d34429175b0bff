"""Where chunks come from: protocols, sources, and one decorator a file."""
