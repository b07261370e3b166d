"""The Kafka adapter, and the only place that knows confluent-kafka."""

from app.broker.kafka.broker import KafkaBroker

__all__ = ["KafkaBroker"]
