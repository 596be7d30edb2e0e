#!/usr/bin/env bash
# CamVid at full size with a full-width ResNet-101 on one GPU: the whole path, then the step's cost. From the repository's root,
# with the dataset at data/camvid:   bash bench/camvid_gpu.sh
set -euo pipefail
config=configs/camvid.yaml
pipeline prepare $config
time pipeline train-teacher $config
pipeline evaluate $config --teacher
time pipeline cache-teacher $config --batch 16
pipeline verify $config --recompute 64
for method in plain intra kd; do
  time pipeline train-student $config --student erfnet --method $method --seed 0
  pipeline evaluate $config --student erfnet --method $method --seed 0
done
pipeline report $config
python -m bench.step $config --student erfnet --method intra --steps 100
