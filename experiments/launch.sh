#!/bin/sh
# Runs tools/train_val.py on an experiment. The scripts of each experiment's folder call this with their own path and arguments:
#
#   train_torch.sh, eval_torch.sh   NUM_PROCESSES GPU_IDS|cpu [--overwrite] [key=value ...]   on this machine
#   train.sh, eval.sh               NUM_GPUS PARTITION [--overwrite] [key=value ...]          through Slurm
#
# Read from the environment:
#   PYTHON           the Python to use; else that of .venv in the project's folder, else python3
#   OMP_NUM_THREADS  threads a process; else the cores shared evenly
#   MASTER_PORT      the port where processes meet; else a free one, under Slurm one by the job's number
#   NODES            Slurm: machines to spread the processes over (1)
#   CPUS_PER_TASK    Slurm: cores a process (2)
#   SRUN_ARGS        Slurm: more options for srun
set -eu

fail() {
    echo "$1" >&2
    exit 2
}

script=$1
shift
folder=$(CDPATH='' cd -- "$(dirname -- "$script")" && pwd)
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
name=$(basename -- "$script")

case $name in
    *_torch.sh) usage="usage: sh $name NUM_PROCESSES GPU_IDS|cpu [key=value ...], e.g. sh $name 2 0,1 or sh $name 1 cpu" ;;
    *) usage="usage: sh $name NUM_GPUS PARTITION [key=value ...], e.g. sh $name 8 gpu" ;;
esac
case ${2-} in
    '' | -* | *=*) fail "$usage" ;;
esac
case $1 in
    *[!0-9]* | 0*) fail "error: '$1' is not a number of processes; $usage" ;;
esac
count=$1
where=$2
shift 2

python=${PYTHON:-}
if [ -z "$python" ]; then
    python=$root/.venv/bin/python
    [ -x "$python" ] || python=python3
fi

case $name in
    eval*) set -- --evaluate "$@" ;;
esac
set -- "$root/tools/train_val.py" --config "$folder/config.yaml" "$@"

run_here() {
    [ "$where" != cpu ] || where=''
    export CUDA_DEVICE_ORDER=PCI_BUS_ID  # number GPUs as nvidia-smi does
    export CUDA_VISIBLE_DEVICES="$where" # empty hides every GPU
    unset SLURM_STEP_NUM_TASKS           # in an interactive srun its tasks are not ours
    if [ "$count" -eq 1 ]; then
        exec "$python" "$@"
    fi
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    threads=$((cores / count))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
    if [ -n "${MASTER_PORT:-}" ]; then
        set -- "--master_addr=${MASTER_ADDR:-127.0.0.1}" "--master_port=$MASTER_PORT" "$@"
    else
        set -- --standalone --local_addr=127.0.0.1 "$@"
    fi
    exec "$python" "$root/experiments/torchrun.py" "--nproc_per_node=$count" "$@"
}

run_on_slurm() {
    command -v srun >/dev/null || fail "error: srun is not installed here, $name needs Slurm; without it use ${name%.sh}_torch.sh"
    nodes=${NODES:-1}
    cpus=${CPUS_PER_TASK:-2}
    per_node=$(((count + nodes - 1) / nodes))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cpus}"
    gpus=''
    case $(sinfo --noheader --partition="$where" --format=%G 2>/dev/null) in
        *gpu*) gpus=--gres=gpu:$per_node ;; # without GPUs in the partition Slurm would refuse the job
    esac
    # shellcheck disable=SC2086  # SRUN_ARGS holds several options, and no GPUs is no option
    exec srun --partition="$where" --job-name="$(basename -- "$folder")" --nodes="$nodes" --ntasks="$count" \
        --ntasks-per-node="$per_node" --cpus-per-task="$cpus" --kill-on-bad-exit=1 $gpus ${SRUN_ARGS:-} "$python" "$@"
}

case $name in
    *_torch.sh) run_here "$@" ;;
    *) run_on_slurm "$@" ;;
esac
