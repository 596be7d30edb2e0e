#!/usr/bin/env bash
# The study's full protocol on one GPU, in pieces: a call works for STUDY_SECONDS (540) at most and goes on where the last one
# stopped. From the repository's root, with the dataset where the config looks for it:   bash bench/study_gpu.sh
# Exit 0: the table is written. 75: call again. 3: the teacher did not pass its gate, and nothing was distilled.
# STUDY_CONFIG, STUDY_GATE and STUDY name other files, e.g. toy ones for a CPU; an empty STUDY_GATE skips the gate. STUDY_PARTS are the
# values of dataset.labelled_part that the study's arms have, each of which needs its own graphs. STUDY_JOBS is the number of students
# at a time; STUDY_OUT a folder that gets a copy of the scores and tables at the end of every call. With few labels (drawn lanes):
#   pipeline synth configs/roads-few.yaml
#   STUDY_CONFIG=configs/roads-few.yaml STUDY_GATE= STUDY_PARTS="0.03 0.1 1.0" STUDY=configs/studies/roads-few-labels.yaml bash bench/study_gpu.sh
set -euo pipefail
config=${STUDY_CONFIG:-configs/camvid-360.yaml}
gate=${STUDY_GATE-configs/studies/camvid-360-gate.yaml}
study=${STUDY:-configs/studies/camvid-360.yaml}
jobs=${STUDY_JOBS:-4}
teacher=teachers/$(basename "$config" .yaml).safetensors

keep() { if [[ -n ${STUDY_OUT:-} && -d reports/studies ]]; then mkdir -p "$STUDY_OUT" && cp -r reports/studies "$STUDY_OUT"; fi; }
trap keep EXIT

again() { echo "$1; call again" >&2; exit 75; }

piece() {                                   # a command, for what is left of this call
  local left=$((${STUDY_SECONDS:-540} - SECONDS)) code=0
  ((left > 0)) || again "out of time before: $*"
  timeout --signal=TERM --kill-after=20 "$left" "$@" || code=$?
  case $code in
    0) ;;
    75 | 124 | 137) again "stopped for now: $*" ;;
    *) exit "$code" ;;
  esac
}

piece pipeline prepare "$config"
[[ -f $teacher ]] || piece pipeline train-teacher "$config"
if [[ -n $gate ]]; then
  piece pipeline study "$gate" --jobs "$jobs"
  if ! grep -q ": passed" "reports/studies/$(basename "$gate" .yaml).md"; then
    echo "the teacher did not pass its gate; make a better one, and move $teacher and reports/studies away" >&2
    exit 3
  fi
fi
for part in ${STUDY_PARTS:-""}; do
  piece pipeline cache-teacher "$config" --batch 16 ${part:+--set dataset.labelled_part="$part"}
done
piece pipeline study "$study" --jobs "$jobs"
