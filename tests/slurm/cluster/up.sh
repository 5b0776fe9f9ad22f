#!/usr/bin/env bash
# Start a real SLURM cluster on this machine, for tests: up.sh DIR [OPTIONS]
#   --nodes N            nodes, named node1 to nodeN (default 2)
#   --cpus N --mem MB    what each node claims to have (default 8, 8000)
#   --gpus N             fake GPUs of each node (default 4)
#   --ssh                sshd on every node, keys, DIR/ssh/ssh_config; pdsh and mpirun
#   --install            install missing packages with apt-get
#   --slurmd-timeout S --kill-wait S --cred-expire S
# Every node is a set of Linux namespaces with its own address, host name, processes, /dev/shm and /run; the
# controller is one more. They share the file system. Then: . DIR/env.sh; sinfo; sbatch ...; node.sh DIR crash node2
# Exit codes: 3 packages are missing, 4 this machine gives no namespaces.
set -euo pipefail
HERE=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"
usage() {
    sed -n '2,11s/^# //p' "$0"
    exit 2
}
[ $# -ge 1 ] || usage
DIR=$1 NODES=2 CPUS=8 MEM=8000 GPUS=4 SSH=0 INSTALL=0 SLURMD_TIMEOUT=15 KILL_WAIT=5 CRED_EXPIRE=5
shift
while [ $# -gt 0 ]; do
    case "$1" in
        --ssh) SSH=1 && shift && continue ;;
        --install) INSTALL=1 && shift && continue ;;
    esac
    [ $# -ge 2 ] || usage
    case "$1" in
        --nodes) NODES=$2 ;;
        --cpus) CPUS=$2 ;;
        --mem) MEM=$2 ;;
        --gpus) GPUS=$2 ;;
        --slurmd-timeout) SLURMD_TIMEOUT=$2 ;;
        --kill-wait) KILL_WAIT=$2 ;;
        --cred-expire) CRED_EXPIRE=$2 ;;
        *) usage ;;
    esac
    shift 2
done
[ "$(id -u)" = 0 ] || { echo "only root can make network namespaces" >&2; exit 4; }
[[ "$DIR" =~ ^/[A-Za-z0-9/_.+-]{1,80}$ ]] || { echo "$DIR: need a short absolute path without odd characters" >&2; exit 2; }
mkdir -p "$DIR"
chmod 755 "$DIR" # munge demands it

