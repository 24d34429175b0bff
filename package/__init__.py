"""Makes what distributions install: a Debian package, manual pages from the commands, shell completions."""
