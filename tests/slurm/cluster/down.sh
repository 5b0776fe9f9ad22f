#!/usr/bin/env bash
# Stop the cluster that up.sh started in DIR, and remove the directory: down.sh DIR
set -uo pipefail
HERE=$(dirname "$(readlink -f "$0")")
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$HERE/common.sh"
[ $# = 1 ] || { sed -n '2s/^# //p' "$0"; exit 2; }
DIR=$1
[ -f "$DIR/cluster.vars" ] || { echo "no cluster in $DIR" >&2; exit 2; }
# shellcheck source=/dev/null
. "$DIR/cluster.vars"
for record in "$DIR"/nodes/*/init.pid "$DIR"/nodes/*/unshare.pid; do
    kill_recorded "$record"
done
ip -o link show master "$BRIDGE" 2>/dev/null | sed 's/^[0-9]*: \([^@:]*\).*/\1/' | while read -r link; do
    ip link del "$link"
done
ip link del "$BRIDGE" 2>/dev/null
rm -rf "$DIR"
