"""Features as agents read them: the store, and the materializer that keeps it."""
