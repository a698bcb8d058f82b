# The agent: what datatask runs on an SSH target. It needs a POSIX shell, /proc, and the usual utilities.
#
#   sh agent control BASE LOG EPOCH TOKEN HOME    commands on stdin, answers on stdout, a line each
#   sh agent watch   BASE LOG EPOCH TOKEN         tells the end of each run at once
#   sh agent list    BASE                         lists the runs of every log; sh agent clean BASE LOG/ID... removes runs
#
# A run's folder is BASE/LOG/ID/, where ID is epoch.position. What holds across crashes is in files that are made once:
#   asked      the run's task; made before anything of it is started
#   claim      made by the run's own process before it becomes the user's program, or by `settle` so that it never does;
#              says who it is, and which shell waits for it, in no session of the run's
#   ID         how it ended, written over room that was taken at the start; whole with its last character
#   ended/ID   beside the folders: the same, renamed by who tells it, many at once; on the disk before it is told
# A process is known by pid, start time (in ticks since boot) and boot id; a pid alone is used again.
# On the target this is one file, with those that are named by `joined here` in their places.
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

# look_at PID: sets state, parent, leader (its session) and start; fails where there is no such process.
look_at() {
    stat=
    { while IFS= read -r part; do stat=$stat$part; done <"/proc/$1/stat"; } 2>/dev/null
    [ -n "$stat" ] || return 1
    self=${stat%% *}
    set -- ${stat##*) }
    state=$1 parent=$2 leader=$4 start=${20}
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

# claim_of ID: sets claimed (a pid, or `barred`), claimed_boot, claimed_start and waiter; fails where nobody has claimed it.
claim_of() {
    line=
    { read -r line <"$dir/$1/claim"; } 2>/dev/null
    [ -n "$line" ] || return 1
    set -- $line
    claimed=$1 claimed_boot=${2-} claimed_start=${3-} waiter=${4-}
}

# joined here: programs.sh

# --- starting and ending ----------------------------------------------------------------------------

# launch ID VARIABLES STREAMS INTERPRETER ARGUMENT: starts a run, and the shell that waits for it; returns at
# once. A script is handed to its interpreter as the kernel does it; without one, exe is a program.
launch() {
    (
        id=$1 run=$dir/$1 place=$dir/$1 variables=$2 in=/dev/null out=/dev/null err=/dev/null
        cd "$run" && run=. dir=.. # the same, should a folder above be renamed
        trap 'once "$run/claim" "barred $token" && echo "refused $id busy"' EXIT # where no process can be had, a shell ends
        case $3 in *i*) in=$run/stdin ;; esac
        case $3 in *o*) out=$run/stdout ;; esac
        case $3 in *e*) err=$run/stderr ;; esac
        merged=$3
        if [ "$4" = '' ]; then set -- "$place/exe"; elif [ "$5" = '' ]; then set -- "$4" "$place/exe"; else set -- "$4" "$5" "$place/exe"; fi
        case $session in
        */perl) set -- "$session" -e 'use POSIX; POSIX::setsid(); exec @ARGV; exit 126' "$@" ;;
        */python3) set -- "$session" -c 'import os, sys; os.setsid(); os.execv(sys.argv[1], sys.argv[1:])' "$@" ;;
        *) set -- "$session" "$@" ;;
        esac
        true >"$out" && true >"$err" && exec 6>"$out" 7>"$err" # held until the end, whatever becomes of their names
        case $merged in *[oe]*) [ ! -p "$dir/cuts" ] || ! look_at self || echo "$id $self" 1<>"$dir/cuts" ;; esac
        case $merged in
        *m*) (become "$place" "$@") 3>&1 <"$in" >&6 2>&6 6>&- 7>&- & ;;
        *) (become "$place" "$@") 3>&1 <"$in" >&6 2>&7 6>&- 7>&- & ;;
        esac
        pid=$!
        trap - EXIT
        trap '' HUP INT TERM PIPE
        exec >/dev/null
        wait "$pid"
        code=$?
        [ -d "/proc/$pid" ] || kill -KILL "-$pid"
        read -r now rest </proc/uptime
        if ! claim_of "$id"; then
            rm -f "$run/claim"
            once "$run/claim" barred
            claimed=$pid claimed_start=0 code=unstarted
        fi
        [ "$claimed" = "$pid" ] && record
    ) </dev/null 2>/dev/null &
}

