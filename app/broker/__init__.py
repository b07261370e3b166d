"""Topics, consumers and producers: one contract (`base`), a memory and a Kafka adapter."""
