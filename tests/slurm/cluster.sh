#!/usr/bin/env bash
# A Slurm cluster of two nodes on this machine's loopback interface, for tests:
#
#   tests/slurm/cluster.sh start FOLDER     # prints nothing; then: SLURM_CONF=FOLDER/slurm.conf sbatch ...
#   tests/slurm/cluster.sh stop FOLDER      # ends every daemon and every job of it
#
# It needs slurm-wlm and munge, and root. All that it writes is in FOLDER: it has a munge of its own, with its own key, and
# touches nothing in /etc. Jobs get no memory or device limits: there are no control groups.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
[[ $# -eq 2 && ($1 == start || $1 == stop) ]] || {
  echo "usage: tests/slurm/cluster.sh start|stop FOLDER" >&2
  exit 2
}
mkdir -p "$2"
folder=$(realpath "$2")
export SLURM_CONF=$folder/slurm.conf

free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000)) # below the ports that the kernel gives to outgoing connections
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

write_config() {
  cat > "$SLURM_CONF" <<CONF
ClusterName=loopback
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmUser=root
SlurmdUser=root
SlurmdParameters=config_overrides
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
InactiveLimit=0
KillWait=5
OverTimeLimit=0
SlurmdTimeout=60
ReturnToService=2
MailProg=/bin/true
NodeName=node1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$(free_port) CPUs=8 RealMemory=1000
NodeName=node2 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$(free_port) CPUs=8 RealMemory=1000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

start() {
  mkdir -p "$folder"/{state,spool-node1,spool-node2}
  chmod 711 "$folder"
  (umask 077 && head -c 1024 /dev/urandom > "$folder/munge.key")
  write_config
  munged --force --foreground --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
    --pid-file="$folder/munge.pid" --log-file="$folder/munge.log" --seed-file="$folder/munge.seed" > /dev/null 2>&1 &
  echo $! > "$folder/munged.id"
  until [[ -S $folder/munge.socket ]]; do sleep 0.05; done
  slurmctld -D > /dev/null 2>&1 &
  echo $! > "$folder/slurmctld.id"
  for node in node1 node2; do
    slurmd -D -N "$node" > /dev/null 2>&1 &
    echo $! > "$folder/$node.id"
  done
  local tries
  for ((tries = 0; tries < 600; tries++)); do # a minute
    [[ $(sinfo --noheader --responding --states=idle --format=%D 2>/dev/null || true) == 2 ]] && return
    sleep 0.1
  done
  echo "the cluster did not start, see $folder/*.log" >&2
  tail -n 5 "$folder"/*.log >&2
  return 1
}

is_alive() { # ID; a dead process that nobody has waited for is not
  local state
  state=$(ps -o stat= -p "$1") && [[ $state != Z* ]]
}

stop() {
  local name id tries
  [[ -f $SLURM_CONF ]] || return 0
  scancel --user="$(id -un)" 2>/dev/null || true
  for ((tries = 0; tries < 100; tries++)); do # KillWait and some more
    [[ -n $(squeue --noheader 2>/dev/null || true) ]] || break
    sleep 0.1
  done
  for name in node1 node2 slurmctld munged; do
    [[ -f $folder/$name.id ]] || continue
    id=$(< "$folder/$name.id")
    kill "$id" 2>/dev/null || true
    for ((tries = 0; tries < 50; tries++)); do
      is_alive "$id" || break
      sleep 0.1
    done
    ! is_alive "$id" || kill -KILL "$id"
    rm "$folder/$name.id"
  done
}

"$1"
