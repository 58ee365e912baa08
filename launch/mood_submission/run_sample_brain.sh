#!/bin/sh
# MOOD's entry point, sh run_sample_brain.sh INPUT OUTPUT: a score for every volume of $1 into $2.
set -eu
here=$(dirname "$0")
exec python "$here/predict_mood.py" --mode=sample --run="$here/brain" --input="$1" --output="$2"
