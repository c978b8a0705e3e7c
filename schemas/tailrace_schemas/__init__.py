"""The contracts of Tailrace: what is on the topics, how it is encoded, and the clock.

Importing this package needs only the base install (fastavro); `rows` needs pyarrow.
"""
