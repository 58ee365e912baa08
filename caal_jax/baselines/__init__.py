"""baselines: other detectors behind one contract, to stand beside the method in every table."""
