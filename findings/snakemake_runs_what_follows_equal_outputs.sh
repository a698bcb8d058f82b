#!/bin/sh
# Snakemake: a touched input runs nothing, since its content counts; an intermediate file that is made again with the same content does.
#
# Versions: snakemake 9.27.1.
# What one would guess: small files are compared by checksum, so a rule whose output comes out as it was ends the work there.
# What happens: the checksum spares the touched input. But where a rule runs, all rules behind it are planned with it, before it
# is known what it will write; an output that is equal byte for byte stops nothing.
# What datatask does: what was made of a result is computed again only where the new value differs (`on_change="rerun"`);
# tests/integration/test_staleness.py holds that. `python -m benchmarks.edits` has more such edits.
# Output seen:
#   first: one two
#   touched input: nothing
#   other input, same result of one: one two
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check snakemake==9.27.1
cd "$folder"
cat >Snakefile <<'SNAKEFILE'
rule two:
    input: "one.txt"
    output: "two.txt"
    shell: "cp one.txt two.txt; printf 'two ' >> ran"

rule one:
    input: "input.txt"
    output: "one.txt"
    shell: "tr -d ' ' < input.txt > one.txt; printf 'one ' >> ran"
SNAKEFILE
tried() {
    rm -f ran
    "$folder/venv/bin/snakemake" -q -c1 two >/dev/null 2>&1
    seen=$(cat ran 2>/dev/null || echo 'nothing ')
    echo "$1: ${seen% }"
    [ "${seen% }" = "$2" ]
}
echo 'some words' >input.txt
tried first 'one two'
touch input.txt
tried 'touched input' nothing
echo 'some  words' >input.txt
tried 'other input, same result of one' 'one two'
