#!/usr/bin/env bash
# study_png: a study's figures as PNG files for papers, in DIR/plots.
#
#   gnuplot   the published study's plots, from the results: each metric against MAX_SEQS and against
#             BATCH_TOKENS, one line a mode, medians with the range of all runs
#   chromium  every figure of report.html as the page shows it
#
# What is not installed is said and left out; exit status 1 if nothing could be drawn.
#
# usage: deploy/study_png.sh DIR        (or deploy/study.sh report DIR --png)
set -euo pipefail

METRICS=(median_ttft_ms median_tpot_ms request_throughput output_throughput)
LABELS=("time to first token, ms" "time per output token, ms" "requests/s" "output tokens/s")
FIGURE_WIDTH=900 # CSS pixels; pictures have three times as many

say() { printf 'study: %s\n' "$*" >&2; }

# ---------------------------------------------------------------- the study's plots

# "MODE SEQS TOKENS FOLDER" of every plain cell (no EPLB, no other load, no option) that has runs.
plain_cells() {
    local folder name
    for folder in "$dir"/*/; do
        name=$(basename "$folder")
        [[ $name =~ -conclave([A-Z]+[0-9]+(R[0-9]+)?)-[^][]*\[([0-9]+)_([0-9]+)\]- ]] || continue
        [[ -n $(find "$folder/results_json" -name 'r*.json' 2>/dev/null) ]] || continue
        printf '%s %s %s %s\n' "${BASH_REMATCH[1]}" "${BASH_REMATCH[3]}" "${BASH_REMATCH[4]}" "$folder"
    done
}

# commonest COLUMN: the value that most of the cells have there.
commonest() { awk -v c="$1" '{ n[$c]++ } END { for (v in n) if (n[v] > n[best] || best == "") best = v; print best }' "$work/cells"; }

# Prints "X MEDIAN LEAST MOST" for each cell of MODE, X rising.
points() {
    local mode=$1 x=$2 held=$3 value=$4 metric=$5 file
    awk -v m="$mode" -v x="$x" -v h="$held" -v v="$value" '$1 == m && $h == v { print $x, $4 }' "$work/cells" | sort -n |
        while read -r at folder; do
            for file in "$folder"/results_json/r*.json; do
                grep -o "\"$metric\": *[0-9.eE+-]*" "$file" | head -n 1 | sed 's/.*: *//'
            done | sort -g | awk -v at="$at" '{ v[NR] = $1 } END {
                if (NR) print at, NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2, v[1], v[NR] }'
        done
}

# draw METRIC LABEL X-COLUMN X-NAME HELD-COLUMN HELD-NAME
draw() {
    local metric=$1 label=$2 x=$3 x_name=$4 held=$5 held_name=$6 value mode plots="" out
    value=$(commonest "$held")
    out=$dir/plots/$metric-by-${x_name,,}.png
    while read -r mode; do
        points "$mode" "$x" "$held" "$value" "$metric" >"$work/$mode.dat"
        [[ $(wc -l <"$work/$mode.dat") -gt 1 ]] || continue # one point is no line
        plots+="${plots:+, }'$work/$mode.dat' using 1:2:3:4 with yerrorlines linewidth 3 pointtype 7 title '$mode'"
    done < <(cut -d' ' -f1 "$work/cells" | sort -u)
    [[ -n $plots ]] || return 0
    gnuplot <<TEXT
set terminal pngcairo noenhanced size 1500,1050 fontscale 2.2 background 'white'
set linetype 1 linecolor '#0072b2'
set linetype 2 linecolor '#d55e00'
set linetype 3 linecolor '#009e73'
set linetype 4 linecolor '#cc79a7'
set output '$out'
set logscale x 2
set offsets graph 0.05, graph 0.05, 0, 0
set xlabel '$x_name ($held_name = $value)'
set ylabel '$label'
set yrange [0:*]
set key below
set grid
plot $plots
TEXT
    drawn=$((drawn + 1))
}

draw_study() {
    local i
    if ! command -v gnuplot >/dev/null; then
        say "gnuplot is not here (Debian: gnuplot-nox): no plots of the metrics"
        return 0
    fi
    plain_cells >"$work/cells"
    [[ -s $work/cells ]] || return 0
    for i in "${!METRICS[@]}"; do
        draw "${METRICS[i]}" "${LABELS[i]}" 2 MAX_SEQS 3 BATCH_TOKENS
        draw "${METRICS[i]}" "${LABELS[i]}" 3 BATCH_TOKENS 2 MAX_SEQS
    done
}

# ---------------------------------------------------------------- the page's figures

# As root it has no sandbox; the page is our own.
browse() {
    timeout 60 "$browser" --headless --disable-gpu --no-sandbox --hide-scrollbars --user-data-dir="$work/browser" "$@" \
        2>/dev/null
}

# Splits report.html into one page for each figure, and one with all of them that says how high each is.
split_page() {
    awk -v to="$work" '
        /<style/ { styling = 1 }
        styling { style = style $0 "\n" }
        /<\/style>/ { styling = 0 }
        /<figure id="/ {
            match($0, /<figure id="[^"]*"/)
            id = substr($0, RSTART + 12, RLENGTH - 13)
            if (seen[id]++) id = id "-" seen[id]
            print id > (to "/figures")
        }
        id != "" { text[id] = text[id] $0 "\n" }
        id != "" && /<\/figure>/ { order[++n] = id; id = "" }
        END {
            head = "<!doctype html><meta charset=\"utf-8\">" style
            all = ""
            for (i = 1; i <= n; i++) {
                print head "<body style=\"margin:16px\">" text[order[i]] > (to "/" order[i] ".html")
                all = all "<div class=\"one\" data-id=\"" order[i] "\" style=\"overflow:auto\">" text[order[i]] "</div>"
            }
            print head "<body style=\"margin:16px\">" all "<script>document.title=\"heights \"+Array.from(document.querySelectorAll(\".one\"))" \
                ".map(e=>e.dataset.id+\"=\"+Math.ceil(e.getBoundingClientRect().height)).join(\" \")</script>" > (to "/all.html")
        }' "$dir/report.html"
}

draw_page() {
    local word id heights
    browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
    if [[ -z $browser ]]; then
        say "chromium is not here: no pictures of the page's figures"
        return 0
    fi
    split_page
    [[ -s $work/all.html ]] || return 0
    browse "--window-size=$FIGURE_WIDTH,1000" --dump-dom "file://$work/all.html" >"$work/dom" || true
    heights=$(sed -n 's/.*<title>heights \([^<]*\)<.*/\1/p' "$work/dom")
    for word in $heights; do
        id=${word%=*}
        browse "--window-size=$FIGURE_WIDTH,$((${word#*=} + 40))" --force-device-scale-factor=3 \
            "--screenshot=$dir/plots/figure-$id.png" "file://$work/$id.html" >/dev/null || true
        if [[ -s $dir/plots/figure-$id.png ]]; then drawn=$((drawn + 1)); else say "chromium did not draw $id"; fi
    done
}

main() {
    [[ $# == 1 && -f $1/report.html ]] || {
        say "usage: deploy/study_png.sh DIR, with a report.html in it"
        exit 2
    }
    dir=$(realpath -e -- "$1") drawn=0
    work=$(mktemp -d /tmp/conclave-png.XXXXXX)
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    mkdir -p "$dir/plots"
    draw_study
    draw_page
    say "$drawn pictures in $dir/plots"
    ((drawn))
}

main "$@"
