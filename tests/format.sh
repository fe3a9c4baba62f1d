#!/usr/bin/env bash
# Fails when a C file that git tracks is not laid out as .clang-format says.
# Versions of clang-format differ in what they make of one file, so only version 14 decides.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_tool() {
    local tool
    for tool in clang-format-14 clang-format; do
        if command -v "$tool" >/dev/null && [[ $("$tool" --version) == *"version 14."* ]]; then
            echo "$tool"
            return 0
        fi
    done
    return 1
}

list_files() {
    if git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
        git ls-files -z -- '*.c' '*.h'
    else
        find . -path './build*' -prune -o \( -name '*.c' -o -name '*.h' \) -print0
    fi
}

if ! tool=$(find_tool); then
    echo "format: skipped, clang-format 14 is not here"
    exit 0
fi
mapfile -d '' -t files < <(list_files)
bad=0
for file in "${files[@]}"; do
    [[ -f $file ]] || continue # deleted, not yet committed
    if ! "$tool" --dry-run -Werror "$file" 2>/dev/null; then
        echo "format: $file differs; run: $tool -i $file"
        bad=$((bad + 1))
    fi
done
if ((bad)); then
    echo "format: $bad of ${#files[@]} files differ"
    exit 1
fi
echo "format: ${#files[@]} files are as .clang-format says"
