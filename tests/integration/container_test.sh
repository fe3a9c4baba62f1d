#!/usr/bin/env bash
# Containerfile: the image builds, and a container of it serves, without rights, until it is stopped.
# Exit status 77: skipped, because no container engine works here or its base image can't be had.
#
# usage: container_test.sh REPOSITORY
set -euo pipefail

ROOT=$1
. "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

skip() {
    echo "skipped: $*"
    exit 77
}

engine=""
for name in podman docker; do
    if command -v "$name" >/dev/null && timeout 20 "$name" info >/dev/null 2>&1; then
        engine=$name
        break
    fi
done
[[ -n $engine ]] || skip "no container engine works here (podman, docker)"
base=$(sed -n 's/^ARG BASE=//p' "$ROOT/Containerfile")
"$engine" image inspect "$base" >/dev/null 2>&1 || timeout 120 "$engine" pull --quiet "$base" >/dev/null 2>&1 ||
    skip "$engine can't get $base"

image=conclave-test:$$ container=""
finish() {
    if [[ -n $container ]]; then "$engine" rm --force "$container" >/dev/null 2>&1 || true; fi
    "$engine" rmi --force "$image" >/dev/null 2>&1 || true
}
trap finish EXIT

"$engine" build --quiet --file "$ROOT/Containerfile" --tag "$image" "$ROOT" || {
    echo "FAILED: the image does not build"
    exit 1
}
container=$("$engine" run --detach --shm-size=256m --publish 127.0.0.1::8000 --volume "$ROOT/models/demo:/model:ro" \
    --cap-drop=ALL --security-opt=no-new-privileges "$image" --workers 2 --api-key sk-of-the-test)
at=$("$engine" port "$container" 8000/tcp | head -n 1)
for ((i = 0; i < 300; i++)); do
    curl --silent --fail --noproxy '*' --output /dev/null "http://$at/health" && break
    sleep 0.2
done
try 0 '"completion_tokens":4' curl --silent --noproxy '*' --max-time 60 -H 'Content-Type: application/json' \
    -H 'Authorization: Bearer sk-of-the-test' -d '{"prompt":"In the beginning","max_tokens":4}' "http://$at/v1/completions"
try 0 conclave "$engine" exec "$container" id -un
try 0 "" "$engine" stop --time 20 "$container"
try 0 "0" "$engine" inspect --format '{{.State.ExitCode}}' "$container"
if ((failures)); then
    "$engine" logs "$container"
    exit 1
fi
echo "container: all checks passed"
