"""What is computed: the records on each topic and the declared streams, one file a use case; and what the demo plays. Data only."""
