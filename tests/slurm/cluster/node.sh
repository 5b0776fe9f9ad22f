#!/usr/bin/env bash
# Operate the hosts of a cluster: node.sh DIR OPERATION NAME [COMMAND ...]
#   boot NAME           switch on             crash NAME         cut the power: every process dies at once
#   cable-out NAME      cut the network       cable-in NAME      join it again
#   kill-slurmd NAME    only the daemon       start-slurmd NAME  start it again
#   exec NAME COMMAND   run a command on the host
set -euo pipefail
HERE=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"
usage() {
    sed -n '2,6s/^# //p' "$0"
    exit 2
}
[ $# -ge 3 ] || usage
DIR=$1 OPERATION=$2 NAME=$3 STATE=$1/nodes/$3
shift 3
[ -d "$STATE" ] || { echo "$DIR has no host $NAME" >&2; exit 2; }
# shellcheck source=/dev/null
. "$DIR/cluster.vars"
export SLURM_CONF=$DIR/etc/slurm.conf
if [ "$NAME" = slurmctl ]; then NUMBER=254; else NUMBER=${NAME#node}; fi
LINK=v$TAG$NUMBER

inside() {
    local pid
    pid=$(recorded_pid "$STATE/init.pid") || { echo "$NAME is switched off" >&2; return 1; }
    nsenter -t "$pid" -m -u -i -n -p -- "$@"
}

# The first child of a process; fails until it exists, with a network of its own.
first_child() {
    child=$(cat "/proc/$1/task/$1/children" 2>/dev/null) && child=${child%% *} && [ -n "$child" ] \
        && [ "$(readlink "/proc/$child/ns/net")" != "$(readlink "/proc/$$/ns/net")" ]
}

boot() {
    recorded_pid "$STATE/init.pid" >/dev/null && return
    rm -f "$STATE/network" "$STATE"/*.pid
    env -i PATH="$PATH" HOME=/root LANG=C.UTF-8 setsid \
        unshare --fork --pid --mount-proc --mount --uts --net --ipc --kill-child \
        "$HERE/host.sh" "$DIR" "$NAME" </dev/null >"$STATE/host.log" 2>&1 &
    local parent=$! child=
    insist 200 first_child "$parent" || { echo "$NAME did not start: see $STATE/host.log" >&2; return 1; }
    record_pid "$child" "$STATE/init.pid"
    record_pid "$parent" "$STATE/unshare.pid"
    ip link del "$LINK" 2>/dev/null || true
    ip link add "$LINK" type veth peer name eth0 netns "$child"
    ip link set "$LINK" master "$BRIDGE" up
    nsenter -t "$child" -n ip addr add "$SUBNET.$NUMBER/24" dev eth0
    nsenter -t "$child" -n ip link set eth0 up
    touch "$STATE/network"
}

execute() {
    # shellcheck disable=SC2016 # the shell inside expands it
    inside /bin/sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"
}

case "$OPERATION" in
    boot) boot ;;
    crash) kill_recorded "$STATE/init.pid" ;;
    cable-out) ip link set "$LINK" down ;;
    cable-in) ip link set "$LINK" up ;;
    kill-slurmd) inside kill -KILL "$(cat "$STATE/slurmd.pid")" ;;
    start-slurmd) inside env -i PATH="$PATH" HOME=/root SLURM_CONF="$SLURM_CONF" slurmd -N "$NAME" ;;
    exec) execute "$@" ;;
    *) usage ;;
esac
