#!/usr/bin/env bash
# A Slurm of two nodes on this machine, for tests. Needs root, slurmctld, slurmd and munged.
#
#   tests/launch/slurm_cluster.sh start FOLDER   # then: export SLURM_CONF=FOLDER/slurm.conf
#   tests/launch/slurm_cluster.sh stop FOLDER
#
# Debian: apt-get install slurm-wlm munge
set -euo pipefail
folder=$2
pids="$folder/pids"

start() {
    mkdir -p "$folder"/{state,spool-n0,spool-n1,log}
    chmod 755 "$folder"
    head -c 1024 /dev/urandom >"$folder/munge.key"
    chmod 600 "$folder/munge.key"
    local socket="$folder/munge.socket" port=$((20000 + RANDOM % 10000))
    munged --foreground --force --socket="$socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
        --seed-file="$folder/munge.seed" --log-file="$folder/log/munged" >"$folder/log/munged.out" 2>&1 &
    echo $! >"$pids"
    local half=$(($(nproc) > 1 ? $(nproc) / 2 : 1))
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$socket
CredType=cred/munge
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd-%n
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
JobRequeue=1
KillWait=20
ReturnToService=2
NodeName=n[0-1] NodeAddr=127.0.0.1 NodeHostname=$(hostname) Port=[$((port + 1))-$((port + 2))] CPUs=$half
PartitionName=all Nodes=n[0-1] Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF="$folder/slurm.conf"
    for _ in {1..100}; do
        [ ! -S "$socket" ] || break
        sleep 0.1
    done
    slurmctld -D -c >"$folder/log/slurmctld.out" 2>&1 &
    echo $! >>"$pids"
    for node in n0 n1; do
        slurmd -D -N "$node" >"$folder/log/slurmd-$node.out" 2>&1 &
        echo $! >>"$pids"
    done
    for _ in {1..100}; do
        if [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null | head -n1)" = 2 ]; then
            exit 0
        fi
        sleep 0.2
    done
    echo "the nodes did not come up:" >&2
    tail -n 20 "$folder"/log/* >&2
    exit 1
}

stop() {
    [ -f "$pids" ] || exit 0
    export SLURM_CONF="$folder/slurm.conf"
    scancel --user=root 2>/dev/null || true
    for _ in {1..60}; do # or what runs would outlive the daemons
        [ -n "$(squeue --noheader 2>/dev/null)" ] || break
        sleep 0.5
    done
    tac "$pids" | while read -r pid; do
        kill "$pid" 2>/dev/null || true
    done
}

"$1"
