#!/bin/bash
# Training on several machines under SLURM: sbatch deploy/slurm.sh text_generation --train texts --name large --shard fsdp
# The folders of data and runs lie on a file system that all machines see. A job that is requeued goes on with its run.
#SBATCH --job-name=zooproof
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
set -euo pipefail

task=${1:?usage: sbatch deploy/slurm.sh TASK OPTIONS, such as text_generation --train texts --name large}
shift
export OMP_NUM_THREADS=4
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # a restart would read addresses of processes that are gone
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m "tasks.$task" train "$@"
