#!/usr/bin/env bash
# What a pod runs. A run that was stopped by SIGTERM has saved and exits with
# 0, which Kubernetes would take for done: this says 75 (try again) instead.
#   bash launch/gke/run.sh --config=... --workdir=...
set -uo pipefail

python=${JAXPREF_PYTHON:-python}
asked= child=

stop() {
  asked=1
  [[ -z "$child" ]] || kill -TERM "$child"
}
trap stop TERM

"$python" -m jaxpref.launch "$@" &
child=$!
while kill -0 "$child" 2>/dev/null; do
  wait "$child" # which the trap interrupts
done
wait "$child"
status=$?

if [[ -n "$asked" && "$status" == 0 ]]; then
  exit 75
fi
exit "$status"
