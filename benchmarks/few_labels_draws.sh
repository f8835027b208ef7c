#!/usr/bin/env bash
# The few-label study with other labelled cases in each replicate: five labels from scratch and pretrained, trained
# to the plateau and for a third of that, with the weights of one pretraining on generated anatomy; then other
# numbers of labels with `builtin`, the half-precision copy of such weights.
# usage: bash benchmarks/few_labels_draws.sh DATA RUNS
# DATA is made by `python benchmarks/data.py fetch DATA`. Stopped, it goes on where it was, as long as misfm is the
# same: RUNS of another version belong in a folder of their own. With KNOWN=1, runs from scratch that are in the
# committed results of the study with weights of trunks alone are taken from there.
set -euo pipefail
data=$1 runs=$2
here=$(dirname "$0")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
weights=$runs/anatomy/weights.safetensors

[ -e "$weights" ] || misfm pretrain --recipe phantom-anatomy --store phantom:800 \
  --set training.validate_every=1000 --out "$runs/anatomy" --resume

arms() {  # DATASET FOLDER NAME OPTIONS
  local dataset=$1 folder=$2 name=$3
  shift 3
  python "$here/arms.py" --dataset "$data/$dataset" --out "$runs/$folder" --name "few_labels_draws_$name" \
    ${KNOWN:+--known "few_labels_trunks_$folder"} --draws --test --set 'patch_size=[40,40,40]' --set batch_size=2 \
    --set overlap=0.25 "$@"
}

head_neck() {  # NAME OPTIONS
  arms Dataset002_HeadNeckCT head_neck "$@" --steps 5000 --validate-every 500 --set 'spacing=[2.5,3.9,3.9]' \
    --set intensity=ct:-200,600
}

hippocampus() {
  arms Dataset001_Hippocampus hippocampus "$@" --steps 2000 --validate-every 250 --set 'spacing=[1,1,1]' \
    --set intensity=mr
}

count() {  # DATASET LABELS SEEDS, which choose the cases: a multiple of LABELS / 5 where that is above 1
  "$1" "$1_$2" --seeds "$3" --arm "scratch, $2 labels=,labels=$2" --arm "pretrained, $2 labels=builtin,labels=$2"
}

third="pretrained, a third of the steps=$weights,training.steps"
hippocampus hippocampus --seeds 0,1,2,3,4,5 --arm scratch= --arm "pretrained=$weights" --arm "$third=667" \
  --arm "scratch, 10 labels=,labels=10"
# Seeds 4 to 7 have the cases of 0 to 3 again.
head_neck head_neck --seeds 0,1,2,3,4,5,6,7 --arm scratch= --arm "pretrained=$weights"
head_neck head_neck_third --seeds 0,1,2,3 --arm scratch= \
  --arm "pretrained, a third of the steps=builtin,training.steps=1667"

count hippocampus 10 0,2,4
count hippocampus 40 0,8
count head_neck 1 0,1,2
count head_neck 10 0,2
count head_neck 20 0,4
python "$here/few_labels_table.py"
