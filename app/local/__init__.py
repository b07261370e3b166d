"""Servers as local processes: Kafka, Redis and the stub of the Messages API, without Docker."""
