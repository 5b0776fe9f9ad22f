# Sourced by the scripts beside it: processes of a cluster are only ever addressed by recorded pid and start time.
# shellcheck shell=bash

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The state letter and the start time of a process; nothing if it is gone.
process_status() {
    # The name in parentheses may hold blanks: count fields after it.
    sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '{print $1, $20}'
}

# Whether the process in a "pid start-time" file runs; prints its pid.
recorded_pid() {
    local pid started state now
    [ -r "$1" ] && read -r pid started <"$1" || return 1
    read -r state now <<<"$(process_status "$pid")"
    [ -n "$state" ] && [ "$state" != Z ] && [ "$now" = "$started" ] && echo "$pid"
}

# Write "pid start-time" of a process.
record_pid() {
    local started
    read -r _ started <<<"$(process_status "$1")"
    echo "$1 $started" >"$2"
}

# Repeat a command every 20 ms until it succeeds, so many times.
insist() {
    local times=$1
    shift
    for _ in $(seq "$times"); do
        "$@" && return 0
        sleep 0.02
    done
    return 1
}

# Kill the process in a "pid start-time" file, and wait until it is gone.
kill_recorded() {
    local pid
    pid=$(recorded_pid "$1") || return 0
    kill -KILL "$pid"
    insist 250 is_gone "$1" || echo "process $pid of $1 is still there" >&2
    rm -f "$1"
}

is_gone() {
    ! recorded_pid "$1" >/dev/null
}
