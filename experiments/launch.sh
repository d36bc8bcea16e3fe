#!/bin/sh
# Runs a tool on an experiment. The scripts of each experiment's folder call this with their own path and arguments,
# launch.sh [--tool=NAME] SCRIPT ...; without a name the tool is tools/train_val.py:
#
#   train_torch.sh, eval_torch.sh   NUM_PROCESSES GPU_IDS|cpu [key=value ...]   on this machine
#   train.sh, eval.sh               NUM_GPUS PARTITION [key=value ...]          through Slurm
#   train_sbatch.sh                 NUM_GPUS PARTITION [key=value ...]          the same, queued: see train.sbatch
#
# Those that train take --overwrite too, before the values or between them.
#
# The tools that visualise work on one class. Here that is the one named. Through Slurm it is every class
# that the configuration has, in a job each, all at once:
#
#   train_vis_decoder   train_torch.sh NUM_PROCESSES GPU_IDS|cpu CLASS ...   train.sh, train_sbatch.sh NUM_GPUS PARTITION ...
#   vis_recon           vis_recon_torch.sh CLASS ...                         vis_recon.sh PARTITION ...
#   vis_query           vis_query_torch.sh CLASS ...                         vis_query.sh PARTITION ...
#
# What a job of Slurm prints is kept in the experiment's log/: slurm_train.log or slurm_eval.log, slurm_CLASS.log for a class,
# slurm_JOB.log for a queued job. The exit code is that of the task that failed first. SIGUSR1, also to train.sh, makes a
# training save and end with 75; the same command goes on with it.
#
# Read from the environment:
#   PYTHON           the Python to use; else that of .venv in the project's folder, else python3
#   OMP_NUM_THREADS  threads a process; else the cores shared evenly
#   MASTER_PORT      the port where processes meet of one run; else a free one
#   NODES            Slurm: machines to spread the processes over (1)
#   CPUS_PER_TASK    Slurm: cores a process (2)
#   SRUN_ARGS        Slurm: more options for srun or sbatch
set -eu

fail() {
    echo "$1" >&2
    exit 2
}

# --- Slurm ---

# Becomes srun or sbatch, named first, with the options of this run.
slurm() {
    program=$1
    shift
    nodes=${NODES:-1}
    cpus=${CPUS_PER_TASK:-2}
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cpus}"
    per_node=$((count / nodes))
    spread=--ntasks-per-node=$per_node
    gpus=--gres=gpu:$per_node
    if [ "$((count % nodes))" -ne 0 ]; then # Slurm itself chooses how many tasks a node gets, so a task gets its GPU with it
        spread=''
        gpus=--gpus-per-task=1
    fi
    case $(sinfo --noheader --partition="$where" --format=%G 2>/dev/null) in
        *gpu*) ;;
        *) gpus='' ;; # without GPUs in the partition Slurm would refuse the job
    esac
    # the class comes first in the job's name: squeue shows the first eight letters
    # shellcheck disable=SC2086  # SRUN_ARGS holds several options, and what is empty is no option
    exec "$program" --partition="$where" --job-name="${class:+$class }$(basename -- "$folder")" --nodes="$nodes" \
        --ntasks="$count" --cpus-per-task="$cpus" $spread $gpus ${SRUN_ARGS:-} "$@"
}

# Waits for srun, also behind a signal that a trap has noted in $signal.
await() {
    signal=none
    while [ -n "$signal" ]; do
        signal=''
        code=0
        wait "$1" || code=$?
    done
}

# Sets $code to that of the task that failed first: srun's is the largest, and so that of the tasks that srun has ended then.
find_code() { # srun's log, and how many bytes of it are of an earlier srun
    [ "$code" -gt 128 ] || return 0
    first=$(tail -c "+$((${2:-0} + 1))" -- "$1" | sed -n 's/^srun: error: [^ ]*: tasks* [^ ]*: //p' | head -n 1)
    case $first in
        'Exited with exit code '*) code=${first##* } ;;
        Aborted*) code=134 ;;
        Killed*) code=137 ;;
        'Segmentation fault'*) code=139 ;;
    esac
}

# Runs the tool in sight, and in the log.
run_on_slurm() {
    pipes=$(mktemp -d)
    pids=''
    trap 'exit 130' INT TERM HUP
    trap 'kill $pids 2>/dev/null || :; wait; rm -rf -- "$pipes"' EXIT # srun takes its job along
    mkdir -p -- "$logs" 2>/dev/null || :
    log=$logs/slurm_${name%.sh}.log
    { true >"$log"; } 2>/dev/null || log=$pipes/log # the tool says where it cannot write
    mkfifo -- "$pipes/out" "$pipes/err"
    tee -ia -- "$log" <"$pipes/out" &
    tee -ia -- "$log" <"$pipes/err" >&2 &
    slurm srun --kill-on-bad-exit=1 "$@" >"$pipes/out" 2>"$pipes/err" &
    pids=$!
    trap 'signal=USR1; kill -USR1 $pids 2>/dev/null || :' USR1 # srun hands it to the tasks
    await "$pids"
    pids=''
    wait # until the log is whole
    find_code "$log"
    exit "$code"
}

