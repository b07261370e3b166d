"""Topics, consumers and producers: one contract (`base`), and three adapters: memory, confluent-kafka, aiokafka."""
