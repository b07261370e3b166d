"""What answers a decision: the Messages API, or rules that need no network; and the gate in front of either."""
