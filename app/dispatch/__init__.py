"""Many handlers at once inside one partition, and no record ever lost: tracker, lanes, retries, dispatcher."""
