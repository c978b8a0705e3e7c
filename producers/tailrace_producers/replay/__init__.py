"""`tailrace replay`: a file of samples or an access log, pushed through Kafka as if it had happened.

Needs numpy and pyarrow, unlike the rest of this distribution's producers: nothing here is imported by them.
"""

from tailrace_producers.replay.columns import times_of
from tailrace_producers.replay.model import BadLine, BadLines, BadReason, Catalogue, ReplayError, ReplayOptions
from tailrace_producers.replay.push import CommittedOffsets, Progress, ReplayResult, replay, wait_stored
from tailrace_producers.replay.readers import read_blocks
from tailrace_producers.replay.source import FileBytes

__all__ = [
    "BadLine", "BadLines", "BadReason", "Catalogue", "CommittedOffsets", "FileBytes", "Progress", "ReplayError",
    "ReplayOptions", "ReplayResult", "read_blocks", "replay", "times_of", "wait_stored",
]  # fmt: skip
