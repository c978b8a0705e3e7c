"""Wall and CPU time and memory of a measured process."""

import resource
import time
from pathlib import Path


class Clock:
    """Wall and CPU seconds from the first sample on."""

    def __init__(self) -> None:
        self.samples = 0
        self._wall: float | None = None
        self._cpu = 0.0
        self._end: tuple[float, float] | None = None

    def count(self, samples: int) -> None:
        if self._wall is None:
            self._wall, self._cpu = time.perf_counter(), time.process_time()
        self.samples += samples

    def stop(self) -> None:
        """The work is done, until this is called again."""
        self._end = time.perf_counter(), time.process_time()

    def result(self) -> dict[str, float]:
        assert self._wall is not None
        wall, cpu = self._end or (time.perf_counter(), time.process_time())
        return {
            "samples": self.samples,
            "seconds": wall - self._wall,
            "cpu_seconds": cpu - self._cpu,
            "peak_mb": _peak_mb(),
        }


def _peak_mb() -> float:
    """Of this process since it was started; getrusage would count the parent that forked it."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
