#!/bin/sh
# Linux: `> /dev/stderr` in a script empties the file that its standard error goes to.
#
# Versions: Linux 6 (a shell is enough: dash 0.5.12, bash 5.2).
# What one would guess: `echo text > /dev/stderr` adds to standard error, as `echo text >&2` does.
# What happens: /dev/stderr leads to /proc/self/fd/2, and to open that is to open the file itself anew: O_TRUNC empties it, and the
# new descriptor begins at offset 0. What was there is gone; what the first descriptor writes afterwards goes where it left off, over
# the new text or behind a hole of zeros. With a terminal or a pipe it is harmless, so it shows first where output goes to a file.
# `>> /dev/stderr` is harmless. A script can lose its own messages this way without any error.
# What datatask does: an output that was emptied while its run went on fails the run by name, rather than to
# keep a part as if it were all. tests/integration/test_ssh_disturbed.py and test_local_outputs.py hold it.
# Output seen, of "first" by >&2, "second" by > or >> /dev/stderr, "third" by >&2:
#   dash: with >: secondthird
#   dash: with >>: first second third
#   bash: with >: secondthird
#   bash: with >>: first second third
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for shell in dash bash; do
    command -v "$shell" >/dev/null || continue
    "$shell" -c 'echo first >&2; echo second > /dev/stderr; echo third >&2' 2>"$folder/cut"
    "$shell" -c 'echo first >&2; echo second >> /dev/stderr; echo third >&2' 2>>"$folder/whole"
    echo "$shell: with >: $(tr '\000\n' '0 ' <"$folder/cut")"
    echo "$shell: with >>: $(tr '\n' ' ' <"$folder/whole")"
    ! grep -q first "$folder/cut"
    grep -q first "$folder/whole" && grep -q second "$folder/whole" && grep -q third "$folder/whole"
    rm "$folder/whole"
done