# become FOLDER PROGRAM...: claims the run with this very process, says so, and becomes the program, in a session of its own.
become() {
    look_at self && once "$run/claim" "$self $boot $start $parent" || exit 125
    trap '' PIPE # nobody may listen any more
    { echo "started $id $self $start $boot" >&3; } 2>/dev/null
    trap - PIPE
    cd "$run/cwd" && run=.. && umask "$mask" || exit 125
    exec 3>&-
    "$variables"
    export "DATATASK_RUN=$1" # what it starts is known by this wherever it goes; variables may have any name but this
    shift
    exec "$@"
}

# record: says how the run ended, whole or not at all. There is room for it since the start, should the disk be full.
record() {
    reason=- printed=-
    [ -f "$run/stop" ] && read -r reason <"$run/stop"
    case $merged in *o*) note stdout 6 ;; esac
    case $merged in *e*) note stderr 7 ;; esac
    case $merged in *[oe]*) has_room "$run/room" || printed=${printed}full=1, ;; esac
    case $merged in *c*) unconfine ;; esac
    case $code in 137) killed_before=$kills && count_kills && [ "$kills" -gt "$killed_before" ] && printed=${printed}killed=1, ;; esac
    [ ! -e "$run/unconfined" ] || code=unstarted
    until { echo "$pid $claimed_start $boot $now $code $reason $printed" && times && echo .; } 1<>"$run/$id"; do
        [ -e "$run/asked" ] || return # nobody wants to know
        pause 1
    done
    [ -p "$dir/wake" ] && echo "$id" 1<>"$dir/wake"
}

# has_room FILE: whether the disk takes another block. On a full one a script may have written less than it wanted, and not have looked.
has_room() {
    printf '%4096s' '' >"$1"
} 2>/dev/null

# note NAME DESCRIPTOR: adds to printed how long an output is, its checksum, and what is wrong with it: how much was written to one that
# was cut. One whose name leads to something else by now is copied from the descriptor, which the process shared; or it is gone.
note() {
    if ! [ "$run/$1" -ef "/proc/self/fd/$2" ]; then
        rm -rf "$run/$1"
        cat "/proc/self/fd/$2" >"$run/$1" || printed=${printed}$1_gone=1,
    fi
    name=$1 size=0 written=0
    while read -r key number; do [ "$key" != pos: ] || written=$number; done <"/proc/self/fdinfo/$2"
    if [ -s "$run/$1" ]; then
        set -- $(cksum <"$run/$1" || sha256sum <"$run/$1")
        case ${2-} in
        '' | -) sum=${1-} && set -- $(ls -lnd "$run/$name") && set -- "$sum" "${5:-0}" ;; # there is no cksum
        esac
        size=$2 printed=$printed$name=$2,${1:+${name}_sum=$1,}
    fi
    [ "$size" -lt "$written" ] || { written=; [ ! -s "$run/cut.$name" ] || read -r written <"$run/cut.$name"; }
    [ -z "$written" ] || printed=${printed}${name}_written=$written,
}

# count_kills: sets kills, how many processes the kernel has killed for lack of memory since it started, in any group.
count_kills() {
    kills=0
    { while read -r part number; do [ "$part" != oom_kill ] || kills=$number; done </proc/vmstat; } 2>/dev/null
}

