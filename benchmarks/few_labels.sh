#!/usr/bin/env bash
# Dice against the number of labels, from scratch and pretrained: head-neck CT (1, 5, 10, 20), hippocampus MR (5, 10, 40).
# usage: bash benchmarks/few_labels.sh DATA RUNS [OPTIONS OF misfm compare]
# DATA holds Dataset001_Hippocampus, Dataset002_HeadNeckCT and unlabelled/. Stopped, it goes on where it was.
set -euo pipefail
data=$1 runs=$2
shift 2
here=$(dirname "$0")
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OMP_WAIT_POLICY=PASSIVE

misfm ingest "$data/unlabelled/head_neck_ct" --store "$runs/ct" --spacing 2.5,3.9,3.9 --intensity ct:-200,600
misfm ingest "$data/unlabelled/hippocampus" --store "$runs/hippocampus"
