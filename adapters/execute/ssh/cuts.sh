# Outputs that are emptied while their process writes on, which hides it: where there is python3, a process of it is told by inotify. A part
# of the agent. In: runs and the shells that wait for them, which have the outputs open as 6 and 7, from the pipe `cuts` (`ID WAITER`) and
# from claims. Out: how much had been written to an output that was shorter when somebody else closed it, or every 2 s, in the run's `cut.stdout` or
# `cut.stderr`. One process a log; it ends when no engine is there and nothing is watched.

# watch_cuts: begins that, unless it is done already.
watch_cuts() {
    (trap '' HUP INT PIPE && exec python3 -I -S -c "$cutting" "$dir") </dev/null >/dev/null 2>&1 &
}

cutting='
import ctypes, fcntl, os, select, stat, struct, sys, time

CLOSED, GONE, STREAMS = 0x8, 0x8000, (("stdout", "6"), ("stderr", "7"))
os.chdir(sys.argv[1])
lock = os.open("cuts.lock", os.O_RDWR | os.O_CREAT, 0o600)
for rest in (1, 1, 0):
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except OSError:
        rest or sys.exit()
        time.sleep(rest)
libc = ctypes.CDLL(None)
notices = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
notices >= 0 or sys.exit()
os.path.exists("cuts") or os.mkfifo("cuts", 0o600)
told = os.open("cuts", os.O_RDWR | os.O_NONBLOCK)
watched, most = {}, {}


def is_there(run, name, path):
    try:
        return os.readlink(path).replace(" (deleted)", "").endswith("/%s/%s" % (run, name))
    except OSError:
        return False


def watch(run, waiter):
    for name, number in STREAMS:
        path = "/proc/%s/fd/%s" % (waiter, number)
        try:
            regular = is_there(run, name, path) and stat.S_ISREG(os.stat(path).st_mode)
        except OSError:
            continue
        key = libc.inotify_add_watch(notices, path.encode(), CLOSED) if regular else -1
        if key >= 0:
            watched[key] = run, name, path


def look(key):
    run, name, path = watched[key]
    try:
        with open(path.replace("/fd/", "/fdinfo/")) as file:
            written = int(file.readline().split()[1])
        there = os.stat(path).st_size  # asked last: it grows meanwhile. Nothing is held open here, or what is removed would stay on the disk
        written = max(written, most.get(key, 0))  # whoever opened it anew has an offset of its own
        most[key] = max(there, most.get(key, 0))
        if is_there(run, name, path) and written > there:
            with open("%s/cut.%s" % (run, name), "x") as file:
                file.write("%d\n" % written)
    except (OSError, ValueError, IndexError):
        pass


def forget(key):
    libc.inotify_rm_watch(notices, key)
    watched.pop(key)
    most.pop(key, None)


def is_wanted():
    try:
        with open("../owner") as file:
            return os.path.exists("/proc/" + file.readline().split()[3])
    except (OSError, IndexError):
        return False


def sweep():
    for key in list(watched):
        if is_there(*watched[key]):
            look(key)
        else:
            forget(key)
    there = set(os.listdir("."))
    seen.intersection_update(there)
    for run in there - seen:
        try:
            with open(run + "/claim") as file:
                words = file.readline().split()
        except OSError:
            continue
        words and seen.add(run)
        len(words) > 3 and watch(run, words[3])


said, seen = "", set()
sweep()
swept = time.monotonic()
while watched or is_wanted():
    ready = select.select([told, notices], [], [], 2)[0]
    if told in ready:
        *lines, said = (said + os.read(told, 65536).decode()).split("\n")
        for words in map(str.split, lines):
            len(words) == 2 and watch(*words)
    if notices in ready:
        data = os.read(notices, 65536)
        while data:
            key, mask, _, length = struct.unpack_from("iIII", data)
            data = data[16 + length :]
            if key in watched and mask & GONE:
                forget(key)
            elif key in watched and mask & CLOSED:
                look(key)
    if time.monotonic() > swept + 2:
        sweep()
        swept = time.monotonic()
'
