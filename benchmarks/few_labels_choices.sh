#!/usr/bin/env bash
# Around the few-label study: how to fine-tune from pretrained weights and with unlabelled scans (validation cases),
# and misfm beside nnU-Net for the same seconds (test cases).
# usage: bash benchmarks/few_labels_choices.sh DATA RUNS
# DATA is made by `python benchmarks/data.py fetch DATA`. Stopped, it goes on.
set -euo pipefail
data=$1 runs=$2
here=$(dirname "$0")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE

arms() {
  python "$here/arms.py" --dataset "$data/Dataset002_HeadNeckCT" --out "$runs/arms" --set 'patch_size=[40,40,40]' \
    --set batch_size=2 --set overlap=0.25 --set 'spacing=[2.5,3.9,3.9]' --set intensity=ct:-200,600 "$@"
}

arms --name few_labels_transfer --seeds 0,1 --arm pretrained=builtin \
  --arm sawtooth=builtin,training.schedule.name=sawtooth \
  --arm "layer decay=builtin,training.optimizer.layer_decay=0.75"

misfm ingest "$data/unlabelled/head_neck_ct" --store "$runs/unlabelled" --spacing 2.5,3.9,3.9 \
  --intensity ct:-200,600
arms --name few_labels_teacher --seeds 0 --arm scratch= \
  --arm "teacher 10=,unlabelled.store=$runs/unlabelled,unlabelled.weight=10"

for seed in 0 1; do  # 800 s are about 5,500 steps
  for start in "" "--weights builtin"; do
    # shellcheck disable=SC2086 # two words
    python "$here/nnunet_peer.py" --dataset "$data/Dataset002_HeadNeckCT" --labels 5 --seconds 800 \
      --spacing 2.5,3.9,3.9 --overlap 0.25 --out "$runs/peer" --seed "$seed" --misfm $start
  done
done
