#!/usr/bin/env bash
# Starts the run on every host of a TPU VM; run it where gcloud is. Again, to
# go on with the run.
#   bash launch/tpu_vm/train.sh NAME ZONE FOLDER --config=... --workdir=...
# FOLDER is the repository's on each host, with jaxpref[tpu] in its .venv.
set -euo pipefail

if (($# < 4)); then
  echo "usage: $0 NAME ZONE FOLDER --config=FILE --workdir=DIR ..." >&2
  exit 2
fi
name=$1 zone=$2 folder=$3
shift 3

# The first endpoint is worker 0's; JAX asks each host for its number.
addresses=$(gcloud compute tpus tpu-vm describe "$name" --zone="$zone" \
  --format='value(networkEndpoints[].ipAddress)')
IFS=$'; ,\n' read -r -d '' first others <<<"$addresses" || true
setting=
if [[ -n "${others:-}" ]]; then # one host alone needs no coordinator
  setting="JAX_COORDINATOR_ADDRESS=$first:8482"
fi

printf -v command 'cd %q && env %s .venv/bin/python -m jaxpref.launch' \
  "$folder" "$setting"
printf -v arguments ' %q' "$@"
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="$command$arguments"
