"""The one HTTP listener and the one HTTP client."""
