"""Record, clock, errors, codec, settings: what every room speaks. Standard library, msgspec and anyio only."""
