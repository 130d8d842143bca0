# What every job does, sourced by the batch scripts beside it:
#
#     train RUN_DIR CONFIG [OVERRIDES...]
#
# One process for each task of the job, a run that goes on where it was, and the run's own exit code. With TRM_REQUEUE=1 in
# the environment of sbatch, a job that was stopped with its state saved (code 75) queues itself again.

train() {
    local run=$1 config=$2 code
    shift 2
    # The processes save when the job is signalled; this script has to live on to say how it went.
    trap : TERM USR1 USR2
    export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
    # srun has not taken this from the job since SLURM 22.05: without it each task has one core.
    export SRUN_CPUS_PER_TASK=$OMP_NUM_THREADS
    local before recorded
    before=$(cat "$run/status.json" 2>/dev/null)
    srun --kill-on-bad-exit=1 trm train --config "$config" "training.run_dir=$run" --resume auto "$@"
    code=$?
    # srun gives one code for all tasks, and that of a killed one if there is; the run knows how it ended. A status from
    # before this job says nothing about it.
    if [[ $code != 0 && $before != "$(cat "$run/status.json" 2>/dev/null)" ]]; then
        recorded=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["exit_code"])' "$run/status.json")
        if [[ $recorded =~ ^[1-9][0-9]*$ ]]; then
            code=$recorded
        fi
    elif [[ $code =~ ^(138|140|143)$ ]]; then
        # USR1, USR2 or TERM came before a task could handle it: stopped with nothing to save yet.
        code=75
    fi
    # Killed before it could say anything: as trm does where one of its processes is.
    if ((code > 130)); then
        code=6
    fi
    if [[ $code == 75 && ${TRM_REQUEUE:-0} == 1 ]]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
