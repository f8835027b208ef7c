#!/usr/bin/env bash
# Does Volume Fusion pay, and from how much pretraining on? Pretext tasks on the 185 unlabelled head-neck CT, each for a
# budget of core hours, from nothing and from `builtin`; then five labels for a third of the steps of the few-label
# study, with its choices of cases, beside its runs from scratch.
# usage: bash benchmarks/pretraining_curve.sh DATA RUNS TASK:HOURS:START...
#   TASK is volume-fusion-v2, mae, misfm or phantom-anatomy, START none or builtin: volume-fusion-v2:0.25:none
# DATA is made by `python benchmarks/data.py fetch DATA`. Stopped, it goes on where it was. What is given first is
# finished first; SEEDS=0,1,2,3 takes more choices of cases. Points of earlier calls stay in the results.
set -euo pipefail
data=$1 runs=$2
shift 2
here=$(dirname "$0")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
# Steps of an hour of one core that does nothing else (benchmarks/pretext_cost.py).
declare -A hourly=([volume-fusion-v2]=10380 [mae]=11970 [misfm]=3540 [phantom-anatomy]=7230)
declare -A recipe=([volume-fusion-v2]=small [mae]=small [misfm]=misfm [phantom-anatomy]=phantom-anatomy)

misfm ingest "$data/unlabelled/head_neck_ct" --store "$runs/head_neck" --spacing 2.5,3.9,3.9 --intensity ct:-200,600
arms=()
for budget in "$@"; do
  IFS=: read -r task hours start <<<"$budget"
  out=$runs/curve/$task-$hours-$start
  store=$runs/head_neck options=()
  [ "$task" = phantom-anatomy ] && store=phantom:760
  [ "$task" = mae ] && options=(--set 'pretext={name: mae}')
  steps=$(awk -v per="${hourly[$task]}" -v hours="$hours" 'BEGIN { printf "%d", per * hours }')
  [ -e "$out/weights.safetensors" ] || misfm pretrain --recipe "${recipe[$task]}" --store "$store" --weights "$start" \
    --steps "$steps" --out "$out" --set training.validate_every=1000 "${options[@]}" --resume
  arms+=(--arm "$task $hours h from $start=$out/weights.safetensors,training.steps=1667,select=false")
  python "$here/arms.py" --dataset "$data/Dataset002_HeadNeckCT" --out "$runs/curve/arms" --name pretraining_curve \
    --known few_labels_draws_head_neck --keep --draws --test --seeds "${SEEDS:-0,1,2}" --set 'patch_size=[40,40,40]' \
    --set batch_size=2 --set overlap=0.25 --set 'spacing=[2.5,3.9,3.9]' --set intensity=ct:-200,600 \
    --steps 5000 --validate-every 500 --arm scratch= "${arms[@]}"
done