# start ID TASK VARIABLES STREAMS LINES: starts a run, once for ever. STREAMS are - and, where there are such, i (stdin), o
# (stdout), e (stderr), m (stderr goes to stdout), c (control groups), a (begin what was refused and barred), n (the script has no newline at its end). After it come a line with the interpreter,
# one with its argument, and the LINES of the script, if it is not in its folder already.
start() {
    interpreter='' argument='' script='' left=$5
    IFS= read -r interpreter && IFS= read -r argument || exit
    while [ "$left" -gt 0 ]; do
        IFS= read -r part || exit
        script="$script$part
"
        left=$((left - 1))
    done
    case $4 in *n*) script=${script%?} ;; esac
    case $4 in *a*) owned && unbar "$1" ;; esac
    if ! owned; then
        echo "fenced $1"
    elif [ "$interpreter" ] && ! executable "$interpreter"; then
        echo "refused $1 interpreter $interpreter"
    elif case $4 in *c*) ! find_groups /proc/self/mountinfo /proc/self/cgroup ;; *) false ;; esac; then
        echo "refused $1 enforce $lacking"
    elif [ ! -e "$dir/$1/claim" ] && { [ -d "$dir/$1" ] || mkdir -p "$dir/$1/cwd"; } 2>/dev/null && once "$dir/$1/asked" "$2"; then
        if { { [ "$5" = 0 ] || printf %s "$script" >"$dir/$1/exe"; } && printf '%600s' '' >"$dir/$1/$1"; } 2>/dev/null; then
            launch "$1" "$3" "$4" "$interpreter" "$argument"
        else
            give_up "$1"
        fi
    elif [ ! -e "$dir/$1/claim" ] && [ ! -s "$dir/$1/asked" ]; then
        give_up "$1"
    else
        await_claim "$1" # a start that was cut off makes none
        if once "$dir/$1/claim" "barred $token" || ours "$1"; then echo "refused $1 busy"; else settle "$1"; fi
    fi
}

# give_up ID: nothing can be written, and nothing was begun: it may be asked for again.
give_up() {
    rm -f "$dir/$1/asked"
    echo "refused $1 full"
}

# unbar ID: has a run begin that this engine has barred, since its start was refused; what recovery has barred stays so.
unbar() {
    if ours "$1"; then rm -f "$dir/$1/claim" "$dir/$1/asked"; fi
}

ours() {
    claim_of "$1" && [ "$claimed" = barred ] && [ "$claimed_boot" = "$token" ]
}

await_claim() {
    tries=0
    while [ -e "$dir/$1/asked" ] && [ ! -s "$dir/$1/claim" ] && [ $tries -lt $tries_max ]; do
        tries=$((tries + 1))
        pause 0.05
    done
}

# joined here: cuts.sh
# joined here: stopping.sh
# joined here: groups.sh

# --- telling ----------------------------------------------------------------------------------------

# tell ID FILE: tells a recorded end. Of the two lines of `times`, the second is that of the children.
tell() {
    whole "$2" && echo "ended $1 $facts $cpu"
}

whole() {
    { read -r facts && read -r cpu && read -r cpu && read -r dot && [ "$dot" = . ]; } 2>/dev/null <"$1"
}

# told ID: tells the run's end, if it is there; one that is whole counts before it has been renamed.
told() {
    for file in "$dir/ended/$1" "$dir/$1/$1" "$dir/ended/$1"; do
        [ -f "$file" ] && "$telling" "$1" "$file" && return
    done
    return 1
}
telling=tell

# hand_on ID FILE: has the watcher tell it, which secures many at once.
hand_on() {
    whole "$2" || return
    if [ -p "$dir/wake" ]; then
        echo "$1" 1<>"$dir/wake"
    else
        flush "$1"
        tell "$@"
    fi
}

