#!/usr/bin/env bash
# Starts N processes of one job on this machine: for tests, and for machines with one accelerator per process.
#
#   launch/local.sh [--restarts N] 2 lifecycle run configs/debug.yaml mesh.fsdp=2
#
# Every line of output starts with the number of its process. Signals go to all processes. If one fails or is killed, the
# others are stopped within GRACE_S seconds; then all start again, at most N times, and the job goes on from its newest
# checkpoint. After that the script exits with the failed process's status. The processes connect on a free port of the
# loopback interface, by the environment variables that lifecycle/core/distributed.py reads.
set -euo pipefail
set -m # each process leads a group of its own, so that a signal reaches its children and Ctrl-C is not ignored

GRACE_S=10 # between SIGTERM and SIGKILL: JAX's preemption service swallows SIGTERM, a process in a collective never ends

usage() {
  echo "usage: launch/local.sh [--restarts N] COUNT COMMAND [ARGUMENT ...]" >&2
  exit 2
}

restarts=0
if [[ ${1-} == --restarts ]]; then
  [[ ${2-} =~ ^[0-9]+$ ]] || usage
  restarts=$2
  shift 2
fi
[[ $# -ge 2 && $1 =~ ^[1-9][0-9]*$ ]] || usage
count=$1
shift

free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000)) # below the ports that the kernel gives to outgoing connections
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

declare -A running=() # the index of each process by its id

signal_all() {
  local pid
  for pid in "${!running[@]}"; do
    kill -s "$1" -- "-$pid" 2>/dev/null || true # it may have ended
  done
}

end_all() {
  local waited
  [[ -n $asked_to_end ]] || signal_all TERM
  for ((waited = 0; waited < GRACE_S * 10; waited++)); do
    [[ -n $(jobs -pr) ]] || break
    sleep 0.1
  done
  signal_all KILL
  wait "${!running[@]}" 2>/dev/null || true
}

asked_to_end=""
trap 'asked_to_end=130; signal_all INT' INT
trap 'asked_to_end=143; signal_all TERM' TERM
trap 'asked_to_end=129; signal_all HUP' HUP

start_all() {
  local index out port
  port=$(free_port)
  running=() printers=()
  for ((index = 0; index < count; index++)); do
    set +m # a printer outlives its process's group, so that the last words are printed too
    exec {out}> >(trap '' INT TERM HUP && exec sed -u "s/^/[$index] /")
    printers+=($!)
    set -m
    LIFECYCLE_COORDINATOR="127.0.0.1:$port" LIFECYCLE_NUM_PROCESSES=$count LIFECYCLE_PROCESS_ID=$index \
      "$@" >&"$out" 2>&1 < /dev/null &
    running[$!]=$index
    exec {out}>&-
  done
}

wait_for_all() { # until all have ended, or one has failed: `failed` and `status` say which and how
  local ended
  status=0 failed=""
  while ((${#running[@]} > 0)); do
    ended=""
    wait -n -p ended "${!running[@]}" 2>/dev/null || status=$?
    if [[ -n $asked_to_end ]]; then # whatever ended first, it was asked to
      status=$asked_to_end
      return
    fi
    failed=${running[$ended]}
    unset "running[$ended]"
    ((status == 0)) || return 0
  done
}

for ((attempt = 1; ; attempt++)); do
  start_all "$@"
  wait_for_all
  ((status == 0)) || end_all
  wait "${printers[@]}" 2>/dev/null || true
  [[ $status != 0 && -z $asked_to_end ]] && ((attempt <= restarts)) || exit "$status"
  echo "launch/local.sh: process $failed ended with status $status; restart $attempt of $restarts" >&2
done
