#!/usr/bin/env bash
# Around the few-label study: how to fine-tune from pretrained weights and with unlabelled scans (validation
# cases), and what is left of the gain with a third of the steps, with far more of them and with another choice of
# five labelled cases: those of the datasets' fewshot.json, where `misfm compare` takes its own (test cases).
# usage: bash benchmarks/few_labels_longer.sh DATA RUNS
# DATA holds Dataset001_Hippocampus, Dataset002_HeadNeckCT and unlabelled/head_neck_ct. Stopped, it goes on.
set -euo pipefail
data=$1 runs=$2
here=$(dirname "$0")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE

arms() {  # DATASET FOLDER OPTIONS
  local dataset=$1 folder=$2
  shift 2
  python "$here/arms.py" --dataset "$data/$dataset" --out "$runs/$folder" --set 'patch_size=[40,40,40]' \
    --set batch_size=2 --set overlap=0.25 "$@"
}

head_neck() {
  arms Dataset002_HeadNeckCT "$@" --set 'spacing=[2.5,3.9,3.9]' --set intensity=ct:-200,600
}

hippocampus() {
  arms Dataset001_Hippocampus "$@" --set 'spacing=[1,1,1]' --set intensity=mr --steps 2000 --test
}

head_neck arms --name few_labels_transfer --seeds 0,1 --arm pretrained=builtin \
  --arm sawtooth=builtin,training.schedule.name=sawtooth \
  --arm "layer decay=builtin,training.optimizer.layer_decay=0.75"

misfm ingest "$data/unlabelled/head_neck_ct" --store "$runs/unlabelled" --spacing 2.5,3.9,3.9 \
  --intensity ct:-200,600
head_neck arms --name few_labels_teacher --seeds 0 --arm scratch= \
  --arm "teacher 10=,unlabelled.store=$runs/unlabelled,unlabelled.weight=10"

head_neck arms --name few_labels_third --seeds 0,1 --test --arm scratch= \
  --arm "pretrained, a third of the steps=builtin,training.steps=500" --arm pretrained=builtin
head_neck arms --name few_labels_other_cases --seeds 0,1,2 --test --arm scratch= --arm pretrained=builtin
hippocampus hippocampus_5 --name few_labels_hippocampus_5_long --labels 5 --seeds 0,1 \
  --arm scratch= --arm pretrained=builtin
hippocampus hippocampus_40 --name few_labels_hippocampus_40_long --labels 40 --seeds 0,1 \
  --arm scratch= --arm pretrained=builtin

for seed in 0 1; do  # 800 s are about 5,500 steps
  for start in "" "--weights builtin"; do
    # shellcheck disable=SC2086 # two words
    python "$here/nnunet_peer.py" --dataset "$data/Dataset002_HeadNeckCT" --labels 5 --seconds 800 \
      --spacing 2.5,3.9,3.9 --overlap 0.25 --out "$runs/peer" --seed "$seed" --misfm $start
  done
done
