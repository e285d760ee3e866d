"""The proto's messages to the library's data and back. Nothing here runs anything."""
