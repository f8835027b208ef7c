#!/usr/bin/env bash
# Dice against the number of labels, from scratch and pretrained: head-neck CT (1, 5, 10, 20 labels) and
# hippocampus MR (5, 10, 40), both from one pretraining on generated anatomy.
# usage: bash benchmarks/few_labels.sh DATA RUNS [OPTIONS OF misfm compare]
# DATA holds Dataset001_Hippocampus and Dataset002_HeadNeckCT. Stopped, it goes on where it was.
set -euo pipefail
data=$1 runs=$2
shift 2
here=$(dirname "$0")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
recipe=phantom-anatomy

study() {  # NAME DATASET CASES SEEDS OPTIONS
  local name=$1 dataset=$2 cases=$3 seeds=$4
  shift 4
  misfm compare --store phantom:600 --dataset "$data/$dataset" --out "$runs/$name" \
    --recipes "$recipe" --cases "$cases" --seeds "$seeds" \
    --set-pretrain "$recipe:store=phantom:600" --set-pretrain training.steps=8000 \
    --set-pretrain training.validate_every=1000 --set-finetune overlap=0.25 "$@"
}

publish() {  # NAME AS
  python "$here/publish_comparison.py" "$runs/$1" --name "$2"
}

head_neck() {  # CASES SEEDS OPTIONS
  local cases=$1 seeds=$2
  shift 2
  study few_labels_head_neck Dataset002_HeadNeckCT "$cases" "$seeds" \
    --set-finetune 'spacing=[2.5,3.9,3.9]' --set-finetune intensity=ct:-200,600 "$@"
}

head_neck 5 0,1,2 "$@"
publish few_labels_head_neck few_labels_head_neck_5
head_neck 1,5,10,20 0,1 "$@"
publish few_labels_head_neck few_labels_head_neck

hippocampus() {  # CASES SEEDS OPTIONS
  local cases=$1 seeds=$2
  shift 2
  study few_labels_hippocampus Dataset001_Hippocampus "$cases" "$seeds" \
    --set-finetune 'spacing=[1,1,1]' --set-finetune intensity=mr --set-finetune training.steps=800 \
    --set-finetune training.validate_every=100 "$@"
}

# Both start from the pretraining of the first.
pretrained=$runs/few_labels_hippocampus/unet-$recipe
if [ ! -e "$pretrained" ]; then
  mkdir -p "$runs/few_labels_hippocampus"
  rm -rf "$pretrained.part"
  cp -r "$runs/few_labels_head_neck/unet-$recipe" "$pretrained.part"
  mv "$pretrained.part" "$pretrained"
fi
hippocampus 5 0,1,2 "$@"
publish few_labels_hippocampus few_labels_hippocampus_5
hippocampus 5,10,40 0,1 "$@"
publish few_labels_hippocampus few_labels_hippocampus