# flush ID...: renames the records of these runs and has the disk take them. One that cannot be renamed counts where it is.
flush() {
    ended=$* fresh=
    for id; do [ ! -f "$dir/$id/$id" ] || fresh="$fresh $id"; done
    set --
    for id in $fresh; do set -- "$@" "$dir/$id/$id"; done
    [ $# = 0 ] || mv -f "$@" "$dir/ended/"
    set -- "$dir/ended"
    for id in $ended; do
        if [ -f "$dir/$id/$id" ]; then
            set -- "$dir/$id/$id" "$dir/$id" "$dir" "$@"
        elif [ -f "$dir/ended/$id" ]; then
            set -- "$dir/ended/$id" "$@"
        fi
    done
    [ "$syncs" = files ] && [ $# -le 100 ] && sync "$@" || sync
} </dev/null >/dev/null 2>&1

# secure: hands all ends that wait to the process that flushes, unless it is at work; it says `synced` when it is done.
secure() {
    if [ "$covered" ]; then
        echo || exit # who flushes is gone: the engine begins anew
    elif [ "$waiting" ]; then
        covered=$waiting waiting=
        echo "$covered" || exit
    fi
}

# flushing: flushes what it reads, a line of names at a time.
flushing() {
    while read -r names; do
        [ -z "$names" ] || { flush $names; echo synced >&3; }
    done
}

# report ID [changes]: tells what became of a run, or only that it is over; fails where nobody has claimed it.
report() {
    told "$1" && return
    claim_of "$1" || return
    if [ "$claimed" = barred ]; then
        echo "absent $1"
    elif [ "$claimed_boot" != "$boot" ]; then
        echo "vanished $1 restarted"
    elif alive "$claimed" "$claimed_start" || awaited; then
        [ "${2-}" ] || echo "running $1 $claimed $claimed_start $boot"
    else
        told "$1" || echo "vanished $1 unwatched"
    fi
}

# awaited: whether the shell that waits for the run is still there: it began before the run did, unlike one that got its
# pid later.
awaited() {
    look_at "$waiter" && [ "$start" -le "$claimed_start" ] && [ "$state" != Z ] && [ "$state" != X ]
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
    groups=
    for home in $homes; do # those whose waiting shell was killed
        for id; do [ ! -d "$home/$log.$id" ] || groups="$groups $home/$log.$id"; done
    done
    [ -z "$groups" ] || rmdir $groups 2>/dev/null
    for id; do
        shift
        set -- "$@" "$dir/$id" "$dir/ended/$id"
    done
    rm -rf -- "$@" >/dev/null 2>&1 &
}

# sweep TASK ID...: removes what earlier engines of this log left of a task, but for these runs, which are open.
sweep() {
    task=$1
    shift
    keep=" $* "
    for run in "$dir"/[0-9]*; do
        id=${run##*/} asked=
        case $keep in *" $id "*) continue ;; esac
        [ -d "$run" ] && [ "${id%%.*}" -lt "$epoch" ] || continue
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

# ready_to_sync: some can sync the files that are named, others sync everything.
ready_to_sync() {
    syncs=all
    sync "$dir/ended" "$dir" "$base" >/dev/null 2>&1 && syncs=files
}

take_over() {
    mkdir -p "$dir/ended" || exit
    chattr +T "$dir" 2>/dev/null # on ext4 new folders lie far apart, and are made in a third of the time
    ready_to_sync
    look_at $$
    printf '%s\n' "$log $epoch $token $$ $start $boot" "$home" >"$base/owner.$$" && mv "$base/owner.$$" "$base/owner" || exit
    read -r now rest </proc/uptime
    echo "$now" >"$base/sign"
    telling=hand_on
    watch_cuts
    count_kills
    names=$(env | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p' | sort -u)
}

# variables KEY LINES: reads so many lines, such as assignments and `unset $names`; starts refer to them by the key. Nothing is written down.
variables() {
    lines=$2 text=
    while [ "$lines" -gt 0 ] && IFS= read -r part; do
        text="$text$part
"
        lines=$((lines - 1))
    done
    eval "variables_$1() {
$text}"
}

obey() {
    while read -r verb one rest; do
        case $verb in
        start) start "$one" $rest ;;
        settle | stop | check | forget | sweep | variables) "$verb" "$one" $rest ;;
        ping) read -r now rest </proc/uptime; echo "$now" >"$base/sign"; echo "pong $one $now"; count_kills ;;
        esac
    done
    owned && [ -p "$dir/wake" ] && echo leave 1<>"$dir/wake"
}

