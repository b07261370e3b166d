"""The adapter of aiokafka, and the only place that knows it."""

from app.broker.aiokafka.broker import AioKafkaBroker

__all__ = ["AioKafkaBroker"]
