# Control groups of runs whose resources the kernel enforces: where they can be made, entered, asked and removed. A part of the agent.
# In: $log, and $id of a run. Out: homes; a process in its run's groups; what they have used, in printed.

# find_groups MOUNTINFO CGROUP: sets homes, the groups below which those of runs are made: one for version 2, one for cpu and one for
# memory in version 1. Fails with lacking, what is missing here.
homes=''
find_groups() {
    [ -z "$homes" ] || return 0
    unified='' cpu_at='' memory_at=''
    while read -r part part part part point rest; do
        case $rest in
        *' - cgroup2 '*) unified=$point ;;
        *' - cgroup '*)
            case ,${rest##* }, in *,cpu,*) cpu_at=$point ;; esac
            case ,${rest##* }, in *,memory,*) memory_at=$point ;; esac
            ;;
        esac
    done <"$1"
    offered=
    [ -z "$unified" ] || { read -r offered <"$unified/cgroup.controllers"; } 2>/dev/null
    if has_both "$offered"; then
        home_below "$unified" '' "$2" && homes=$home
    elif [ "$cpu_at" ] && [ "$memory_at" ]; then
        home_below "$cpu_at" cpu "$2" && cpu_home=$home && home_below "$memory_at" memory "$2" && homes="$cpu_home $home"
    else
        lacking="its kernel has no control groups for cpu and memory"
    fi
    [ "$homes" ]
}

has_both() {
    case " $1 " in *' cpu '*) case " $1 " in *' memory '*) return 0 ;; esac ;; esac
    return 1
}

# home_below ROOT CONTROLLER CGROUP: sets home, in the nearest group from our own upwards that is ours to write.
home_below() {
    above=$1
    while IFS=: read -r number part own; do
        case ,$part, in *",$2,"*) [ "$own" = / ] || above=$1$own ;; esac
    done <"$3"
    lacking="no control group in $above or above it is this user's to write"
    while :; do
        if [ -w "$above" ] && [ -w "$above/cgroup.procs" ]; then
            handed='cpu memory'
            [ "$2" ] || { read -r handed <"$above/cgroup.subtree_control"; } 2>/dev/null
            home=$above/datatask
            if ! has_both "$handed"; then
                lacking="$above does not hand cpu and memory down to the groups in it"
            elif mkdir -p "$home" && { [ "$2" ] || echo '+cpu +memory' >"$home/cgroup.subtree_control"; }; then
                return 0
            fi 2>/dev/null
        fi
        [ "$above" != "$1" ] || return 1
        above=${above%/*}
    done
}

# confine QUOTA MEMORY: puts this very process into groups of its run: so many microseconds in 100000, so many bytes; 0 is no bound.
confine() {
    for home in $homes; do
        group=$home/$log.$id
        mkdir -p "$group" || return
        if [ -e "$group/cpu.max" ]; then
            [ "$1" = 0 ] || echo "$1 100000" >"$group/cpu.max" || return
        elif [ -e "$group/cpu.cfs_quota_us" ]; then
            [ "$1" = 0 ] || { echo 100000 >"$group/cpu.cfs_period_us" && echo "$1" >"$group/cpu.cfs_quota_us"; } || return
        fi
        if [ "$2" != 0 ]; then
            for file in memory.max memory.limit_in_bytes; do
                [ ! -e "$group/$file" ] || echo "$2" >"$group/$file" || return
            done
            [ ! -e "$group/memory.swap.max" ] || echo 0 >"$group/memory.swap.max"
            [ ! -e "$group/memory.oom.group" ] || echo 1 >"$group/memory.oom.group"
            [ ! -e "$group/memory.memsw.limit_in_bytes" ] || echo "$2" >"$group/memory.memsw.limit_in_bytes"
        fi
        echo "$self" >"$group/cgroup.procs" || return
    done 2>/dev/null
}

# unconfine: notes what the run's groups have used and whether the kernel killed in them, kills what is left there, and removes them.
unconfine() {
    for home in $homes; do
        group=$home/$log.$id
        for file in memory.peak memory.max_usage_in_bytes; do
            [ -r "$group/$file" ] && read -r part <"$group/$file" && printed=${printed}peak=$part,
        done
        for file in memory.events memory.oom_control; do
            [ -r "$group/$file" ] || continue
            while read -r part number; do
                [ "$part" = oom_kill ] && printed=${printed}oom=$number,
            done <"$group/$file"
        done
        dissolve "$group"
    done 2>/dev/null
}

# dissolve GROUP: kills what is left in a control group, and removes it.
dissolve() {
    tries=0
    while [ -d "$1" ] && [ $tries -lt 20 ]; do
        while read -r part; do kill -KILL "$part"; done <"$1/cgroup.procs"
        rmdir "$1" || pause 0.05
        tries=$((tries + 1))
    done 2>/dev/null
}
