"""Declared streams: expressions and graphs as data, compilers to text, and the asyncio engine that runs them."""
