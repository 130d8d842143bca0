# What every job does; the batch scripts beside it source this file and call
#
#     train RUN_DIR CONFIG [OVERRIDES...]
#
# Starts one process per task of the job, resumes the run where it stopped, and exits with the run's own code. With
# TRM_REQUEUE=1 in the environment of sbatch, a job that stopped with its state saved (code 75) requeues itself.

train() {
    local run=$1 config=$2 code
    shift 2
    # The processes save when the job is signalled; this script has to outlive them to report how the run ended.
    trap : TERM USR1 USR2
    export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
    # Since SLURM 22.05 srun no longer inherits cpus-per-task from the job; without this each task has one core.
    export SRUN_CPUS_PER_TASK=$OMP_NUM_THREADS
    mkdir -p "$(dirname "$run")"
    export FAILED=$run.failed-$SLURM_JOB_ID # beside the run, on the disk that all machines share
    rm -f "$FAILED"
    local before recorded
    before=$(cat "$run/status.json" 2>/dev/null)
    srun --kill-on-bad-exit=1 bash -c "$(declare -f task); task \"\$@\"" task \
        --config "$config" "training.run_dir=$run" --resume auto "$@"
    code=$?
    # srun returns one code for all tasks; the run's status says how it really ended. A status from before this job says
    # nothing about it.
    if [[ $code != 0 && $before != "$(cat "$run/status.json" 2>/dev/null)" ]]; then
        recorded=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["exit_code"])' "$run/status.json")
    fi
    if [[ ${recorded:-} =~ ^[1-9][0-9]*$ ]]; then
        code=$recorded
    elif [[ -s $FAILED ]]; then # empty where the disk is full
        code=$(cat "$FAILED")
    elif [[ $code =~ ^(138|140|143)$ ]]; then
        # USR1, USR2 or TERM arrived before a task could handle it: stopped with nothing to save yet.
        code=75
    elif [[ ${recorded:-} == None ]]; then
        code=137 # under way to the last: killed, whatever srun says
    fi
    rm -f "$FAILED"
    # Killed before it could say anything: the same code as trm gives when one of its processes is killed.
    if ((code > 130)); then
        code=6
    fi
    if [[ $code == 75 && ${TRM_REQUEUE:-0} == 1 ]]; then
        requeue
    fi
    exit "$code"
}

# One task of the job. When one fails, srun ends the others by TERM, so that they stop as if the job had been asked to,
# and returns the highest code of all; where one ran out of memory, 1. So the first that fails by itself notes its code.
task() {
    trap : INT TERM USR1 USR2
    trm train "$@"
    local code=$?
    case $code in
    0 | 75 | 130 | 138 | 140 | 143) ;;
    *) (set -o noclobber && echo "$code" >"$FAILED") 2>/dev/null ;;
    esac
    exit "$code"
}

requeue() {
    # The number of an array's last job is that of the whole array too: it would requeue them all, done or not.
    local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    job=${job:-$SLURM_JOB_ID}
    # A job that somebody cancelled stays away, and one that SLURM itself requeues (preempted, or by hand) is in the
    # queue already: both are COMPLETING by now. So is one whose time is up, but that is the reason given.
    if scontrol show job "$job" | grep -Eq 'JobState=RUNNING|Reason=TimeLimit'; then
        scontrol requeue "$job"
    fi
}
