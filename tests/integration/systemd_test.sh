#!/usr/bin/env bash
# deploy/systemd: the units are valid and confine what they run; under a systemd of their own, in a
# namespace of its own, they start a fleet, start again what dies, and leave what was drained alone.
# Exit status 77: skipped, because systemd is not here.
#
# usage: systemd_test.sh REPOSITORY BIN_DIR
#        systemd_test.sh --inside REPOSITORY BIN_DIR FOLDER      (by itself, in the namespace)
set -euo pipefail

inside=0
if [[ $1 == --inside ]]; then inside=1 && shift; fi
ROOT=$1 BIN=$2
units=$ROOT/deploy/systemd
for name in $(compgen -e CONCLAVE_); do unset "$name"; done
. "$(dirname "${BASH_SOURCE[0]}")/checks.sh"

finish_checks() {
    if ((failures)); then
        echo "$failures checks failed"
        exit 1
    fi
}

# ---------------------------------------------------------------- outside

outside() {
    local work unit level
    command -v systemd-analyze >/dev/null || {
        echo "skipped: systemd-analyze is not here"
        exit 77
    }
    work=$(mktemp -d /tmp/conclave-test-XXXXXX)
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    mkdir "$work/units"
    for unit in "$units"/*.service "$units"/*.target; do
        sed "s#/usr/local/bin#$BIN#" "$unit" >"$work/units/$(basename "$unit")"
    done
    try 0 "" systemd-analyze verify "$work"/units/*
    [[ -z $said ]] || fail "systemd-analyze has something to say: $said"
    # 10 is no confinement at all, 0 no way to do anything.  Versions weigh differently.
    if systemd-analyze --help | grep -q -- --offline; then
        for unit in "$work"/units/*.service; do
            try 0 "exposure" systemd-analyze security --offline=yes --threshold=30 "$unit"
            level=$(sed -n 's/.*exposure level for \(.*\)/\1/p' <<<"$said")
            echo "systemd: exposure of $level"
        done
    fi
    finish_checks
    if [[ ! -x /lib/systemd/systemd ]] || ! unshare --mount --pid --fork --mount-proc true 2>/dev/null; then
        echo "systemd: the units are valid; they were not run, since no systemd can be started here"
        exit 0
    fi
    unshare --mount --pid --fork --mount-proc bash "${BASH_SOURCE[0]}" --inside "$ROOT" "$BIN" "$work" || exit 1
    echo "systemd: all checks passed"
}

# ---------------------------------------------------------------- a systemd of our own

run_dir=/run/user-0/conclave
props() { systemctl --user show -p "$2" --value "$1"; }
pid_of() { props "$1" MainPID; }
is() { [[ $(props "$1" ActiveState) == "$2" ]]; }
another_pid() { [[ $(pid_of "$1") != "$2" && $(pid_of "$1") != 0 ]] && is "$1" active; }
healthy() { curl --silent --fail --noproxy '*' --max-time 2 "http://127.0.0.1:$port/health"; }
answer() {
    curl --silent --noproxy '*' --max-time 60 -H 'Content-Type: application/json' \
        -d '{"prompt":"In the beginning","max_tokens":24,"temperature":0}' "http://127.0.0.1:$port/v1/completions" |
        sed -n 's/.*"text":\(.*\),"logprobs".*/\1/p'
}
logs() { cat "$work"/journal/* 2>/dev/null || true; }

# Only what a user's systemd has elsewhere: the account, and where run directories are.  And what is
# run may lie below /tmp, of which services have their own.
install_units() {
    local unit
    mkdir -p "$work/config/systemd/user" "$work/journal" "$work/cache"
    for unit in "$units"/*.service "$units"/*.target; do
        sed -e "s#/usr/local/bin#$BIN#" -e '/^User=/d' -e "s#/run/conclave#$run_dir#" -e "s#/etc/conclave#$work#" \
            -e "/^\[Service\]/a StandardOutput=append:$work/journal/%n.log\nStandardError=inherit" \
            -e "/^\[Service\]/a BindReadOnlyPaths=$ROOT $BIN" \
            "$unit" >"$work/config/systemd/user/$(basename "$unit")"
    done
    sed -e "s#^CONCLAVE_MODEL=.*#CONCLAVE_MODEL=$ROOT/models/demo#" -e "s#^CONCLAVE_WORKERS=.*#CONCLAVE_WORKERS=2#" \
        -e "s#^CONCLAVE_PORT=.*#CONCLAVE_PORT=$port#" -e "s#^CONCLAVE_PACKED_CACHE=.*#CONCLAVE_PACKED_CACHE=$work/cache/conclave#" \
        "$units/conclave.env" >"$work/conclave.env"
}

in_namespace() {
    work=$3 port=$((20000 + RANDOM % 12000))
    # A /run of our own: systemd looks there for the one that runs the machine.
    mount -t tmpfs tmpfs /run
    mkdir -p /run/systemd/system /run/user-0
    chmod 700 /run/user-0
    export XDG_RUNTIME_DIR=/run/user-0 XDG_CONFIG_HOME=$work/config XDG_CACHE_HOME=$work/cache
    install_units
    /lib/systemd/systemd --user >"$work/systemd.log" 2>&1 &
    wait_for 20 systemctl --user is-system-running || {
        echo "systemd: the units are valid; they were not run: $(tail -n 1 "$work/systemd.log")"
        exit 0
    }
    local id pid want key line
    trap 'if ((failures)); then logs; fi' EXIT

    # What a container has no right to is left out here.
    while read -r line; do
        systemd-run --user --wait --quiet -p "$line" true 2>/dev/null && continue
        echo "systemd: run without $line, which can't be had here"
        sed -i "/^$line\$/d" "$work"/config/systemd/user/conclave-*.service
    done < <(grep -hE '^(Protect|Private|Restrict|Lock|Memory)[A-Za-z]*=' "$units"/*.service | sort -u)
    systemctl --user daemon-reload

    # --- one target starts them all, and each says when it is ready
    systemctl --user enable --quiet conclave-router@0 conclave-worker@0 conclave-worker@1 conclave-frontend 2>/dev/null
    try 0 "" systemctl --user start conclave.target
    wait_for 30 is conclave-frontend active || fail "the frontend is not active"
    wait_for 30 healthy || fail "the fleet does not serve"
    want=$(answer)
    [[ -n $want ]] || fail "no answer"
    [[ $(stat -c %a "$run_dir") == 700 ]] || fail "the run directory is open to others"
    for id in router@0 worker@0 worker@1 frontend; do
        [[ $(props "conclave-$id" Type) == notify ]] || fail "$id does not notify"
        key=$(sed -n 's/^NoNewPrivs:\s*//p; s/^Seccomp:\s*//p' "/proc/$(pid_of "conclave-$id")/status" | tr '\n' ' ')
        [[ $key == "1 2 " ]] || fail "$id is not confined: NoNewPrivs, Seccomp: $key"
    done

    # --- whatever dies is started again, and answers are the same
    for id in router@0 worker@1 frontend; do
        pid=$(pid_of "conclave-$id")
        kill -KILL "$pid"
        wait_for 20 another_pid "conclave-$id" "$pid" || fail "$id was not started again"
        wait_for 20 healthy || fail "no service after $id died"
        [[ $(answer) == "$want" ]] || fail "another answer after $id died"
    done

    # --- a worker that was drained stays away; another start brings it back
    try 0 "" "$BIN/conclave-ctl" --run-dir "$run_dir" --drain 1
    wait_for 30 is conclave-worker@1 inactive || fail "a drained worker does not end: $(props conclave-worker@1 ActiveState)"
    [[ $(answer) == "$want" ]] || fail "another answer without worker 1"
    systemctl --user start conclave-worker@1
    wait_for 20 is conclave-worker@1 active || fail "worker 1 does not start again"

    # --- options that can't be are not tried again and again
    mkdir -p "$work/config/systemd/user/conclave-worker@7.service.d"
    printf '[Service]\nEnvironment=CONCLAVE_EXPERT_MEMORY=much\n' \
        >"$work/config/systemd/user/conclave-worker@7.service.d/wrong.conf"
    systemctl --user daemon-reload
    systemctl --user start conclave-worker@7 2>/dev/null && fail "a worker with bad options starts"
    wait_for 10 is conclave-worker@7 failed || fail "bad options are tried again"
    [[ $(props conclave-worker@7 NRestarts) == 0 ]] || fail "bad options were tried again"

    # --- stopped: the frontend first, then the others; nothing is left
    try 0 "" systemctl --user stop conclave.target
    for id in router@0 worker@0 worker@1 frontend; do
        wait_for 30 is "conclave-$id" inactive || fail "$id is $(props "conclave-$id" ActiveState) after the stop"
    done
    [[ $(find /dev/shm -maxdepth 1 -name "conclave-$("$BIN/conclave-router" --run-dir "$run_dir" --print-run-id)-*") == "" ]] ||
        fail "shared memory is left"
    finish_checks
}

if ((inside)); then in_namespace "$@"; else outside; fi
