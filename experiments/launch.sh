#!/bin/sh
# Runs a tool on an experiment. The scripts of each experiment's folder call this with their own path and arguments,
# launch.sh [--tool=NAME] SCRIPT ...; without a name the tool is tools/train_val.py:
#
#   train_torch.sh, eval_torch.sh   NUM_PROCESSES GPU_IDS|cpu [--overwrite] [key=value ...]   on this machine
#   train.sh, eval.sh               NUM_GPUS PARTITION [--overwrite] [key=value ...]          through Slurm
#
# The tools that visualise work on one class. Here that is the one named. Through Slurm it is every class
# that the configuration has, in a job each, all at once; what a job prints is in the experiment's log/slurm_CLASS.log:
#
#   train_vis_decoder   train_torch.sh NUM_PROCESSES GPU_IDS|cpu CLASS ...   train.sh NUM_GPUS PARTITION ...
#   vis_recon           vis_recon_torch.sh CLASS ...                         vis_recon.sh PARTITION ...
#   vis_query           vis_query_torch.sh CLASS ...                         vis_query.sh PARTITION ...
#
# Read from the environment:
#   PYTHON           the Python to use; else that of .venv in the project's folder, else python3
#   OMP_NUM_THREADS  threads a process; else the cores shared evenly
#   MASTER_PORT      the port where processes meet of one run; else a free one, under Slurm one by the job's number
#   NODES            Slurm: machines to spread the processes over (1)
#   CPUS_PER_TASK    Slurm: cores a process (2)
#   SRUN_ARGS        Slurm: more options for srun
set -eu

fail() {
    echo "$1" >&2
    exit 2
}

tool=train_val
case $1 in
    --tool=*) tool=${1#--tool=} && shift ;;
esac
script=$1
shift
folder=$(CDPATH='' cd -- "$(dirname -- "$script")" && pwd)
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
name=$(basename -- "$script")

case $tool/$name in
    train_val/*_torch.sh) wanted='NUM_PROCESSES GPU_IDS|cpu' example="2 0,1 or sh $name 1 cpu" ;;
    train_vis_decoder/*_torch.sh) wanted='NUM_PROCESSES GPU_IDS|cpu CLASS' example="2 0,1 bottle or sh $name 1 cpu bottle" ;;
    train_*) wanted='NUM_GPUS PARTITION' example='8 gpu' ;;
    *_torch.sh) wanted=CLASS example=bottle ;;
    *) wanted=PARTITION example=gpu ;;
esac
usage="usage: sh $name $wanted [key=value ...], e.g. sh $name $example"
count=1
where=unchanged # the GPUs that the environment shows
class=''
for argument in $wanted; do
    case ${1-} in
        '' | -* | *=*) fail "$usage" ;;
    esac
    case $argument in
        NUM_*) count=$1 ;;
        CLASS) class=$1 ;;
        *) where=$1 ;;
    esac
    shift
done
case $count in
    *[!0-9]* | 0*) fail "error: '$count' is not a number of processes; $usage" ;;
esac

python=${PYTHON:-}
if [ -z "$python" ]; then
    python=$root/.venv/bin/python
    [ -x "$python" ] || python=python3
fi

case $name in
    eval*) set -- --evaluate "$@" ;;
esac
set -- "$root/tools/$tool.py" --config "$folder/config.yaml" "$@"

run_here() {
    if [ "$where" != unchanged ]; then
        [ "$where" != cpu ] || where=''
        export CUDA_DEVICE_ORDER=PCI_BUS_ID  # number GPUs as nvidia-smi does
        export CUDA_VISIBLE_DEVICES="$where" # empty hides every GPU
    fi
    unset SLURM_STEP_NUM_TASKS # in an interactive srun its tasks are not ours
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
    nodes=${NODES:-1}
    cpus=${CPUS_PER_TASK:-2}
    per_node=$(((count + nodes - 1) / nodes))
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cpus}"
    gpus=''
    case $(sinfo --noheader --partition="$where" --format=%G 2>/dev/null) in
        *gpu*) gpus=--gres=gpu:$per_node ;; # without GPUs in the partition Slurm would refuse the job
    esac
    # the class comes first in the job's name: squeue shows the first eight letters
    # shellcheck disable=SC2086  # SRUN_ARGS holds several options, and no GPUs is no option
    exec srun --partition="$where" --job-name="${class:+$class }$(basename -- "$folder")" --nodes="$nodes" --ntasks="$count" \
        --ntasks-per-node="$per_node" --cpus-per-task="$cpus" --kill-on-bad-exit=1 $gpus ${SRUN_ARGS:-} "$python" "$@"
}

# The end of a log, without the lines in which Slurm tells how tasks ended: what is wrong stands above those.
last_lines() {
    grep -v -e '^slurmstepd' -e '^srun: [^e]' -e '^srun: error: .*: tasks* [0-9]' -- "$1" | tail -n 3 | sed 's/^/    /'
}

run_every_class_on_slurm() {
    classes=$("$python" "$@" --list_classes)
    logs=$folder/log
    mkdir -p -- "$logs" || exit 2
    unset MASTER_PORT MASTER_ADDR # jobs that run side by side on one machine must not meet at one port
    pids=''                       # of each class's srun, in the order of the classes, until it has ended
    trap 'exit 130' INT TERM HUP
    trap 'kill $pids 2>/dev/null || :; wait' EXIT # srun takes its job along
    while IFS= read -r class; do
        run_on_slurm "$@" "--class_name=$class" >"$logs/slurm_$class.log" 2>&1 &
        pids="$pids$! "
        echo "$class: started, log in $logs/slurm_$class.log"
    done <<EOF
$classes
EOF
    failed=''
    result=0
    while IFS= read -r class; do
        code=0
        wait "${pids%% *}" || code=$?
        pids=${pids#* }
        if [ "$code" -eq 0 ]; then
            echo "$class: done"
        else
            echo "$class: failed with exit code $code; its log ends with" >&2
            last_lines "$logs/slurm_$class.log" >&2
            failed="$failed${failed:+, }$class"
            [ "$result" -ne 0 ] || result=$code
        fi
    done <<EOF
$classes
EOF
    [ -z "$failed" ] || echo "error: failed for $failed" >&2
    exit "$result"
}

case $name in
    *_torch.sh)
        [ -z "$class" ] || set -- "$@" "--class_name=$class"
        run_here "$@"
        ;;
esac
command -v srun >/dev/null || fail "error: srun is not installed here, $name needs Slurm; without it use ${name%.sh}_torch.sh"
case $tool in
    train_val) run_on_slurm "$@" ;;
    *) run_every_class_on_slurm "$@" ;;
esac