submit() {
    mkdir -p -- "$logs" || exit 2
    job=$(slurm sbatch --parsable --output="$logs/slurm_%j.log" "$root/experiments/train.sbatch" \
        "$root/experiments/launch.sh" --batch "$logs" "$@")
    job=${job%%;*} # behind it stands the cluster, where there are several
    echo "${class:+$class: }job $job is queued, log in $logs/slurm_$job.log"
}

# Inside a queued job: runs the tool, and queues the job again where a signal has interrupted it.
run_in_batch() { # the folder of its log, the command
    log=$1/slurm_$SLURM_JOB_ID.log
    shift
    if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then # go on, whatever the first start was asked to do
        for argument; do
            shift
            case $argument in
                --o*) ;; # --overwrite, also if it is shortened
                *) set -- "$@" "$argument" ;;
            esac
        done
        set -- "$@" saver.auto_resume=True
    fi
    ended=''
    trap 'signal=TERM; ended=yes' TERM # Slurm ends the job, and knows itself whether to queue it again
    export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
    earlier=$(wc -c <"$log" || echo 0)
    srun --kill-on-bad-exit=1 "$@" &
    await "$!"
    find_code "$log" "$earlier"
    if [ "$code" -eq 75 ] && [ -z "$ended" ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}

if [ "$1" = --batch ]; then
    shift
    run_in_batch "$@"
fi

# --- arguments ---

tool=train_val
case $1 in
    --tool=*) tool=${1#--tool=} && shift ;;
esac
script=$1
shift
folder=$(CDPATH='' cd -- "$(dirname -- "$script")" && pwd)
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
name=$(basename -- "$script")
logs=$folder/log

case $tool/$name in
    train_val/*_torch.sh) wanted='NUM_PROCESSES GPU_IDS|cpu' example="2 0,1 or sh $name 1 cpu" ;;
    train_vis_decoder/*_torch.sh) wanted='NUM_PROCESSES GPU_IDS|cpu CLASS' example="2 0,1 bottle or sh $name 1 cpu bottle" ;;
    train_*) wanted='NUM_GPUS PARTITION' example='8 gpu' ;;
    *_torch.sh) wanted=CLASS example=bottle ;;
    *) wanted=PARTITION example=gpu ;;
esac
case $name in
    train*) options='[--overwrite] ' ;;
    *) options='' ;;
esac
usage="usage: sh $name $wanted $options[key=value ...], e.g. sh $name $example"
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

case $name/$where in
    *_torch.sh/unchanged | *_torch.sh/cpu | *_torch.sh/GPU-* | *_torch.sh/MIG-*) ;;
    *_torch.sh/*[!0-9,]* | *_torch.sh/,* | *_torch.sh/*, | *_torch.sh/*,,*)
        fail "error: '$where' is neither cpu nor GPU ids such as 0 or 0,1; $usage"
        ;;
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

# The end of a log, without the lines in which Slurm tells how tasks ended: what is wrong stands above those.
last_lines() {
    grep -v -e '^slurmstepd' -e '^srun: [^e]' -e '^srun: error: .*: tasks* [0-9]' -- "$1" | tail -n 3 | sed 's/^/    /'
}

run_every_class_on_slurm() {
    mkdir -p -- "$logs" || exit 2
    pids='' # of each class's srun, in the order of the classes, until it has ended
    trap 'exit 130' INT TERM HUP
    trap 'kill $pids 2>/dev/null || :; wait' EXIT # srun takes its job along
    while IFS= read -r class; do
        slurm srun --kill-on-bad-exit=1 "$python" "$@" "--class_name=$class" >"$logs/slurm_$class.log" 2>&1 &
        pids="$pids$! "
        echo "$class: started, log in $logs/slurm_$class.log"
    done <<EOF
$classes
EOF
    failed=''
    result=0
    while IFS= read -r class; do
        await "${pids%% *}"
        pids=${pids#* }
        find_code "$logs/slurm_$class.log"
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

submit_every_class() {
    while IFS= read -r class; do
        submit "$python" "$@" "--class_name=$class" </dev/null
    done <<EOF
$classes
EOF
}

case $name in
    *_torch.sh)
        [ -z "$class" ] || set -- "$@" "--class_name=$class"
        run_here "$@"
        ;;
esac
here=${name%.sh}
command -v srun >/dev/null || fail "error: srun is not installed here, $name needs Slurm; without it use ${here%_sbatch}_torch.sh"
case $tool/$name in
    train_val/train_sbatch.sh) submit "$python" "$@" ;;
    train_val/*) run_on_slurm "$python" "$@" ;;
    *)
        classes=$("$python" "$@" --list_classes)
        unset MASTER_PORT MASTER_ADDR # jobs that run side by side on one machine must not meet at one port
        if [ "$name" = train_sbatch.sh ]; then
            submit_every_class "$@"
        else
            run_every_class_on_slurm "$@"
        fi
        ;;
esac
