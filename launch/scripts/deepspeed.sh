#!/bin/bash
# A run on the hosts of a hostfile, with DeepSpeed's launcher over ssh (pdsh). Call it on the first host, from anywhere:
#   launch/scripts/deepspeed.sh HOSTFILE --config configs/gpt/1b3.yaml --set seed=2
# HOSTFILE has a line `NAME slots=8` for each host. Every host needs this directory, the corpus and run_dir under the
# same paths, and ssh without a password. Variables of the ranks go into ~/.deepspeed_env, a line NAME=VALUE each:
# pdsh passes on few. `headwater launch deepspeed` does the same and checks the hosts first.
# To save and stop: touch RUN_DIR/stop. The same command goes on from the newest checkpoint.
set -euo pipefail

hostfile=$(realpath "$1")
shift
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ -f .venv/bin/activate ]; then
    source .venv/bin/activate
fi
first=$(awk '/^[^#]*slots=/ { print $1; exit }' "$hostfile")
# --force_multi: also a single host of the hostfile is reached by ssh. --master_addr: DeepSpeed would guess it.
exec deepspeed --hostfile "$hostfile" --launcher pdsh --force_multi \
    --master_addr "$first" --master_port "${MASTER_PORT:-29500}" \
    --module pretrain.train "$@"
