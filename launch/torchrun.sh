#!/usr/bin/env bash
# Trains on several machines that find each other. The same command on each of them, in any order:
#
#   NNODES=2 RDZV_ENDPOINT=10.0.0.1:29400 launch/torchrun.sh parallelism=zero3 checkpoint.root=/shared/runs
#
# RDZV_ENDPOINT: one of the machines, with a free port. checkpoint.root and data.cache_root: folders
# that all of them see. NNODES=1:4 also goes on with fewer machines than four. A machine that is lost
# may come back with the same command. Exit codes 75 and 76 mean: the same command goes on.
set -euo pipefail
# shellcheck source=launch/env.sh
. "$(dirname "$0")/env.sh"

NNODES="${NNODES:-1}"
case "$NNODES" in '' | *[!0-9:]*) echo "lsp: NNODES=$NNODES is not a number of machines, e.g. 2 or 1:4" >&2; exit 2 ;; esac
if [ -z "${RDZV_ENDPOINT:-}" ]; then
    [ "$NNODES" = 1 ] || { echo "lsp: NNODES=$NNODES machines need RDZV_ENDPOINT=host:port, one of them" >&2; exit 2; }
    RDZV_ENDPOINT=127.0.0.1:29400
fi
network=$(python "$LSP_HOME/launch/network.py" "$RDZV_ENDPOINT") || exit 2
read -r is_host address interface <<<"$network"
export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-$interface}"

# torchrun replaces lost workers and waits for lost machines; when it is the machine of the
# rendezvous that is lost, torchrun itself ends everywhere, and begins again here.
for ((launch = 0; ; launch++)); do
    supervise torchrun --nnodes "$NNODES" --nproc-per-node "$NPROC" --max-restarts "$MAX_RESTARTS" \
        --rdzv-backend c10d --rdzv-endpoint "$RDZV_ENDPOINT" --rdzv-id "${RDZV_ID:-lsp}" \
        --rdzv-conf "is_host=$is_host,read_timeout=300" --local-addr "$address" \
        -m lsp train "$@"
    if [ "$code" -ne "$STALLED" ] || [ -n "$told" ] || [ "$launch" -ge "$MAX_RESTARTS" ]; then
        exit "$code"
    fi
    echo "lsp: contact was lost; starting again ($((launch + 1)) of $MAX_RESTARTS)" >&2
    sleep 5
done
