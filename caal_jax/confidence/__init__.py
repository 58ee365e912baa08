"""confidence: samples of members in; beliefs, calibrated probabilities and verdicts out."""
