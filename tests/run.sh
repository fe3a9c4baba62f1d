#!/usr/bin/env bash
# Sets up, builds, and runs every test.  The last line is "N passed, N failed, N skipped".
#
# Counted are single tests, not programs: what Criterion reports, and one for each program without
# it (the fuzz targets).  The tests run twice: in the release build, which is what is counted, and
# under the address and undefined-behaviour sanitizers, from where only failures are added.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: tests/run.sh [--fuzz-seconds N] [--chaos-seconds N] [--chaos-seed N] [--sanitize]
  --fuzz-seconds N   how long each fuzz target runs (default 2)
  --chaos-seconds N  how long things go wrong for each fleet of the chaos test (default 10)
  --chaos-seed N     which things, and when (default 1)
  --sanitize         run the integration tests under the sanitizers too (slow)
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
fuzz_seconds=2 chaos_seconds=10 chaos_seed=1 sanitize_all=0

# number_of NAME VALUE: what the option NAME says, which must be a whole number.
number_of() {
    [[ $2 =~ ^[0-9]{1,5}$ ]] || {
        echo "$1: \"$2\" must be a whole number" >&2
        exit 2
    }
    echo "$2"
}

while (($#)); do
    case $1 in
    --fuzz-seconds=* | --chaos-seconds=* | --chaos-seed=*)
        set -- "${1%%=*}" "${1#*=}" "${@:2}"
        continue
        ;;
    --fuzz-seconds | --chaos-seconds | --chaos-seed)
        name=${1#--} value=$(number_of "$1" "${2:-}")
        printf -v "${name/-/_}" '%s' "$value"
        (($# > 1)) && shift
        ;;
    --sanitize) sanitize_all=1 ;;
    --help) usage && exit 0 ;;
    *)
        echo "tests/run.sh: unknown option $1" >&2
        usage >&2
        exit 2
        ;;
    esac
    shift
done
export CONCLAVE_FUZZ_SECONDS=$fuzz_seconds CONCLAVE_CHAOS_SECONDS=$chaos_seconds CONCLAVE_CHAOS_SEED=$chaos_seed
export CRITERION_VERBOSITY_LEVEL=1 # Criterion names skipped tests only then
# CTest runs programs side by side already, and Criterion leaks when it runs tests side by side.
export CRITERION_JOBS=1

# Settings that a developer has exported for a fleet of their own must not steer the tests.
unset CONCLAVE_MODEL CONCLAVE_RUN_DIR CONCLAVE_PORT CONCLAVE_HOST CONCLAVE_CONFIG CONCLAVE_API_KEY CONCLAVE_ADMIN_API_KEY CONCLAVE_ROUTERS

passed=0 failed=0 skipped=0

finish() {
    printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    if ((failed)); then exit 1; fi
    exit 0
}

# quietly LOG COMMAND...: shows the end of the log when it fails.
quietly() {
    local log=$1
    shift
    if ! "$@" >"$log" 2>&1; then
        grep -E -A 12 'FAILED:|error:|CMake Error' "$log" | tail -n 100 || tail -n 40 "$log"
        echo "failed: $*"
        return 1
    fi
}

# build PRESET FOLDER: in continuous integration a warning is a failure, elsewhere a newer compiler
# may warn of new things.  The tests run even so.
build() {
    local started=$SECONDS werror=OFF
    if [[ -n ${CI:-} ]]; then werror=ON; fi
    mkdir -p "$2"
    if ! build_with "$1" "$2" "$werror"; then
        failed=$((failed + 1))
        [[ $werror == ON ]] || return 1
        echo "$1: building again, with warnings allowed"
        build_with "$1" "$2" OFF || return 1
    fi
    echo "$1: built in $((SECONDS - started)) s"
}

build_with() {
    quietly "$2/configure.log" cmake --preset "$1" "-DCONCLAVE_WERROR=$3" || return 1
    quietly "$2/build.log" cmake --build "$2" --parallel "$(nproc)" -- -k 0
}

# Prints "PASSED FAILED SKIPPED" of CTest's last run in a build folder: Criterion's own counts where
# a program gives them, else one for the program.  junit.xml says how each program ended (the log
# calls also those "Passed" that could not be started); the log has the whole output.  A program
# that fails though all its tests passed (a leak, a crash, its time limit) is one failure more.
count_tests() {
    awk '
        function close_program() {
            if (name == "") return
            passed += has_counts || status[name] != "run" ? good : 1
            if (status[name] == "fail" && bad == 0) bad = 1
            failed += bad
        }
        FNR == NR && /<testcase name=/ {
            split($0, part, "\"")
            current = part[2]
            match($0, / status="[a-z]*"/)
            status[current] = substr($0, RSTART + 9, RLENGTH - 10)
        }
        FNR == NR && /<skipped message=/ {
            if ($0 ~ /SKIP_/) skipped++
            else if (status[current] == "notrun") failed++
        }
        FNR == NR { next }
        /^[0-9]+\/[0-9]+ Testing: / {
            close_program()
            name = $3
            good = bad = has_counts = 0
        }
        /^\[SKIP\] / { skipped++ }
        /Synthesis: Tested: / {
            line = $0
            gsub(/[^0-9]+/, " ", line)
            split(line, n, " ")
            has_counts = 1
            good += n[2]
            bad += n[1] - n[2] # crashes are among the failures
        }
        END { close_program(); print passed + 0, failed + 0, skipped + 0 }
    ' "$1/junit.xml" "$1/Testing/Temporary/LastTest.log"
}

# run_tests NAME FOLDER CTEST-OPTIONS...: sets run_passed, run_failed, run_skipped.
run_tests() {
    local name=$1 folder=$2 started=$SECONDS status=0
    shift 2
    # Tests with the label "integration" are RUN_SERIAL: each starts a fleet and wants both cores.
    ctest --test-dir "$folder" --parallel 2 --output-on-failure --no-tests=error \
        --output-junit "$PWD/$folder/junit.xml" "$@" || status=$?
    read -r run_passed run_failed run_skipped < <(count_tests "$folder")
    # What the log does not show (a program that could not be started) is a failure all the same.
    if ((status && !run_failed)); then run_failed=1; fi
    echo "$name: $run_passed passed, $run_failed failed, $run_skipped skipped in $((SECONDS - started)) s"
}

# shellcheck source=deploy/packages.sh
. deploy/packages.sh

if ! bash tests/format.sh; then failed=$((failed + 1)); fi

if ! build release build; then finish; fi
run_tests release build
passed=$run_passed failed=$((failed + run_failed)) skipped=$run_skipped

if build asan-ubsan build-asan-ubsan; then
    only=()
    ((sanitize_all)) || only=(--label-exclude '^integration$')
    run_tests asan-ubsan build-asan-ubsan "${only[@]}"
    failed=$((failed + run_failed))
fi
finish
