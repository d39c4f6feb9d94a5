#!/usr/bin/env bash
# Runs a job on Cloud TPU VMs: asks for them by a queued resource, copies this checkout, and runs one process per host.
#
#   launch/tpu_vm.sh create NAME --zone ZONE --accelerator v6e-256 [--slices N] [--spot] [--runtime VERSION]
#   launch/tpu_vm.sh copy NAME --zone ZONE                       copies the checkout to every host and installs it
#   launch/tpu_vm.sh run NAME --zone ZONE [--restarts N] -- \
#     lifecycle run configs/NAME.yaml root=gs://BUCKET/runs
#   launch/tpu_vm.sh logs|stop|delete NAME --zone ZONE           follows the run, asks it to save and end, frees all
#   launch/tpu_vm.sh up NAME (all of the options) -- COMMAND ... create, copy, run; again when spot hosts are taken away
#
# Each host works on its own disk; the run is in the bucket.
#
# --project PROJECT is optional; --dry-run prints the commands instead. A run goes on without this script: `logs` joins it
# again. On the hosts launch/tpu_vm_worker.sh starts the processes, all of them anew when they end with status 75 (asked
# to stop, saved), or, at most N times, when they fail.
set -euo pipefail
shopt -s lastpipe # what a pipe's last function learns is kept
cd "$(dirname "$0")/.."

POLL_S=30
NOTICE_S=300 # a queued resource is ACTIVE for a while after its hosts are gone
ARCHIVE=lifecycle.tgz
HOME_ON_HOST=lifecycle # the checkout's folder there

usage() {
  sed -n '2,/^set/{/^# \{0,1\}/s///p}' "launch/tpu_vm.sh" >&2
  exit 2
}

verb=${1-} name=${2-}
[[ $verb =~ ^(create|copy|run|logs|stop|delete|up)$ ]] || usage
[[ $name =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] || usage
shift 2
zone="" project="" accelerator="" slices=1 runtime="" restarts=20 is_spot="" is_dry_run=""
while (($# > 0)); do
  option=$1
  shift
  case $option in
    --zone | --project | --accelerator | --slices | --runtime | --restarts)
      (($# > 0)) || usage
      printf -v "${option#--}" %s "$1"
      shift
      ;;
    --spot) is_spot=1 ;;
    --dry-run) is_dry_run=1 ;;
    --) break ;;
    *) echo "launch/tpu_vm.sh: no such option: $option; a command follows --" >&2 && usage ;;
  esac
