# What scripts that test scripts share: source it.
failures=0

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    failures=$((failures + 1))
}

# try STATUS WORDS COMMAND...: runs it; its exit status must be STATUS and its output, which is left
# in $said, must hold WORDS.
try() {
    local want=$1 words=$2 got=0
    shift 2
    said=$("$@" 2>&1 </dev/null) || got=$?
    [[ $got == "$want" ]] || fail "exit status $got, not $want, of: $* : $said"
    [[ $said == *"$words"* ]] || fail "no \"$words\" in the output of: $* : $said"
}

# wait_for SECONDS COMMAND...: until it is true; 1: it never was.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= deadline)); then return 1; fi
        sleep 0.1
    done
}

# up_demo FOLDER OPTIONS...: a fleet of the demo model in FOLDER/run, at $port; what `up` says goes to
# FOLDER/up.  Ports are below the range from which the kernel takes those of outgoing connections;
# another program may still be faster.
up_demo() {
    local folder=$1 i
    shift
    for ((i = 0; i < 5; i++)); do
        port=$((20000 + RANDOM % 12000))
        "$ROOT/deploy/conclave" up --run-dir "$folder/run" --model "$ROOT/models/demo" --port "$port" "$@" \
            2>"$folder/up" && return 0
    done
    return 1
}
