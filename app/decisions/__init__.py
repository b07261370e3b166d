"""From an alert to a decision, and from a decision to its effects: decide first, then act; failure never approves."""