install_packages() {
    local wanted=() pair
    for pair in slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client munged:munge ip:iproute2; do
        command -v "${pair%%:*}" >/dev/null || wanted+=("${pair##*:}")
    done
    if [ "$SSH" = 1 ]; then
        for pair in sshd:openssh-server ssh:openssh-client pdsh:pdsh mpirun:openmpi-bin; do
            command -v "${pair%%:*}" >/dev/null || wanted+=("${pair##*:}")
        done
    fi
    [ ${#wanted[@]} = 0 ] && return
    if [ "$INSTALL" = 0 ] || ! command -v apt-get >/dev/null; then
        echo "not installed: ${wanted[*]}" >&2
        exit 3
    fi
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${wanted[@]}"; } >"$DIR/apt.log" 2>&1 \
        || { echo "apt-get cannot install ${wanted[*]}: $(tail -n 1 "$DIR/apt.log")" >&2; exit 3; }
}

# A /24 that no interface of this machine has; prints its first three numbers.
free_subnet() {
    local third
    for third in $(seq 0 255); do
        ip -4 -o addr | grep -q " 10\.77\.$third\." || { echo "10.77.$third" && return; }
    done
    return 1
}

write_names() {
    echo "127.0.0.1 localhost"
    echo "::1 localhost ip6-localhost"
    echo "$SUBNET.254 slurmctl"
    echo "$SUBNET.253 $(hostname -s) login"
    for i in $(seq "$NODES"); do echo "$SUBNET.$i node$i"; done
}

write_slurm_conf() {
    cat <<EOF
ClusterName=test$TAG
SlurmctldHost=slurmctl($SUBNET.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it may start again (default 120 s).
AuthInfo=socket=$DIR/run/munge.socket,cred_expire=$CRED_EXPIRE
CredType=cred/munge
StateSaveLocation=$DIR/controller/state
SlurmctldPidFile=$DIR/controller/slurmctld.pid
SlurmctldLogFile=$DIR/controller/slurmctld.log
SlurmdSpoolDir=$DIR/nodes/%n/spool
SlurmdPidFile=$DIR/nodes/%n/slurmd.pid
SlurmdLogFile=$DIR/nodes/%n/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
PropagateResourceLimits=NONE
MailProg=/bin/true
# The nodes are believed to have the CPUs and the memory that they claim.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
# With --signal=[B:]SIG@t a preempted job gets SIG, not SIGTERM, at the start of its grace time.
SlurmctldParameters=preempt_send_user_signal
SlurmdTimeout=$SLURMD_TIMEOUT
SlurmctldTimeout=15
MessageTimeout=10
BatchStartTimeout=10
ReturnToService=2
KillWait=$KILL_WAIT
InactiveLimit=0
Waittime=0
# Ended jobs stay visible to scontrol.
MinJobAge=3600
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
EOF
    local gres=
    [ "$GPUS" = 0 ] || gres=" Gres=gpu:$GPUS"
    for i in $(seq "$NODES"); do
        echo "NodeName=node$i NodeAddr=$SUBNET.$i CPUs=$CPUS RealMemory=$MEM$gres State=UNKNOWN"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=10 PreemptMode=OFF"
    echo "PartitionName=preemptible Nodes=ALL MaxTime=INFINITE DefaultTime=60 PriorityTier=5 PreemptMode=REQUEUE GraceTime=20"
}

write_gpus() {
    local files=()
    # Character devices: with plain files SLURM counts the GPUs but leaves CUDA_VISIBLE_DEVICES empty.
    for i in $(seq 0 $((GPUS - 1))); do
        mknod -m 666 "$DIR/dev/nvidia$i" c 1 3
        files+=("$DIR/dev/nvidia$i")
    done
    for i in $(seq "$NODES"); do
        for file in "${files[@]}"; do echo "NodeName=node$i Name=gpu File=$file"; done
    done >"$DIR/etc/gres.conf"
}

write_ssh() {
    mkdir -m 700 "$DIR/ssh"
    ssh-keygen -q -t ed25519 -N '' -f "$DIR/ssh/id"
    ssh-keygen -q -t ed25519 -N '' -f "$DIR/ssh/hostkey"
    for i in $(seq "$NODES"); do
        cat >"$DIR/ssh/sshd_config.node$i" <<EOF
ListenAddress $SUBNET.$i
HostKey $DIR/ssh/hostkey
PidFile $DIR/nodes/node$i/sshd.pid
AuthorizedKeysFile $DIR/ssh/id.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
UseDNS no
EOF
        printf 'Host node%s\n  HostName %s\n' "$i" "$SUBNET.$i"
    done >"$DIR/ssh/ssh_config"
    cat >>"$DIR/ssh/ssh_config" <<EOF
Host node*
  User root
  IdentityFile $DIR/ssh/id
  IdentitiesOnly yes
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  BatchMode yes
  ConnectTimeout 5
EOF
}

all_idle() {
    [ "$(timeout 5 sinfo -h -t idle -o %D 2>/dev/null)" = "$NODES" ]
}

install_packages
unshare --net --pid --fork --mount --uts --ipc true 2>/dev/null || { echo "this machine gives no namespaces" >&2; exit 4; }
TAG=$(printf %s "$DIR" | cksum | awk '{printf "%05x", $1 % 1048576}') # interface names are short
SUBNET=$(free_subnet)
BRIDGE=slurm$TAG
mkdir -p "$DIR"/{etc,run,dev,controller/state,nodes/slurmctl}
for i in $(seq "$NODES"); do mkdir -p "$DIR/nodes/node$i/spool"; done
mkdir -m 700 "$DIR/munge"
(umask 077 && head -c 128 /dev/urandom >"$DIR/munge/munge.key")
echo "TAG=$TAG SUBNET=$SUBNET BRIDGE=$BRIDGE SSH=$SSH" >"$DIR/cluster.vars"
write_names >"$DIR/etc/hosts"
write_slurm_conf >"$DIR/etc/slurm.conf"
# slurmd 22.05 loads a cgroup plugin even when nothing uses cgroups, and v1 loads anywhere.
printf 'CgroupPlugin=cgroup/v1\nConstrainCores=no\nConstrainRAMSpace=no\n' >"$DIR/etc/cgroup.conf"
if [ "$GPUS" -gt 0 ]; then write_gpus; fi
if [ "$SSH" = 1 ]; then write_ssh; fi
echo "export SLURM_CONF=$DIR/etc/slurm.conf" >"$DIR/env.sh"

{ ip link add "$BRIDGE" type bridge && ip addr add "$SUBNET.253/24" dev "$BRIDGE" && ip link set "$BRIDGE" up; } \
    || { echo "this machine gives no network bridge" >&2; exit 4; }
for name in slurmctl $(seq -f node%g "$NODES"); do "$HERE/node.sh" "$DIR" boot "$name"; done
export SLURM_CONF=$DIR/etc/slurm.conf
SECONDS=0
until all_idle; do
    if [ "$SECONDS" -gt 60 ]; then
        tail -n 5 "$DIR"/nodes/*/host.log "$DIR"/controller/*.log "$DIR"/nodes/*/slurmd.log >&2
        exit 1
    fi
    sleep 0.1
done
echo "$NODES nodes are up: . $DIR/env.sh"
