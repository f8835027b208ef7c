#!/usr/bin/env bash
# Do images drawn for label maps of people make better weights than `builtin`? From `builtin`, 12,000 steps with half of
# each batch generated anatomy and half whole heads; then five labels for a third of the steps of the few-label study,
# with its choices of cases, beside its runs from scratch.
# usage: bash benchmarks/label_maps.sh DATA MAPS RUNS
# DATA is made by `python benchmarks/data.py fetch DATA`; MAPS holds the label maps and labels.json of SynthSeg
# (github.com/BBillot/SynthSeg, data/training_label_maps). Stopped, it goes on where it was.
set -euo pipefail
data=$1 maps=$2 runs=$3
here=$(dirname "$0")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
weights=$runs/label_maps/weights.safetensors

[ -e "$weights" ] || misfm pretrain --recipe label-maps --weights builtin --store "phantom:400+labels:$maps" \
  --steps 12000 --out "$runs/label_maps" --resume

third() {  # DATASET NAME KNOWN OPTIONS
  local dataset=$1 name=$2 known=$3
  shift 3
  python "$here/arms.py" --dataset "$data/$dataset" --out "$runs/$name" --name "label_maps_$name" --known "$known" \
    --draws --test --seeds 0,1,2,3 --set 'patch_size=[40,40,40]' --set batch_size=2 --set overlap=0.25 \
    --arm scratch= "$@"
}

arm="pretrained, a third of the steps=$weights,training.steps"
third Dataset001_Hippocampus hippocampus few_labels_draws_hippocampus --steps 2000 --validate-every 250 \
  --set 'spacing=[1,1,1]' --set intensity=mr --arm "$arm=667" --arm "scratch, 10 labels=,labels=10" \
  --arm "a third of the rate=$weights,training.steps=667,training.optimizer.lr=0.002"
third Dataset002_HeadNeckCT head_neck few_labels_draws_head_neck --steps 5000 --validate-every 500 \
  --set 'spacing=[2.5,3.9,3.9]' --set intensity=ct:-200,600 --arm "$arm=1667"
