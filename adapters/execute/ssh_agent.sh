# The agent: what datatask runs on an SSH target. It needs a POSIX shell, /proc, and the usual utilities.
#
#   sh agent control BASE LOG EPOCH TOKEN HOME    commands on stdin, answers on stdout, a line each
#   sh agent watch   BASE LOG EPOCH TOKEN         tells the end of each run at once
#   sh agent list    BASE                         lists the runs of every log; sh agent clean BASE LOG/ID... removes runs
#
# A run's folder is BASE/LOG/ID/. What holds across crashes is in files that are made once:
#   asked      the run's task; made before anything of it is started
#   claim      made by the run's own process before it becomes the user's program, or by `settle` so that it never does
#   waiter     the shell that waits for it; it is in no session of the run's
#   ended/ID   (later told/ID) beside the folders: how it ended; comes by a rename
# A process is known by pid, start time (in ticks since boot) and boot id; a pid alone is used again.
set -u
base=$2 log=${3-} epoch=${4-} token=${5-} home=${6-}
dir=$base/$log
mask=$(umask)
umask 077
boot=unknown
{ read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null
for session in setsid perl python3 ''; do
    [ -z "$session" ] || session=$(command -v "$session") && break
done
tries_max=40

# The run's process: claims the run with its own pid, then becomes the program. Arguments: folder, boot id, umask, program.
child='set -C
read -r stat </proc/self/stat && read -r now rest </proc/uptime || exit 125
{ echo "$$ $2 $now ${stat##*) }" >"$1/claim"; } 2>/dev/null || exit 125
umask "$3"; cd "$1/cwd" || exit 125
shift 3; exec "$@"'

# look_at PID: sets state, leader (its session) and start; fails where there is no such process.
look_at() {
    stat=
    { while IFS= read -r part; do stat=$stat$part; done <"/proc/$1/stat"; } 2>/dev/null
    [ -n "$stat" ] || return 1
    set -- ${stat##*) }
    state=$1 leader=$4 start=${20}
}

# alive PID START: whether this very process is there and no zombie.
alive() {
    look_at "$1" && [ "$start" = "$2" ] && [ "$state" != Z ] && [ "$state" != X ]
}

pause() {
    sleep "$1" 2>/dev/null || sleep 1
}

# once FILE TEXT: makes the file unless it is there; the kernel sees to it that one of several succeeds.
once() {
    set -C
    { echo "$2" >"$1"; } 2>/dev/null
    made=$?
    set +C
    return $made
}

# claim_of ID: sets claimed (a pid, or `barred`), claimed_boot, began and claimed_start; fails where nobody has claimed it.
claim_of() {
    line=
    { read -r line <"$dir/$1/claim"; } 2>/dev/null
    [ -n "$line" ] || return 1
    set -- $line
    claimed=$1 claimed_boot=${2-} began=${3-} claimed_start=${23-}
}

# --- starting and ending ----------------------------------------------------------------------------

# launch ID VARIABLES HOW STDIN STDOUT STDERR: starts a run, and the shell that waits for it; returns at once.
launch() {
    (
        id=$1 run=$dir/$1 variables=$2 in=$4 out=$5 err=$6
        read -r self rest </proc/self/stat
        look_at "$self"
        echo "$self $start" >"$run/waiter"
        if [ "$3" = sh ]; then set -- /bin/sh "$run/exe"; else set -- "$run/exe"; fi
        set -- /bin/sh -c "$child" run "$run" "$boot" "$mask" "$@"
        case $session in
        */perl) set -- "$session" -e 'use POSIX; POSIX::setsid(); exec @ARGV; exit 126' "$@" ;;
        */python3) set -- "$session" -c 'import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])' "$@" ;;
        *) set -- "$session" "$@" ;;
        esac
        if [ "$err" = stdout ]; then
            ("$variables"; exec "$@") <"$in" >"$out" 2>&1 &
        else
            ("$variables"; exec "$@") <"$in" >"$out" 2>"$err" &
        fi
        pid=$!
        trap '' HUP INT TERM PIPE
        look_at "$pid"
        read -r began rest </proc/uptime
        echo "started $id $pid $start $boot $began"
        exec >/dev/null
        wait "$pid"
        code=$?
        [ -d "/proc/$pid" ] || kill -KILL "-$pid"
        read -r now rest </proc/uptime
        if ! claim_of "$id"; then
            rm -f "$run/claim"
            once "$run/claim" barred
            claimed=$pid code=unstarted
        fi
        [ "$claimed" = "$pid" ] && record
    ) </dev/null 2>/dev/null &
}

