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
    local before recorded
    before=$(cat "$run/status.json" 2>/dev/null)
    srun --kill-on-bad-exit=1 trm train --config "$config" "training.run_dir=$run" --resume auto "$@"
    code=$?
    # srun returns one code for all tasks, that of a killed one if there is any; the run's status says how it really
    # ended. A status from before this job says nothing about it.
    if [[ $code != 0 && $before != "$(cat "$run/status.json" 2>/dev/null)" ]]; then
        recorded=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["exit_code"])' "$run/status.json")
        if [[ $recorded =~ ^[1-9][0-9]*$ ]]; then
            code=$recorded
        fi
    elif [[ $code =~ ^(138|140|143)$ ]]; then
        # USR1, USR2 or TERM arrived before a task could handle it: stopped with nothing to save yet.
        code=75
    fi
    # Killed before it could say anything: the same code as trm gives when one of its processes is killed.
    if ((code > 130)); then
        code=6
    fi
    if [[ $code == 75 && ${TRM_REQUEUE:-0} == 1 ]]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
}
