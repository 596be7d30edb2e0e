#!/usr/bin/env bash
# Everything of docs/benchmarks.md that needs a GPU, on one, in under nine minutes. From the repository's root:
#   bash bench/gpu.sh                   # all pieces, then one short table of them
#   bash bench/gpu.sh data step-bf16    # some of them; `data` and `fill-whole` come before `step-*` and `recipe-*`
# A piece that fails, or takes longer than its share, is told and passed over. Results are tables here and JSON in $BENCH. Sizes are
# variables, so that every piece can be tried in small on the CPU:
#   DEVICE=cpu IMAGES=24 DRAWN=8 WIDTH=4 SIZE=[64,128] STEPS=4 RECIPE_S=60 EVERY=2 SMALL=1 bash bench/gpu.sh
set -uo pipefail
device=${DEVICE:-cuda} images=${IMAGES:-5120} drawn=${DRAWN:-96} width=${WIDTH:-64} size=${SIZE:-[208,976]} steps=${STEPS:-100}
recipe_s=${RECIPE_S:-75} every=${EVERY:-500} bench=${BENCH:-reports/bench} python=${PYTHON:-python} deadline=${DEADLINE:-530}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
config=bench/step.yaml
wide=(--set teacher.width=$width --set "prepare.size=$size" --set dataset.train=$images --set training.norm_every=1000)
fast=(--set training.precision=bf16 --set training.channels_last=true)
bf16=(--set teacher.precision=bf16)                            # the cache that students are trained from
fill=(--blocks 4 --rows 128 --batch 32 --runs 3) moments=(--runs 20) batch=32
if [ -n "${SMALL:-}" ]; then
  fill=(--blocks 2 --rows 4 --batch 4 --runs 1) moments=(--runs 1 --shapes 2x8x10x10 2x16x10x10) batch=4
  wide+=(--set students.erfnet.width=4 --set training.batch=4)
fi

pipeline() { "$python" -m pipeline.cli "$@"; }
step() { "$python" -m bench.step $config "${wide[@]}" "${bf16[@]}" --device $device --steps $steps --out $bench/gpu-step-$1.json "${@:2}"; }
recipe() { "$python" -m bench.recipe --device $device --out $bench/gpu-recipe-$1.json "${@:2}"; }

piece() {
  case $1 in
    data)                                                      # a few drawn pictures under many names; a teacher of full width
      pipeline synth $config "${wide[@]}" --set dataset.train=$drawn &&
      "$python" -m bench.many $config --drawn $drawn "${wide[@]}" &&
      pipeline synth $config "${wide[@]}" && pipeline prepare $config "${wide[@]}" &&
      pipeline train-teacher $config "${wide[@]}" "${bf16[@]}" --device $device ;;
    fill-whole)                                                # the command itself, on all images
      pipeline cache-teacher $config "${wide[@]}" "${bf16[@]}" --device $device --batch $batch &&
      recipe fill --cache "$(ls -td cache/roads/targets-* | head -1)" ;;
    fill-fp32 | fill-bf16)                                     # against the bare forward; no cache is needed
      "$python" -m bench.fill $config "${wide[@]}" --set teacher.precision=${1#fill-} "${fill[@]}" --device $device \
        --out $bench/gpu-$1.json ;;
    step-fp32) step fp32 ;;
    step-bf16) step bf16 "${fast[@]}" ;;
    step-compiled) step compiled "${fast[@]}" --set training.compile=true --cached-only ;;
    step-graphs) step graphs "${fast[@]}" --set training.compile=graphs --cached-only ;;
    recipe-bf16 | recipe-graphs)                               # the paper's 80,000 steps, stopped after a while
      options=("${fast[@]}" --set training.steps=80000 --set training.checkpoint_every=$every --set training.norm_every=200)
      if [ $1 = recipe-graphs ]; then options+=(--set training.compile=graphs) recipe_s=$((recipe_s + 45)); fi    # it compiles first
      rm -rf runs/step/erfnet-intra-0
      timeout --foreground $recipe_s "$python" -m pipeline.cli train-student $config "${wide[@]}" "${bf16[@]}" "${options[@]}" \
        --student erfnet --method intra --seed 0 --device $device
      recipe ${1#recipe-} --run runs/step/erfnet-intra-0 ;;
    moments) "$python" -m bench.moments --device $device "${moments[@]}" --out $bench/gpu-moments.json ;;
    *) echo "$1: no such piece" >&2; return 2 ;;
  esac
}

if [ "${1:-}" = --piece ]; then piece "$2"; exit; fi
mkdir -p $bench
pieces=("${@:-data}")
if [ $# = 0 ]; then
  pieces=(data fill-whole step-fp32 step-bf16 recipe-bf16 fill-bf16 moments recipe-graphs fill-fp32 step-compiled step-graphs)
fi
for name in "${pieces[@]}"; do
  left=$((deadline - SECONDS))
  if [ $left -lt 20 ]; then echo "== $name: passed over, the time is up"; continue; fi
  echo "== $name (at $SECONDS s)"
  timeout $left bash "$0" --piece "$name" || echo "== $name: failed"
done
"$python" -m bench.summary $bench | tee $bench/gpu-summary.md
echo "in $SECONDS s"
