"""`tailrace replay`: a file of samples or an access log, pushed through Kafka as if it had happened.

Needs numpy and pyarrow, unlike the rest of this distribution's producers: nothing here is imported by them.
"""

from tailrace_producers.replay.model import BadLine, BadReason, ReplayError, ReplayOptions
from tailrace_producers.replay.push import CommittedOffsets, Progress, ReplayResult, replay, wait_stored

__all__ = [
    "BadLine", "BadReason", "CommittedOffsets", "Progress", "ReplayError", "ReplayOptions", "ReplayResult",
    "replay", "wait_stored",
]  # fmt: skip
