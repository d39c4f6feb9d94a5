#!/usr/bin/env bash
# Starts N processes of one job on this machine: for tests, and for machines with one accelerator per process.
#
#   launch/local.sh 2 lifecycle run configs/debug.yaml mesh.fsdp=2
#
# Every line of output starts with the number of its process. Signals go to all processes. If one fails, the others are
# stopped, and the script exits with its status. The processes connect on a free port of the loopback interface, by the
# environment variables that lifecycle/core/distributed.py reads.
set -euo pipefail
set -m # each process leads a group of its own, so that a signal reaches its children and Ctrl-C is not ignored

GRACE_S=10 # between SIGTERM and SIGKILL: JAX's preemption service swallows SIGTERM, a process in a collective never ends

usage() {
  echo "usage: launch/local.sh N COMMAND [ARGUMENT ...]" >&2
  exit 2
}

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

pids=()

signal_all() {
  local pid
  for pid in "${pids[@]}"; do
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
  wait "${pids[@]}" 2>/dev/null || true
}

asked_to_end=""
trap 'asked_to_end=130; signal_all INT' INT
trap 'asked_to_end=143; signal_all TERM' TERM
trap 'asked_to_end=129; signal_all HUP' HUP

port=$(free_port)
printers=()
for ((index = 0; index < count; index++)); do
  set +m # a printer outlives its process's group, so that the last words are printed too
  exec {out}> >(trap '' INT TERM HUP && exec sed -u "s/^/[$index] /")
  printers+=($!)
  set -m
  LIFECYCLE_COORDINATOR="127.0.0.1:$port" LIFECYCLE_NUM_PROCESSES=$count LIFECYCLE_PROCESS_ID=$index \
    "$@" >&"$out" 2>&1 < /dev/null &
  pids[$!]=$!
  exec {out}>&-
done

status=0
while ((${#pids[@]} > 0)); do
  code=0 ended=""
  wait -n -p ended "${pids[@]}" 2>/dev/null || code=$?
  if [[ -n $asked_to_end ]]; then # whatever ended first, it was asked to
    status=$asked_to_end
    break
  fi
  unset "pids[$ended]"
  if ((code != 0)); then
    status=$code
    break
  fi
done
((status == 0)) || end_all
wait "${printers[@]}" 2>/dev/null || true
exit "$status"
