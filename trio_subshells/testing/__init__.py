"""Deterministic concurrency tests: every interleaving on demand, replayed and explained."""

__all__: list[str] = []
