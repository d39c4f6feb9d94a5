#!/usr/bin/env bash
# One host's part of a run on Cloud TPU VMs; launch/tpu_vm.sh calls it on all of them at once.
#
#   launch/tpu_vm_worker.sh run RESTARTS COMMAND ...   starts it in the background, where it survives the connection
#   launch/tpu_vm_worker.sh follow                     prints its log until it ends
#   launch/tpu_vm_worker.sh stop                       asks it to save and end
#
# Each host finds its place in the metadata: its number and its slice's addresses in the attributes agent-worker-number
# and worker-network-endpoints, the slices in tpu-env (docs.cloud.google.com/tpu/docs/multislice-introduction).
set -euo pipefail

CHECKOUT=$(cd "$(dirname "$0")/.." && pwd)
JOB=$HOME/lifecycle-job # the run's log, process, status
PORT=8476
RESTART_STATUS=75 # asked to stop, and saved: lifecycle/core/stopping.py

metadata() { # ATTRIBUTE
  curl -sSf --retry 5 -H "Metadata-Flavor: Google" \
    "http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}

tpu_env() { # NAME DEFAULT
  local value
  value=$(sed -n "s/^$1: *'\(.*\)' *$/\1/p" <<< "$environment")
  echo "${value:-$2}"
}

join_job() { # exports this process's place, from the metadata; an endpoint is an address, or NAME:ID:ADDRESS
  local endpoints environment worker num_hosts slice coordinator
  endpoints=$(metadata worker-network-endpoints)
  environment=$(metadata tpu-env)
  worker=$(metadata agent-worker-number)
  IFS=, read -ra endpoints <<< "$endpoints"
  num_hosts=${#endpoints[@]}
  slice=$(tpu_env MEGASCALE_SLICE_ID 0)
  coordinator=$(tpu_env MEGASCALE_COORDINATOR_ADDRESS "${endpoints[0]##*:}")
  export LIFECYCLE_COORDINATOR=${coordinator%%:*}:$PORT
  export LIFECYCLE_NUM_PROCESSES=$((num_hosts * $(tpu_env MEGASCALE_NUM_SLICES 1)))
  export LIFECYCLE_PROCESS_ID=$((slice * num_hosts + worker))
}

is_running() { [[ -s $JOB/supervisor ]] && kill -0 "$(< "$JOB/supervisor")" 2> /dev/null; }

run() { # RESTARTS COMMAND...
  if is_running; then
    echo "launch/tpu_vm_worker.sh: a run is under way on $(hostname); stop it first" >&2
    exit 1
  fi
  rm -rf "$JOB"
  mkdir -p "$JOB"
  setsid "$0" supervise "$@" > "$JOB/log" 2>&1 < /dev/null &
  echo $! > "$JOB/supervisor"
  follow
}

supervise() { # RESTARTS COMMAND...
  local restarts=$1 failures=0 status stopped="" by
  shift
  join_job
  cd "$CHECKOUT"
  export PATH=$CHECKOUT/.venv/bin:$PATH
  # A machine that is taken away sends SIGTERM to all processes, this one too: the program must get it once, not twice.
  trap 'stopped=1' TERM
  while :; do
    (trap - TERM && exec "$@") &
    echo $! > "$JOB/process"
    status=0
    wait $! || status=$?
    while kill -0 $! 2> /dev/null; do # the trap ended the wait, not the program
      status=0
      wait $! || status=$?
    done
    [[ $status != 0 && -z $stopped && ! -e $JOB/stop ]] || break
    if ((status != RESTART_STATUS)); then
      ((failures++ < restarts)) || break
    fi
    echo "launch/tpu_vm_worker.sh: status $status; starting again ($failures of $restarts failures)"
  done
  [[ ! -e $JOB/stop ]] || by=" after stop"
  echo "launch/tpu_vm_worker.sh: ended with status $status${by-}"
  echo "$status" > "$JOB/status"
}

follow() {
  [[ -s $JOB/supervisor ]] || { echo "launch/tpu_vm_worker.sh: no run on $(hostname)" >&2 && exit 1; }
  join_job
  tail -n +1 -F --pid="$(< "$JOB/supervisor")" "$JOB/log" 2> /dev/null | sed -u "s/^/[$LIFECYCLE_PROCESS_ID] /"
  [[ -s $JOB/status ]] || { echo "launch/tpu_vm_worker.sh: the run on $(hostname) was killed" >&2 && exit 1; }
  exit "$(< "$JOB/status")"
}

stop() {
  touch "$JOB/stop"
  kill -TERM "$(< "$JOB/process")"
}

"$@"