# Waiting shells write a run's name into `wake`. They open it to read as well, so that they never wait for a reader.
watch() {
    ready_to_sync
    mkfifo "$dir/wake.$$" || exit
    [ -p "$dir/wake" ] && echo 1<>"$dir/wake" # an earlier watcher sees that it is not wanted any more
    mv "$dir/wake.$$" "$dir/wake" || exit
    exec 3<>"$dir/wake" 4>&1
    echo watching
    listen | { (flushing); echo leave >&3; } # should it be killed, the engine sees the channel end and begins anew
}

# listen: tells each end when it is flushed; what is to be flushed goes to stdout, what is told to 4.
listen() {
    covered='' waiting=''
    for run in "$dir/ended"/* "$dir"/[0-9]*; do
        id=${run##*/}
        { [ -f "$run" ] || whole "$run/$id"; } && waiting="$waiting $id"
    done
    secure
    while read -r said <&3 && [ "$said" != leave ] && owned; do
        if [ "$said" = synced ]; then
            for id in $covered; do told "$id"; done >&4
            covered=
        else
            waiting="$waiting $said"
        fi
        secure
    done
}

# find_marked: sets marked, the runs as LOG/ID that processes here were started by, wherever these are by now.
find_marked() {
    marked=' '
    for process in $(grep -lsF "DATATASK_RUN=$base/" /proc/[0-9]*/environ 2>/dev/null); do
        run=$({ tr '\n\000' '\001\n' <"$process" | sed -n 's/^DATATASK_RUN=//p'; } 2>/dev/null)
        name=${run#"$base"/}
        case ${name%%/*} in *[!0-9a-f]* | '') continue ;; esac
        case ${name#*/} in *[!0-9.]* | '') continue ;; [0-9]*.*[0-9]) ;; *) continue ;; esac
        case $marked in *" $name "*) ;; *) marked="$marked$name " ;; esac
    done
}

# list: a line for each run of each log: LOG and what would be reported of it. One that is over but has left a process runs.
list() {
    find_marked
    for dir in "$base"/*; do
        for run in "$dir"/[0-9]*; do
            [ -d "$run" ] || continue
            id=${run##*/} log=${dir##*/}
            case $marked in *" $log/$id "*) continue ;; esac
            echo "$log $(report "$id" || echo "unclaimed $id")"
        done
    done
    for name in $marked; do echo "${name%/*} running ${name#*/}"; done
}

# clean LOG/ID...: ends what runs of these and removes them. A run that nobody has claimed is barred first.
clean() {
    for name; do
        id=${name#*/} dir=$base/${name%%/*}
        [ ! -d "$dir/$id" ] || once "$dir/$id/claim" barred
        if claim_of "$id" && [ "$claimed_boot" = "$boot" ]; then
            strike "$claimed" "$claimed_start" "$dir/$id"
        else
            strike barred 0 "$dir/$id" # what it has left, should its folder be gone
        fi
        for group in $(find /sys/fs/cgroup -type d -path "*/datatask/${name%%/*}.$id" 2>/dev/null); do dissolve "$group"; done
        rm -rf -- "$dir/$id" && rm -f -- "$dir/ended/$id" && echo "removed $name"
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
groups) find_groups "$3" "$4" && echo "$homes" || echo "lacks $lacking" ;; # where they would be made, by these tables
clean)
    shift 2
    clean "$@"
    ;;
esac
