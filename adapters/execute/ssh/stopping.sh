# A run's end by force: TERM to its group, KILL to all that it has begun, wherever that went since. A part of the agent.

# stop ID GRACE REASON: TERM to the run's group; after the grace KILL to all of it, and to what descended from it until now, for
# that loses its parents with the TERM. What has ended stays as it is.
stop() {
    await_claim "$1"
    if claim_of "$1" && [ "$claimed_boot" = "$boot" ] && alive "$claimed" "$claimed_start"; then
        echo "$3" >"$dir/$1/stop"
        (
            descend "$claimed"
            [ "$2" = 0 ] || { kill -TERM "-$claimed"; pause "$2"; }
            strike "$claimed" "$claimed_start" "$dir/$1"
        ) </dev/null >/dev/null 2>&1 &
    else
        settle "$1"
    fi
}

# descend PID: adds to family what descends from a process, as PID:START; kernels that do not list children add nothing.
family=''
descend() {
    for child in $(cat "/proc/$1/task/"*/children 2>/dev/null); do
        look_at "$child" && family="$family $child:$start" && descend "$child"
    done
}

# strike PID START FOLDER: KILL to the process, its group, its session, its family, and to what has left all of them.
strike() {
    if alive "$1" "$2"; then
        descend "$1"
        kill -KILL "-$1" 2>/dev/null
        strike_session "$1"
    fi
    for relative in $family; do
        alive "${relative%:*}" "${relative#*:}" && descend "${relative%:*}"
    done
    for relative in $family; do
        alive "${relative%:*}" "${relative#*:}" && kill -KILL "${relative%:*}" 2>/dev/null
    done
    rounds=0 # what is about to be killed may start another one
    while [ $rounds -lt 10 ] && strike_marked "$3"; do rounds=$((rounds + 1)); done
}

strike_session() {
    command -v pkill >/dev/null && { pkill -KILL -s "$1"; return; }
    for process in /proc/[0-9]*; do
        look_at "${process#/proc/}" && [ "$leader" = "$1" ] && [ "$state" != Z ] && kill -KILL "${process#/proc/}" 2>/dev/null
    done
}

# strike_marked FOLDER: KILL to each process that was started with the run's own variable; fails where there is none.
strike_marked() {
    struck=1
    for process in $(grep -lsF "DATATASK_RUN=$1" /proc/[0-9]*/environ 2>/dev/null); do
        { tr '\n\000' '\001\n' <"$process" | grep -qxF "DATATASK_RUN=$1"; } 2>/dev/null || continue
        process=${process#/proc/}
        kill -KILL "${process%/environ}" 2>/dev/null && struck=0
    done
    return $struck
}
