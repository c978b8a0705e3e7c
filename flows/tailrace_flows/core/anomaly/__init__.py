"""Anomalies in one series, strictly causal: `Detector` takes point by point, `DetectorBank` many series at a time."""

from tailrace_flows.core.anomaly.bank import Band, DetectorBank, Verdicts
from tailrace_flows.core.anomaly.config import AnomalyConfig, Direction
from tailrace_flows.core.anomaly.detector import Detector, Verdict
from tailrace_flows.core.anomaly.joint import Joint

__all__ = ["AnomalyConfig", "Band", "Detector", "DetectorBank", "Direction", "Joint", "Verdict", "Verdicts"]
