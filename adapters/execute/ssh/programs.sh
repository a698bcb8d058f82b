# Which programs the kernel here can execute. A part of the agent.

# executable FILE: whether the kernel can execute it, as far as its first bytes tell; a shell that is asked to execute what the
# kernel cannot would interpret it instead. What has passed is only looked for again.
passed=' '
executable() {
    [ -f "$1" ] && [ -x "$1" ] || return 1
    case $passed in *" $1 "*) return ;; esac
    file=$1 scripts=0
    while head=$(head_of "$file") && [ "${head#2321}" != "$head" ]; do # a script: what interprets that one counts
        IFS= read -r part <"$file"
        part=${part#'#!'}
        part=${part#"${part%%[! 	]*}"}
        file=${part%%[ 	]*} scripts=$((scripts + 1))
        [ $scripts -lt 5 ] && [ -f "$file" ] && [ -x "$file" ] || return 1
    done
    ours=$(head_of "/proc/$$/exe")
    case $head,$ours in
    ,* | *,) ;; # it cannot be read
    7f454c46*0300,*3e00 | 7f454c46*2800,*b700) ;; # 32 bits on 64
    7f454c46*"${ours#"${ours%????}"},"*) ;;
    *) others_handled || return 1 ;;
    esac
    passed="$passed$1 "
}

# head_of FILE: its first 20 bytes in hexadecimal; the last two of a program say which processor it is for.
head_of() {
    od -An -tx1 -N20 "$1" 2>/dev/null | tr -d ' \n'
}

# others_handled: whether the kernel was told of further kinds of programs, as those of other processors.
others_handled() {
    for file in /proc/sys/fs/binfmt_misc/*; do
        case ${file##*/} in register | status | '*') ;; *) return 0 ;; esac
    done
    return 1
}
