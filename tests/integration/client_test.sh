#!/usr/bin/env bash
# The `openai` Python package as a client of a fleet.  Exit status 77: skipped, because there is no
# Python or the package can't be had here.
#
# usage: client_test.sh REPOSITORY BIN_DIR FOLDER      FOLDER keeps the package for the next run
set -euo pipefail

ROOT=$1
export CONCLAVE_BIN_DIR=$2
venv=$3/client-venv
unset CONCLAVE_MODEL CONCLAVE_RUN_DIR CONCLAVE_PORT CONCLAVE_HOST CONCLAVE_WORKERS CONCLAVE_API_KEY
. "$(dirname "${BASH_SOURCE[0]}")/checks.sh"
unset OPENAI_API_KEY OPENAI_BASE_URL OPENAI_ORG_ID OPENAI_PROJECT_ID

skip() {
    echo "skipped: $*"
    exit 77
}

has_package() { "$venv/bin/python" -c 'import openai' 2>/dev/null; }

if ! has_package; then
    command -v python3 >/dev/null || skip "python3 is not here"
    rm -rf "$venv"
    python3 -m venv "$venv" >/dev/null 2>&1 || skip "python3 can't make a virtual environment"
    timeout 60 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --retries 1 --timeout 5 'openai>=1,<4' >"$venv/pip.log" 2>&1 ||
        skip "pip can't install openai: $(tail -n 1 "$venv/pip.log")"
    has_package || skip "the package openai does not work with this Python"
fi

work=$(mktemp -d /tmp/conclave-test-XXXXXX)
finish() {
    "$ROOT/deploy/conclave" down --run-dir "$work/run" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT

up_demo "$work" --api-key sk-of-the-test || true # the client then says what it met
NO_PROXY=127.0.0.1 "$venv/bin/python" "$ROOT/tests/integration/client_test.py" \
    "http://127.0.0.1:$port/v1" sk-of-the-test || {
    cat "$work/up" "$work"/run/*.log
    exit 1
}