# record: says how the run ended, whole or not at all; on a full disk as soon as there is room.
record() {
    reason=- printed=-
    [ -f "$run/stop" ] && read -r reason <"$run/stop"
    [ -s "$run/stdout" ] && printed=${printed}o
    [ -s "$run/stderr" ] && printed=${printed}e
    until { echo "$pid $start $boot $began $now $code $reason $printed" && times && echo .; } >"$run/end"; do pause 1; done
    until mv "$run/end" "$dir/ended/$id"; do
        [ -d "$run" ] || return
        pause 1
    done
    [ -p "$dir/wake" ] && echo 1<>"$dir/wake"
}

# start ID TASK VARIABLES HOW INTERPRETER STDIN STDOUT STDERR: starts a run, once for ever.
start() {
    owned || { echo "fenced $1"; return; }
    if [ "$5" != - ] && ! { [ -f "$5" ] && [ -x "$5" ]; }; then
        echo "refused $1 interpreter $5"
    elif once "$dir/$1/asked" "$2"; then
        launch "$1" "$3" "$4" "$6" "$7" "$8"
    elif [ ! -s "$dir/$1/asked" ]; then
        rm -f "$dir/$1/asked"
        echo "refused $1 full"
    else
        await_claim "$1"
        settle "$1"
    fi
}

await_claim() {
    tries=0
    while [ -e "$dir/$1/asked" ] && [ ! -s "$dir/$1/claim" ] && [ $tries -lt $tries_max ]; do
        tries=$((tries + 1))
        pause 0.05
    done
}

# stop ID GRACE REASON: TERM to the run's group, KILL to its session after the grace; what has ended stays as it is.
stop() {
    await_claim "$1"
    if claim_of "$1" && [ "$claimed_boot" = "$boot" ] && alive "$claimed" "$claimed_start"; then
        echo "$3" >"$dir/$1/stop"
        if [ "$2" = 0 ]; then
            strike "$claimed" "$claimed_start"
        else
            kill -TERM "-$claimed" 2>/dev/null
            (pause "$2"; strike "$claimed" "$claimed_start") </dev/null >/dev/null 2>&1 &
        fi
    else
        settle "$1"
    fi
}

# strike PID START: KILL to the process, its group and its session.
strike() {
    alive "$1" "$2" || return
    kill -KILL "-$1" 2>/dev/null
    for process in /proc/[0-9]*; do
        look_at "${process#/proc/}" && [ "$leader" = "$1" ] && [ "$state" != Z ] && kill -KILL "${process#/proc/}" 2>/dev/null
    done
}

# --- telling ----------------------------------------------------------------------------------------

# tell FILE: tells a recorded end. Of the two lines of `times`, the second is that of the children.
tell() {
    { read -r facts && read -r cpu && read -r cpu && read -r dot; } 2>/dev/null <"$1" && echo "ended ${1##*/} $facts $cpu"
}

told() {
    { [ -f "$dir/ended/$1" ] && tell "$dir/ended/$1"; } || { [ -f "$dir/told/$1" ] && tell "$dir/told/$1"; }
}

# report ID [changes]: tells what became of a run, or only that it is over; fails where nobody has claimed it.
report() {
    told "$1" && return
    claim_of "$1" || return
    waiter=0 waiter_start=0
    if [ "$claimed" = barred ]; then
        echo "absent $1"
    elif [ "$claimed_boot" != "$boot" ]; then
        echo "vanished $1 restarted"
    elif alive "$claimed" "$claimed_start" || {
        [ -f "$dir/$1/waiter" ] && read -r waiter waiter_start <"$dir/$1/waiter" && alive "$waiter" "$waiter_start"
    }; then
        [ "${2-}" ] || echo "running $1 $claimed $claimed_start $boot $began"
    else
        told "$1" || echo "vanished $1 unwatched"
    fi
}

