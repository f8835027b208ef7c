#!/usr/bin/env bash
# The comparisons of pretext tasks in docs/results.md: head-neck CT at two budgets, hippocampus MR.
# usage: bash benchmarks/compare_pretexts.sh DATA RUNS [OPTIONS OF misfm compare]
# DATA is made by `python benchmarks/data.py fetch DATA`. Stopped, it goes on where it was.
# Steps: what 240, 960 and 120 processor seconds bought (benchmarks/pretext_cost.py). The fine-tuning is that of
# `small` before it bent patches elastically.
set -euo pipefail
data=$1 runs=$2
shift 2
here=$(dirname "$0")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE
fusion='volume-fusion-v2:pretext.options={block_size: [[8,24],[8,24],[8,24]], min_difference: 0.02,
  p_inversion: 0.0, views: {p_flip: 0.0}}'

steps() {  # RECIPE=N ... -> options
  for pair in "$@"; do printf -- '--set-pretrain\n%s\n' "${pair%=*}:training.steps=${pair#*=}"; done
}

head_neck() {  # NAME RECIPES OPTIONS
  local name=$1 recipes=$2
  shift 2
  misfm compare --store "$runs/ct455" --dataset "$data/Dataset002_HeadNeckCT" --out "$runs/$name" \
    --recipes "$recipes" --cases 5 --seeds 0,1 \
    --set-pretrain 'patch_size=[32,32,32]' --set-finetune 'patch_size=[32,32,32]' \
    --set-finetune 'spacing=[4.0,5.0,5.0]' --set-finetune intensity=ct:-200,600 --set-finetune overlap=0.25 \
    --set-pretrain training.validate_every=200 --set-finetune augmentation.p_elastic=0 \
    --set-finetune training.steps=300 --set-finetune training.validate_every=150 --set-pretrain "$fusion" "$@"
  python "$here/publish_comparison.py" "$runs/$name" --name "$name"
}

misfm ingest "$data/unlabelled/head_neck_ct" --store "$runs/ct455" --spacing 4,5,5 --intensity ct:-200,600
misfm ingest "$data/unlabelled/hippocampus" --store "$runs/hippocampus"

mapfile -t options < <(steps misfm=390 phantom-anatomy=800 s3d=597 mae=719 simclr=356 models-genesis=805 \
  volume-fusion-v2=741 swinunetr=619)
head_neck pretexts_head_neck misfm,phantom-anatomy,s3d,mae,simclr,models-genesis,volume-fusion-v2,swinunetr \
  "${options[@]}" --set-pretrain simclr:training.optimizer.lr=2e-4 "$@"

mapfile -t options < <(steps volume-fusion-v2=2964 mae=2876 misfm=1560)
head_neck pretexts_head_neck_4x volume-fusion-v2,mae,misfm "${options[@]}" "$@"

mapfile -t options < <(steps phantom-anatomy=320 misfm=156 s3d=239)
misfm compare --store "$runs/hippocampus" --dataset "$data/Dataset001_Hippocampus" \
  --out "$runs/pretexts_hippocampus" --recipes phantom-anatomy,misfm,s3d --cases 5 --seeds 0,1 \
  --set-pretrain 'patch_size=[32,40,32]' --set-finetune 'patch_size=[32,40,32]' --set-finetune overlap=0.25 \
  --set-pretrain training.validate_every=200 --set-finetune augmentation.p_elastic=0 \
  --set-finetune training.steps=150 --set-finetune training.validate_every=75 "${options[@]}" "$@"
python "$here/publish_comparison.py" "$runs/pretexts_hippocampus" --name pretexts_hippocampus
