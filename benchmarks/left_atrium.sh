#!/usr/bin/env bash
# Few labels on left atrium MR: five labels from scratch and from `builtin`, a third of the steps, and scratch with ten,
# on the published test cases; other labelled cases in each replicate.
# usage: bash benchmarks/left_atrium.sh DATA RUNS
# DATA holds Dataset003_LeftAtrium, made by `python benchmarks/data.py`. Stopped, it goes on where it was; runs from
# scratch that the committed results hold are taken from there with KNOWN=1.
set -euo pipefail
data=$1 runs=$2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
python "$(dirname "$0")/arms.py" --dataset "$data/Dataset003_LeftAtrium" --out "$runs/left_atrium" \
  --name left_atrium_draws ${KNOWN:+--known left_atrium_draws} --draws --test --seeds 0,1,2,3 \
  --steps 1500 --validate-every 250 --set 'patch_size=[40,40,40]' --set batch_size=2 --set overlap=0.25 \
  --set 'spacing=[1.25,1.25,1.25]' --set intensity=mr \
  --arm scratch= --arm pretrained=builtin --arm "pretrained, a third of the steps=builtin,training.steps=500" \
  --arm "scratch, 10 labels=,labels=10"
