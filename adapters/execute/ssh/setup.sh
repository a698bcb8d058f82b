# Prepares an SSH target: makes the private folder PATH/APP/HOST, puts the agent there, and says what it found.
# Arguments: PATH, APP, HOST, DIGEST of the agent, LOG. The agent's text takes the place of AGENT below.
# Answers after the line `datatask`: `failed WHAT FOLDER`; or `ready BOOT UPTIME FOLDER`, `beside` where there is
# the next folder for another log, PATH/APP~2, `runs` where there are some of LOG, and, where an engine works here or has worked here, `owner LOG EPOCH TOKEN LIVE SECONDS
# HOME` (SECONDS since its last sign of life).
echo datatask
umask 077
fail() {
    echo "failed $*"
    exit 0
}
missing=
for tool in cat chmod env id ls mkdir mkfifo mv rm rmdir sed sleep sort; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done
[ -z "$missing" ] || fail tools$missing
place=$2/$3 digest=$4 mine=${5-}
case $2 in *~[1-9]*) next=${2%~*}~$((${2##*~} + 1)) ;; *) next=$2~2 ;; esac
mkdir -p "$1/$place" 2>/dev/null
cd "$1/$2" 2>/dev/null || fail folder "$1/$2"
base=$(pwd -P)
[ -d "$base/$3" ] || fail folder "$base/$3"
host=$base/$3
set -- $(ls -ldn "$base")
[ "$3" = "$(id -u)" ] || fail foreign "$base"
case $1 in
drwx------*) ;;
*) chmod 700 "$base" || fail foreign "$base" ;;
esac
[ -r /proc/self/stat ] && [ -r /proc/uptime ] || fail proc "$base"
command -v setsid >/dev/null || command -v perl >/dev/null || command -v python3 >/dev/null || fail setsid "$base"
agent=$base/agent-$digest.sh
if [ ! -s "$agent" ]; then
    cat >"$agent.$$" <<'datatask-agent-ends' || fail full "$base"
AGENT
datatask-agent-ends
    mv "$agent.$$" "$agent" || fail full "$base"
fi
{ read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null || boot=unknown
read -r now rest </proc/uptime
echo "ready $boot $now $host"
[ ! -d "${base%/*}/$next" ] || echo beside
for run in "$host/$mine"/[0-9]*; do [ ! -d "$run" ] || { echo runs && break; }; done
[ -f "$host/owner" ] || exit 0
{ read -r log epoch token pid start then_boot && read -r home; } <"$host/owner"
live=no sign=0 stat=
{ read -r stat <"/proc/$pid/stat"; } 2>/dev/null
set -- ${stat##*) }
[ "$boot" = "$then_boot" ] && [ "${20-}" = "$start" ] && live=yes
[ -f "$host/sign" ] && read -r sign <"$host/sign"
echo "owner $log $epoch $token $live $((${now%.*} - ${sign%.*})) $home"
