#!/bin/bash
# Trains all weights of Llama-2-7B on two nodes of eight GPUs, with one process per node. The
# processes find each other by SLURM's own variables. The GPUs of a node share the weights, and
# every node has a copy, so nodes exchange only sums of gradients.
#
#   sbatch configs/slurm/several_nodes.sh --beta 0.05 --tau 1.0 --output runs/x
#   sbatch --nodes=4 configs/slurm/several_nodes.sh --output runs/x       # resumes on four nodes
#
# Expected  "hosts    2, joined by slurm; the first has 8 of 16 devices", then the log of one
#           process. README.md in this folder describes what happens if a node is lost, and how this
#           was tried on one machine without GPUs.
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
# Since SLURM 22.05, srun does not read sbatch's --cpus-per-task.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
# With --kill-on-bad-exit no process waits for one that has failed.
srun --kill-on-bad-exit=1 \
  python run.py --config "${CONFIG:-configs/llama2_7b.yaml}" --mesh.data -1 --mesh.fsdp "${FSDP:-8}" "$@"
