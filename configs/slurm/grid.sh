#!/bin/bash
# Trains the 60 cells of the experiment on eight GPUs of any nodes. Eight jobs of one GPU each run
# the same command on one grid directory. A job claims every cell that it trains. If the job dies,
# the cell is free again.
#
#   sbatch configs/slurm/grid.sh
#   sbatch --array=0-31 configs/slurm/grid.sh --output runs/other
#
# Jobs may start late, be cancelled, and be added. The same line again trains the cells that are
# left. The first job that computes the reference's log-probs keeps them for the others. To avoid
# eight reference passes at once, start one job ahead (--array=0).
#
# Expected  One log per job, slurm-JOB_TASK.out, with the cells that it trained. The last jobs wait
#           for the cells of others. All jobs end when the grid is finished.
#SBATCH --job-name=tddpo-grid
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=48G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
# Since SLURM 22.05, srun does not read sbatch's --cpus-per-task.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun python run.py --config "${CONFIG:-configs/grid.yaml}" "$@"
