#!/bin/bash
# The 60 cells of the experiment on eight GPUs, wherever they are: eight jobs of one GPU each that
# run the same command on one grid directory. A cell is claimed by the job that trains it, and a job
# that dies lets go of it.
#
#   sbatch configs/slurm/grid.sh
#   sbatch --array=0-31 configs/slurm/grid.sh --output runs/other
#
# Jobs may start late, be cancelled, and be added: the same line again takes what is left. The first
# job to get there keeps the reference's log-probs for the others; start one job ahead (--array=0)
# where eight reference passes at once are too many.
#
# Expected  one log for each job, slurm-JOB_TASK.out, with the cells that it trained; the last jobs
#           wait for the cells of others, and all end when the grid is whole.
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
# Since SLURM 22.05 srun does not read what sbatch was told of --cpus-per-task.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun python run.py --config configs/grid.yaml "$@"
