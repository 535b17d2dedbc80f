#!/bin/bash
# Llama-2-7B, all weights, on the eight GPUs of one node: one process that sees all of them.
#
#   sbatch configs/slurm/one_node.sh --beta 0.05 --tau 1.0 --output runs/x
#
# The same line again resumes; SLURM itself does so after the loss of the node (--requeue).
#
# Expected  the "devices" line says mesh data 1 x fsdp 8 x tensor 1; one log, slurm-JOB.out.
#SBATCH --job-name=tddpo
#SBATCH --nodes=1
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
srun python run.py --config configs/llama2_7b.yaml "$@"
