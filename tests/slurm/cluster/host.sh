#!/usr/bin/env bash
# Process 1 of one virtual host: host.sh DIR NAME. It has its own network, pid, mount, uts and ipc namespace.
set -uo pipefail
HERE=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"
DIR=$1 NAME=$2 STATE=$1/nodes/$2
# shellcheck source=/dev/null
. "$DIR/cluster.vars"
export SLURM_CONF=$DIR/etc/slurm.conf

# Own names. An overlay on /etc: a bind mount on /etc/hosts vanishes as soon as anybody replaces that file by rename.
own_etc() {
    mkdir -p "$STATE/overlay"
    mount -t tmpfs -o mode=755 tmpfs "$STATE/overlay"
    mkdir "$STATE/overlay/upper" "$STATE/overlay/work"
    mount -t overlay overlay -o "lowerdir=/etc,upperdir=$STATE/overlay/upper,workdir=$STATE/overlay/work" /etc || return 0
    cat "$DIR/etc/hosts" >/etc/hosts
    hostname >/etc/hostname
}

start_controller() {
    rm -f "$DIR/run/munge.socket" "$DIR/run/munge.socket.lock"
    munged --key-file="$DIR/munge/munge.key" --socket="$DIR/run/munge.socket" --pid-file="$DIR/run/munged.pid" \
        --seed-file="$DIR/munge/seed" --log-file="$DIR/munge/munged.log" --num-threads=2
    slurmctld
}

start_node() {
    mkdir -p "$STATE/spool"
    insist 400 test -S "$DIR/run/munge.socket"
    slurmd -N "$NAME"
    if [ "$SSH" = 1 ]; then
        /usr/sbin/sshd -f "$DIR/ssh/sshd_config.$NAME" -E "$STATE/sshd.log"
    fi
}

hostname "$NAME"
own_etc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=1777,size=4g tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd /run/lock
ip link set lo up
insist 400 test -e "$STATE/network"
if [ "$NAME" = slurmctl ]; then start_controller; else start_node; fi
while :; do # bash as process 1 reaps the orphans
    sleep 3600 &
    wait $!
done
