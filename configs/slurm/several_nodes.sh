#!/bin/bash
# Llama-2-7B, all weights, on two nodes of eight GPUs: one process a node, found by SLURM's own
# variables. The weights are shared within a node and copied between nodes, so that only sums of
# gradients travel between them.
#
#   sbatch configs/slurm/several_nodes.sh --beta 0.05 --tau 1.0 --output runs/x
#   sbatch --nodes=4 configs/slurm/several_nodes.sh --output runs/x       # goes on with it on four
#
# Expected  "hosts    2 by slurm; 8 of 16 devices on this one, the first", then the log of one
#           process. README.md beside this says what happens when a node is lost, and how this was
#           tried on one machine without GPUs.
#SBATCH --job-name=tddpo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --mem=128G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
# Since SLURM 22.05 srun does not read what sbatch was told of --cpus-per-task.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# --kill-on-bad-exit: nobody waits for a process that has failed.
srun --kill-on-bad-exit=1 \
  python run.py --config configs/llama2_7b.yaml --mesh.data -1 --mesh.fsdp 8 "$@"
