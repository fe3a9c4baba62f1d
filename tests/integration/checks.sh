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
