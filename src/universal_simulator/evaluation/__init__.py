"""The evaluation room: metrics, baselines beside every number, reports."""
