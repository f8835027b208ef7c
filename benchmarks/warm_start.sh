#!/usr/bin/env bash
# Does Volume Fusion on own scans add to `builtin`? From `builtin`, 2,000 steps of the default recipe on the unlabelled
# head-neck CT; then five labels for a third of the steps of the few-label study, beside its runs from scratch.
# usage: bash benchmarks/warm_start.sh DATA RUNS
# DATA is made by `python benchmarks/data.py fetch DATA`. Stopped, it goes on where it was; SEEDS=0,1,2,3 takes more
# choices of cases.
set -euo pipefail
data=$1 runs=$2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
misfm ingest "$data/unlabelled/head_neck_ct" --store "$runs/head_neck" --spacing 2.5,3.9,3.9 --intensity ct:-200,600
misfm pretrain --store "$runs/head_neck" --weights builtin --steps 2000 --out "$runs/warm" --resume
python "$(dirname "$0")/arms.py" --dataset "$data/Dataset002_HeadNeckCT" --out "$runs/warm_start" --name warm_start \
  --known few_labels_draws_head_neck --draws --test --seeds "${SEEDS:-0}" --set 'patch_size=[40,40,40]' \
  --set batch_size=2 --set overlap=0.25 --set 'spacing=[2.5,3.9,3.9]' --set intensity=ct:-200,600 --steps 5000 \
  --validate-every 500 --arm scratch= --arm "builtin + VF, a third of the steps=$runs/warm/weights.safetensors,training.steps=1667"
