#!/bin/bash
# Llama-2-7B, all weights, on two nodes of eight GPUs: one process a node, found by SLURM's own
# variables. The weights are shared within a node and copied between nodes, so that only sums of
# gradients travel between them.
#
#   sbatch configs/slurm/several_nodes.sh --beta 0.05 --tau 1.0 --output runs/x
#   sbatch --nodes=4 configs/slurm/several_nodes.sh --output runs/x       # goes on with it on four
#
# Submit from the repository, with the environment active that has the package; both, and the
# output, on a file system that all nodes share. The caches may be each node's own. What follows the
# script's name is added to the command and wins over what stands here.
#
# One process a node sees all its GPUs. With --ntasks-per-node=8 each process takes the GPU of its
# own number, which works too; --gpus-per-task would hide the others from it, and does not.
#
# Expected  "hosts    2 by slurm; 8 of 16 devices on this one, the first", then the log of one
#           process. When a node is lost, each of the others says so within half a minute
#           (--hosts.lost-after) and ends with status 1; the same line again resumes, on as many
#           nodes or on others, and SLURM does so itself where it took the node away (--requeue).
#
# To try it on one machine without GPUs, where SLURM runs:
#
#   JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2 sbatch --nodes=1 --ntasks-per-node=2 --gpus-per-node=0 \
#     --cpus-per-task=1 --mem=4G configs/slurm/several_nodes.sh --config configs/embedded.yaml \
#     --train.max-steps 6 --output runs/slurm
#
# Seen with slurm-wlm 22.05 of Debian 12 on one machine of two cores: the line above ends with status
# 0. Of a run of 30 steps, task 1 was killed with SIGKILL after step 10: half a minute later task 0
# said "error: host 0 of 2: another host was lost, ...; the same command resumes, ..." and ended with
# status 1, srun said "Exited with exit code 1"; the same line with --ntasks-per-node=3 said
# "hosts    3 by slurm; 2 of 6 devices" and "resuming after step 10" and went on to step 30.
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
# --kill-on-bad-exit: nobody waits for a process that has failed.
srun --kill-on-bad-exit=1 \
  python run.py --config configs/llama2_7b.yaml --mesh.data -1 --mesh.fsdp 8 "$@"
