#!/bin/sh
# Runs a tool on an experiment. The scripts in the experiments' folders call it with their own path and arguments,
# launch.sh [--tool=NAME] SCRIPT ...; without a name the tool is tools/train_val.py.
# Scripts named *_torch.sh run on this machine, *_sbatch.sh queue a training, the others wait for Slurm.
# The visualising tools work on one class: on this machine on the one named, through Slurm on every class, in concurrent jobs.
# Slurm's output is kept in the experiment's log/: slurm_train.log, slurm_eval.log, slurm_CLASS.log, slurm_JOB.log if queued.
#
# Environment variables (default):
#   PYTHON           the Python to use (.venv in the project's folder, else python3)
#   OMP_NUM_THREADS  threads per process (the cores shared evenly; Slurm: CPUS_PER_TASK)
#   MASTER_PORT      the port where the processes of one run meet (a free one)
#   NODES            Slurm: machines to spread the processes over (1)
#   CPUS_PER_TASK    Slurm: cores per process (2)
#   SRUN_ARGS        Slurm: more options for srun or sbatch
set -eu
fail() { echo "$1" >&2; exit 2; }

tool=train_val
case $1 in
    --tool=*) tool=${1#--tool=} && shift ;;
esac
folder=$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
name=$(basename -- "$1" .sh)
shift
case $tool/$name in
    train_val/*_torch) wanted='NUM_PROCESSES GPU_IDS|cpu' example="2 0,1 or sh $name.sh 1 cpu" ;;
    train_vis_decoder/*_torch) wanted='NUM_PROCESSES GPU_IDS|cpu CLASS' example="2 0,1 bottle or sh $name.sh 1 cpu bottle" ;;
    train_*) wanted='NUM_GPUS PARTITION' example='8 gpu' ;;
    *_torch) wanted=CLASS example=bottle ;;
    *) wanted=PARTITION example=gpu ;;
esac
options='[key=value ...]' mode=''
case $name in
    train*) options="[--overwrite] $options" ;;
    eval*) mode=--evaluate ;;
esac
usage="usage: sh $name.sh $wanted $options, e.g. sh $name.sh $example"
count=1 where='' class=''
for argument in $wanted; do
    case $argument/${1-} in
        */ | */-* | */*=*) fail "$usage" ;;
        NUM_*/*[!0-9]* | NUM_*/0*) fail "error: '$1' is not a number of processes; $usage" ;;
        NUM_*) count=$1 ;;
        CLASS/*) class=$1 ;;
        PARTITION/* | */cpu | */GPU-* | */MIG-*) where=$1 ;;
        */*[!0-9,]* | */,* | */*, | */*,,*) fail "error: '$1' is neither cpu nor GPU ids such as 0 or 0,1; $usage" ;;
        *) where=$1 ;;
    esac
    shift
done
python=${PYTHON:-$root/.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
set -- "$root/tools/$tool.py" --config "$folder/config.yaml" ${mode:+"$mode"} "$@"

# --- on this machine ---
if [ "${name%_torch}" != "$name" ]; then
    # GPUs are numbered as nvidia-smi does; an empty list hides every GPU
    [ -z "$where" ] || export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES="${where#cpu}"
    unset SLURM_STEP_NUM_TASKS # the tasks of an interactive srun are not processes of this run
    if [ "$count" -gt 1 ]; then
        threads=$(($(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) / count))
        export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}"
        set -- "$root/utils/process/launch.py" "$count" "$@"
    fi
    exec "$python" "$@" ${class:+"--class_name=$class"}
fi

# --- through Slurm ---
command -v srun >/dev/null ||
    fail "error: srun is not installed here, $name.sh needs Slurm; without it use ${name%_sbatch}_torch.sh"
logs=$folder/log

# Becomes srun or sbatch, named first, with the options of this run.
slurm() {
    program=$1
    shift
    nodes=${NODES:-1} cpus=${CPUS_PER_TASK:-2}
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$cpus}"
    spread=--ntasks-per-node=$((count / nodes)) gpus=--gres=gpu:$((count / nodes))
    [ "$((count % nodes))" -eq 0 ] || spread='' gpus=--gpus-per-task=1 # Slurm distributes the tasks
    # Slurm refuses a job that asks for GPUs in a partition without them
    sinfo --noheader --partition="$where" --format=%G 2>/dev/null | grep -q gpu || gpus=''
    # The class comes first in the job's name: squeue shows the first eight letters.
    # shellcheck disable=SC2086  # SRUN_ARGS holds several options, and an empty variable is none
    exec "$program" --partition="$where" --job-name="${class:+$class }$(basename -- "$folder")" --nodes="$nodes" \
        --ntasks="$count" --cpus-per-task="$cpus" $spread $gpus ${SRUN_ARGS:-} "$@" ${class:+"--class_name=$class"}
}

if [ "$tool/$name" = train_val/train ] || [ "$name" = eval ]; then
    # This process becomes srun, so signals and the exit code are srun's own; its output goes to the log too.
    log=$logs/slurm_$name.log
    { mkdir -p -- "$logs" && : >"$log"; } 2>/dev/null || log=/dev/null # the tool says where it cannot write
    pipes=$(mktemp -d)
    mkfifo -- "$pipes/out" "$pipes/err"
    tee -a -- "$log" <"$pipes/out" &
    tee -a -- "$log" <"$pipes/err" >&2 &
    exec >"$pipes/out" 2>"$pipes/err"
    rm -r -- "$pipes"
    slurm srun --kill-on-bad-exit=1 --quit-on-interrupt "$python" "$@"
fi

classes=''
[ "$tool" = train_val ] || classes=$("$python" "$@" --list_classes)
[ -z "$classes" ] || unset MASTER_PORT MASTER_ADDR # concurrent jobs on one machine must not meet at one port
mkdir -p -- "$logs" || exit 2
jobs='' failed='' result=0
trap 'kill $jobs 2>/dev/null || :; wait; exit 130' INT TERM HUP # srun ends its job
while IFS= read -r class; do
    if [ "$name" = train_sbatch ]; then
        job=$(slurm sbatch --parsable --output="$logs/slurm_%j.log" "$root/experiments/train.sbatch" "$python" "$@")
        echo "${class:+$class: }job ${job%%;*} is queued, log in $logs/slurm_${job%%;*}.log" # a cluster may follow the ;
    else
        slurm srun --kill-on-bad-exit=1 "$python" "$@" >"$logs/slurm_$class.log" 2>&1 &
        jobs="$jobs $!"
        echo "$class: started, log in $logs/slurm_$class.log"
    fi
done <<EOF
$classes
EOF
for job in $jobs; do
    IFS= read -r class
    if wait "$job"; then
        echo "$class: done"
    else
        code=$?
        echo "$class: failed with exit code $code; its log ends with" >&2
        # the reason stands above the lines in which Slurm reports how tasks ended
        sed -e '/^slurmstepd/d; /^srun: [^e]/d; /^srun: error: .*: task/d; s/^/    /' "$logs/slurm_$class.log" | tail -n 3 >&2
        failed="$failed${failed:+, }$class"
        [ "$result" -ne 0 ] || result=$code
    fi
done <<EOF
$classes
EOF
[ -z "$failed" ] || echo "error: failed for $failed" >&2
exit "$result"
