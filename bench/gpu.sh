#!/usr/bin/env bash
# Everything of docs/benchmarks.md on one GPU. From the repository's root:   bash bench/gpu.sh [PIECE ...]
# Pieces take under ten minutes each and may be repeated in any order after `data`; each goes on where it was stopped.
# Results are tables here and JSON under reports/bench/.
set -euo pipefail
config=bench/step.yaml
wide=(--set teacher.width=64 --set dataset.train=192)
for piece in "${@:-all}"; do
  case $piece in
    all) "$0" data moments step bf16 options fill ;;
    data)                                                  # 192 drawn images, and a teacher of full width that is minutes old
      for command in synth prepare train-teacher cache-teacher; do pipeline $command $config "${wide[@]}"; done ;;
    moments) python -m bench.moments --device cuda --runs 20 --out reports/bench/gpu-moments.json ;;
    step) python -m bench.step $config "${wide[@]}" --steps 100 --out reports/bench/gpu-step.json ;;
    bf16) python -m bench.step $config "${wide[@]}" --steps 100 --set training.precision=bf16 --set training.channels_last=true \
      --out reports/bench/gpu-step-bf16.json ;;
    options)                                               # compiled, the slowest to start
      python -m bench.step $config "${wide[@]}" --steps 100 --cached-only --set training.precision=bf16 \
        --set training.channels_last=true --set training.compile=true --out reports/bench/gpu-step-compiled.json ;;
    fill)
      for precision in fp32 bf16; do                       # another precision is another identity, but needs no cache here
        python -m bench.fill $config "${wide[@]}" --set teacher.precision=$precision --blocks 6 --rows 32 --batch 32 --runs 5 \
          --out reports/bench/gpu-fill-$precision.json
      done ;;
    *) echo "$piece: not one of all, data, moments, step, bf16, options, fill" >&2; exit 2 ;;
  esac
done
