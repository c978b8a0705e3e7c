"""The parsers and rates against sysstat's and node_exporter's own figures."""

from typing import Any

import pytest
from tailrace_producers.collectors.cpu import utilization
from tailrace_producers.collectors.disk import Transfers, rates
from tailrace_producers.collectors.proc import (
    CpuTimes,
    parse_diskstats,
    parse_proc_stat,
    parse_sockstat,
    parse_vmstat,
)

from tests.data import reference

# The sockstat case quotes one of the two files its figures are from. This is the other:
# prometheus/node_exporter@69c398a817:collector/fixtures/proc/net/sockstat6 (Apache-2.0).
SOCKSTAT6 = "TCP6: inuse 17\nUDP6: inuse 9\nUDPLITE6: inuse 0\nRAW6: inuse 1\nFRAG6: inuse 0 memory 0\n"
PAGE_BYTES = 4096
TICKS_PER_S = 100


@pytest.mark.parametrize("case", reference("iostat"))
def test_rates_agree_with_iostat(case: dict[str, Any]) -> None:
    found = _cpu(case) if case["kind"] == "cpu" else _disk(case)
    assert found.keys() == case["expected"].keys()
    for name, expected in case["expected"].items():
        # Two decimals printed; the last bit is for 0.005 itself, which no float is.
        assert abs(found[name] - expected) <= 0.005 + 1e-9, name


def _cpu(case: dict[str, Any]) -> dict[str, float]:
    lines = [f"cpu  {' '.join(map(str, case[which]))}\n" for which in ("prev", "curr")]
    prev, curr = (parse_proc_stat(line, TICKS_PER_S).total for line in lines)
    shares = {mode: 100 * share for mode, share in utilization(prev, curr).items()}
    assert sum(shares.values()) == pytest.approx(100)
    shares["system"] += shares.pop("interrupt")  # iostat does not tell them apart
    return shares


def _disk(case: dict[str, Any]) -> dict[str, float]:
    lines = [f"   8       0 {case['device']} {' '.join(map(str, case[which]))}\n" for which in ("prev", "curr")]
    prev, curr = (parse_diskstats(line)[case["device"]] for line in lines)
    found = rates(prev, curr, case["interval_s"])
    figures = {
        "f/s": found.flushes_per_s,
        "f_await": found.flush_wait_s * 1000,
        "aqu-sz": found.queue,
        "%util": found.utilization * 100,
    }
    for letter, transfers in (("r", found.read), ("w", found.write), ("d", found.discard)):
        figures |= _direction(letter, transfers)
    return figures


def _direction(letter: str, transfers: Transfers) -> dict[str, float]:
    return {
        f"{letter}/s": transfers.operations_per_s,
        f"{letter}kB/s": transfers.bytes_per_s / 1024,
        f"{letter}rqm/s": transfers.merged_per_s,
        f"%{letter}rqm": transfers.merged_share * 100,
        f"{letter}_await": transfers.wait_s * 1000,
        f"{letter}areq-sz": transfers.bytes_per_operation / 1024,
    }


@pytest.mark.parametrize("case", reference("node_exporter_proc"))
def test_parsers_agree_with_node_exporter(case: dict[str, Any]) -> None:
    read = {"/proc/stat": _stat, "/proc/vmstat": _vmstat, "/proc/net/sockstat": _sockstat}[case["proc_file"]]
    found = read(case["text"])
    for expected in case["expected"]:
        key = (expected["metric"], *sorted(expected["labels"].items()))
        assert found[key] == expected["value"], key


Figures = dict[tuple[Any, ...], float]


def _stat(text: str) -> Figures:
    stat = parse_proc_stat(text, TICKS_PER_S)
    found: Figures = {
        ("node_cpu_seconds_total", ("cpu", number), ("mode", mode)): getattr(times, mode)
        for number, times in stat.cpus.items()
        for mode in CpuTimes._fields
    }
    for metric, counter in {
        "node_boot_time_seconds": "btime",
        "node_context_switches_total": "ctxt",
        "node_forks_total": "processes",
        "node_intr_total": "intr",
        "node_procs_blocked": "procs_blocked",
        "node_procs_running": "procs_running",
    }.items():
        found[(metric,)] = stat.counters[counter]
    return found


def _vmstat(text: str) -> Figures:
    return {(f"node_vmstat_{name}",): number for name, number in parse_vmstat(text).items()}


def _sockstat(text: str) -> Figures:
    sockets = parse_sockstat(text) | parse_sockstat(SOCKSTAT6)
    found: Figures = {(f"node_sockstat_{protocol}_{field}",): n for (protocol, field), n in sockets.items()}
    return found | {
        (f"node_sockstat_{protocol}_mem_bytes",): sockets[protocol, "mem"] * PAGE_BYTES for protocol in ("TCP", "UDP")
    }