# settle ID: tells what became of a run; one that nobody has started is barred from ever starting.
settle() {
    report "$1" && return
    for other in "${base%/*}"/*/"$log/$1/asked"; do
        [ -e "$other" ] && [ "$other" != "$dir/$1/asked" ] && { echo "elsewhere $1"; return; }
    done
    [ -d "$dir/$1" ] || mkdir -p "$dir/$1" 2>/dev/null || { echo "blocked $1"; return; }
    tries=0
    until once "$dir/$1/claim" barred || claim_of "$1" || [ $tries -ge $tries_max ]; do
        tries=$((tries + 1)) # made, not yet written; one that stays empty bars the run as well
        pause 0.05
    done
    report "$1" || echo "absent $1"
}

# check ID...: tells which of these runs are over, should their end have been missed.
check() {
    for id; do report "$id" changes || settle "$id"; done
}

# --- keeping the place tidy -------------------------------------------------------------------------

forget() {
    for id; do
        shift
        set -- "$@" "$dir/$id" "$dir/ended/$id" "$dir/told/$id"
    done
    rm -rf -- "$@" >/dev/null 2>&1 &
}

# sweep TASK ID...: removes what earlier engines of this log left of a task, but for these runs, which are open.
sweep() {
    task=$1
    shift
    keep=" $* "
    for run in "$dir/$log".*; do
        id=${run##*/} asked=
        number=${id#"$log".}
        case $keep in *" $id "*) continue ;; esac
        [ -d "$run" ] && [ "${number%%.*}" -lt "$epoch" ] || continue
        { read -r asked <"$run/asked"; } 2>/dev/null
        [ "$asked" = "$task" ] || continue
        if claim_of "$id" && [ "$claimed_boot" = "$boot" ] && alive "$claimed" "$claimed_start"; then
            stop "$id" 0 cancelled
        else
            forget "$id"
        fi
    done
}

owned() {
    owner_token=
    { read -r owner_log owner_epoch owner_token rest <"$base/owner"; } 2>/dev/null
    [ "$owner_token" = "$token" ]
}

# --- modes ------------------------------------------------------------------------------------------

take_over() {
    mkdir -p "$dir/ended" "$dir/told" || exit
    look_at $$
    printf '%s\n' "$log $epoch $token $$ $start $boot" "$home" >"$base/owner.$$" && mv "$base/owner.$$" "$base/owner" || exit
    names=$(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p' | sort -u)
}

# variables KEY LINES: reads so many lines of assignments; starts refer to them by the key. Nothing is written down.
variables() {
    lines=$2 text=
    while [ "$lines" -gt 0 ] && IFS= read -r part; do
        text="$text$part
"
        lines=$((lines - 1))
    done
    eval "variables_$1() { unset $(echo $names)
$text}"
}

obey() {
    while read -r verb one rest; do
        case $verb in
        start) start "$one" $rest ;;
        settle | stop | check | forget | sweep | variables) "$verb" "$one" $rest ;;
        ping) read -r now rest </proc/uptime; echo "$now" >"$base/sign"; echo "pong $one $now" ;;
        esac
    done
    owned && [ -p "$dir/wake" ] && echo leave 1<>"$dir/wake"
}

watch() {
    mkfifo "$dir/wake.$$" || exit
    [ -p "$dir/wake" ] && echo 1<>"$dir/wake" # an earlier watcher sees that it is not wanted any more
    mv "$dir/wake.$$" "$dir/wake" || exit
    exec 3<>"$dir/wake"
    echo watching
    said=
    while [ "$said" != leave ] && owned; do
        count=0
        set --
        for file in "$dir/ended"/*; do
            [ -f "$file" ] && tell "$file" && set -- "$@" "$file"
            count=$((count + 1))
            [ $count -ge 500 ] && break
        done
        [ $# -gt 0 ] && mv "$@" "$dir/told/"
        [ $count -ge 500 ] || read -r said <&3
    done
}

# list: a line for each run of each log: log, id, what it is, since when its folder is.
list() {
    for dir in "$base"/*; do
        log=${dir##*/}
        for run in "$dir/$log".*; do
            [ -d "$run" ] || continue
            id=${run##*/}
            report "$id" || echo "unclaimed $id"
        done
    done
}

# clean LOG/ID...: ends what runs of these and removes them.
clean() {
    for name; do
        log=${name%%/*} dir=$base/${name%%/*}
        id=${name#*/}
        if claim_of "$id" && [ "$claimed_boot" = "$boot" ]; then strike "$claimed" "$claimed_start"; fi
        rm -rf -- "$dir/$id" "$dir/ended/$id" "$dir/told/$id" && echo "removed $id"
        rmdir "$dir/ended" "$dir/told" 2>/dev/null
    done
}

case $1 in
control)
    take_over
    echo "controls $$"
    obey
    ;;
watch) watch ;;
list) list ;;
clean)
    shift 2
    clean "$@"
    ;;
esac
