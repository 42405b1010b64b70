#!/bin/bash
#SBATCH --job-name=cs-user-01234567
#SBATCH --output=/home/user/run/outputs/logs/%j.out
#SBATCH --error=/home/user/run/outputs/logs/%j.err
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --export-file=job.env
#SBATCH --no-requeue
#SBATCH --mem=1908M
#SBATCH --time=2:00:00
# Written by coffea-scaleout for its jobs cs-user-01234567.

umask 077
cs_stop() { printf 'coffea-scaleout: %s\n' "$2" >&2; exit "$1"; }
case "$(declare -p PATH 2>&1)" in 'declare -x '*) ;; *) export PATH=/usr/local/bin:/usr/bin:/bin ;; esac
[ -n "${USER:-}" ] || { USER="$(id -un 2>&1)" || USER="$(id -u)"; export USER; }
[ -n "${HOME:-}" ] || { unset HOME; HOME=~; export HOME; }
cd -- '/home/user/run/outputs/private' || cs_stop 78 'this node does not see the folder /home/user/run/outputs/private'
cs_job="${SLURM_JOB_ID:-${PBS_JOBID:-${LSB_JOBID:-${JOB_ID:-}}}}"
printf 'coffea-scaleout: on %s%s\n' "${HOSTNAME:-a node}" "${cs_job:+, job $cs_job}" >&2
export XRD_RUNFORKHANDLER='1'
export MALLOC_TRIM_THRESHOLD_='0'
export PYTHONDONTWRITEBYTECODE='1'
command -v -- '/home/user/venv/bin/python' >/dev/null || cs_stop 127 '/home/user/venv/bin/python'" is not there or cannot be run on ${HOSTNAME:-this node} (job.python)"
exec '/home/user/venv/bin/python' '/home/user/run/outputs/private/parcel.pyz' '/home/user/run/outputs/private/pilot.json'
