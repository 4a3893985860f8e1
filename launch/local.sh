#!/usr/bin/env bash
# Trains on all devices of this machine, one process each. A process that is lost is replaced.
#
#   launch/local.sh run_name=long parallelism=zero2 sequence_length=65536 tokens_per_step=524288
#   NPROC=2 launch/local.sh experiment=debug parallelism=ddp        # two processes without a GPU
#
# SIGTERM and Ctrl-C save and leave. Exit codes 75 and 76 mean: the same command goes on.
set -euo pipefail
# shellcheck source=launch/env.sh
. "$(dirname "$0")/env.sh"

supervise torchrun --standalone --nproc-per-node "$NPROC" --max-restarts "$MAX_RESTARTS" \
    -m lsp train "$@"
exit "$code"
