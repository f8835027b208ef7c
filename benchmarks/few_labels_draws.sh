#!/usr/bin/env bash
# The few-label study to the plateau, with other labelled cases in each replicate: from scratch and pretrained with
# five labels, from scratch with ten, and pretrained with a third of the steps. One pretraining on generated anatomy.
# usage: bash benchmarks/few_labels_draws.sh DATA RUNS
# DATA holds Dataset001_Hippocampus and Dataset002_HeadNeckCT. Stopped, it goes on where it was.
set -euo pipefail
data=$1 runs=$2
here=$(dirname "$0")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
weights=$runs/anatomy/weights.safetensors

[ -e "$weights" ] || misfm pretrain --recipe phantom-anatomy --store phantom:800 \
  --set training.validate_every=1000 --out "$runs/anatomy" --resume

arms() {  # DATASET NAME STEPS SEEDS OPTIONS
  local dataset=$1 name=$2 steps=$3 seeds=$4
  shift 4
  python "$here/arms.py" --dataset "$data/$dataset" --out "$runs/$name" --name "few_labels_draws_$name" \
    --draws --seeds "$seeds" --test --steps "$steps" --set 'patch_size=[40,40,40]' --set batch_size=2 \
    --set overlap=0.25 --arm scratch= --arm "pretrained=$weights" "$@"
}

head_neck() {
  arms Dataset002_HeadNeckCT head_neck 5000 0,1,2,3 --validate-every 500 --set 'spacing=[2.5,3.9,3.9]' \
    --set intensity=ct:-200,600 "$@"
}

hippocampus() {
  arms Dataset001_Hippocampus hippocampus 2000 0,1,2,3,4,5 --validate-every 250 --set 'spacing=[1,1,1]' \
    --set intensity=mr "$@"
}

head_neck --arm "pretrained, a third of the steps=$weights,training.steps=1667" --arm "scratch, 10 labels=,labels=10"
hippocampus --arm "pretrained, a third of the steps=$weights,training.steps=667" --arm "scratch, 10 labels=,labels=10"