done
[[ -n $zone && $slices =~ ^[1-9][0-9]*$ && $restarts =~ ^[0-9]+$ ]] || usage
[[ $verb != create && $verb != up || -n $accelerator ]] || usage
[[ $verb != run && $verb != up || $# -gt 0 ]] || usage

do_() { # runs a command, or prints it as a shell would read it
  if [[ -n $is_dry_run ]]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

tpus() { # VERB ARGUMENT...: gcloud on this queued resource
  do_ gcloud compute tpus queued-resources "$1" "${@:2}" --zone="$zone" ${project:+--project="$project"}
}

on_all() { # COMMAND...: the same words on every host of every slice, all at once
  local words
  printf -v words '%q ' "$@"
  tpus ssh "$name" --node=all --worker=all --batch-size=all --command="$words"
}

runtime_of() {
  case $accelerator in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-*) echo tpu-ubuntu2204-base ;;
    *) echo "launch/tpu_vm.sh: --accelerator $accelerator: which --runtime? (tpu7x: only by lifecycle launch)" >&2 && exit 2 ;;
  esac
}

create() {
  local nodes=(--node-id="$name")
  ((slices == 1)) || nodes=(--node-count="$slices" --node-prefix="$name")
  [[ -n $runtime ]] || runtime=$(runtime_of) || return
  tpus create "$name" "${nodes[@]}" --accelerator-type="$accelerator" --runtime-version="$runtime" ${is_spot:+--spot} || return
  local state="" before=""
  until [[ $state == ACTIVE ]]; do
    state=$(state_of) || return
    [[ -z $is_dry_run ]] || { echo "$state" && return; }
    [[ $state == "$before" ]] || echo "launch/tpu_vm.sh: $name is $state" >&2
    [[ ! $state =~ ^(FAILED|SUSPENDING|SUSPENDED)$ ]] || return 1
    before=$state
    [[ $state == ACTIVE ]] || sleep "$POLL_S"
  done
}

state_of() { tpus describe "$name" --format='value(state.state)'; }

copy() {
  local archive
  archive=$(mktemp -d)/$ARCHIVE
  # what git knows or would add, as it is now; a file that was deleted since is only named
  if [[ -n $is_dry_run ]]; then
    archive=$ARCHIVE
    echo "git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -czf $ARCHIVE -T -"
  else
    git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -czf "$archive" -T -
  fi
  tpus scp "$archive" "$name:$ARCHIVE" --node=all --worker=all --batch-size=all || return
  on_all bash -c "(set -e
    supervisor=~/lifecycle-job/supervisor
    if test -s \$supervisor && kill -0 \$(cat \$supervisor) 2> /dev/null; then
      echo \"launch/tpu_vm.sh: a run is under way on \$(hostname); stop it first\" >&2
      exit 1
    fi
    mkdir -p $HOME_ON_HOST
    find $HOME_ON_HOST -mindepth 1 -maxdepth 1 ! -name .venv ! -name runs -exec rm -rf {} +
    tar xzf $ARCHIVE -C $HOME_ON_HOST
    cd $HOME_ON_HOST
    PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
    ~/.local/bin/uv sync --frozen --quiet --no-dev --extra tpu --extra store)
    echo launch/tpu_vm.sh: ended with status \$?" | status_of_all || return
  [[ -n $is_dry_run ]] || rm -r "$(dirname "$archive")"
}

worker() { on_all "$HOME_ON_HOST/launch/tpu_vm_worker.sh" "$@"; }

run() { worker run "$restarts" "$@" | status_of_all; }
logs() { worker follow | status_of_all; }

# Passes the hosts' lines on; its status is the largest that a host's part ended with. `is_asked`: whether by `stop`.
status_of_all() {
  local line status=""
  is_asked=""
  while IFS= read -r line; do
    printf '%s\n' "$line"
    # gcloud's own status says whether it reached the hosts, not how the commands ended
    if [[ $line =~ launch/tpu_vm[a-z_]*\.sh:\ ended\ with\ status\ ([0-9]+)(\ after\ stop)?$ ]]; then
      is_asked=$is_asked${BASH_REMATCH[2]-}
      ((BASH_REMATCH[1] <= ${status:--1})) || status=${BASH_REMATCH[1]}
    fi
  done
  [[ -n $is_dry_run ]] || return "${status:-1}"
}

up() {
  local status is_asked=""
  while :; do
    status=0
    { create && copy && run "$@"; } || status=$? # no `set -e` in there: each function returns its first failure
    ((status != 0)) || return 0
    [[ -n $is_spot && -z $is_asked ]] && are_taken || return "$status"
    echo "launch/tpu_vm.sh: the spot hosts of $name were taken away; asking for others" >&2
    delete
  done
}

are_taken() { # whether the spot hosts are taken away, now or soon
  local waited state
  echo "launch/tpu_vm.sh: looks for $NOTICE_S s whether the hosts of $name are taken away" >&2
  for ((waited = 0; waited <= NOTICE_S; waited += POLL_S)); do
    state=$(state_of) || state=""
    [[ ! $state =~ ^(SUSPENDING|SUSPENDED)$ ]] || return 0
    [[ $state =~ ^(ACTIVE)?$ ]] || return 1
    sleep "$POLL_S"
  done
  return 1
}

delete() { tpus delete "$name" --force --quiet; }

case $verb in
  stop) worker stop ;;
  *) "$verb" "$@" ;;
esac
