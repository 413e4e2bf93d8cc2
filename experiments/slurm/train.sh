#!/bin/bash
# Trains on all GPUs of two nodes: sbatch experiments/slurm/train.sh CONFIG.toml DATA.h5 RUN
# One process for each GPU; they find each other by what srun sets. DATA.h5 and RUN are on a file
# system that all nodes see. A job that ends too early goes on when it is submitted again.
#SBATCH --job-name=kineticnet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
# Not --gpus-per-task or --gpu-bind: JAX gives GPU number SLURM_LOCALID of its node to each process,
# and all of them must see all four. If a cluster hides the others, export JAX_LOCAL_DEVICE_IDS=0.

set -euo pipefail
srun --kill-on-bad-exit=1 kineticnet train "$1" --data "$2" --out "$3"
