"""Attacks on what Tailrace promises, on real parts, each with an oracle: docs/reliability.md.

`python -m tests.reliability -h`. A module of this package that defines attacks (see `attack`) is found by itself.
"""
