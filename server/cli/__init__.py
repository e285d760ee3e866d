"""The commands that serve, and those that ask a server and show what it answers."""
