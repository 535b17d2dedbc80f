#!/bin/bash
# Trains all weights of Llama-2-7B on the eight GPUs of one node. One process sees all of them.
#
#   sbatch configs/slurm/one_node.sh --beta 0.05 --tau 1.0 --output runs/x
#
# The same line again resumes the run. After the loss of the node SLURM itself does so (--requeue).
#
# Expected  One log, slurm-JOB.out. Its "devices" line shows mesh data 1 x fsdp 8 x tensor 1.
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
# Since SLURM 22.05, srun does not read sbatch's --cpus-per-task.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun python run.py --config "${CONFIG:-configs/llama2_7b.yaml}" "$@"
