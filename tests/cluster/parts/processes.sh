# shellcheck shell=bash
# Servers run as plain processes. Each is remembered by its pid and its start time, since a pid alone may by now be
# somebody else's, and only what is remembered here is ever ended.

start_time() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) } # A program's name may hold spaces and brackets; the fields after it do not.
  cut -d' ' -f20 <<<"$stat"
}

# start_server NAME COMMAND...: in the cluster's network, in a session of its own, without our lock's descriptor.
start_server() {
  local name=$1
  shift
  setsid nsenter --net="$NETNS" "$@" >>"$LOGS/$name.log" 2>&1 </dev/null 9>&- &
  echo "$! $(start_time $!)" >"$PIDS/$name"
}

# The pid of the server, if it is still the process that we started.
server_pid() {
  local pid started
  [[ -f "$PIDS/$1" ]] && read -r pid started <"$PIDS/$1" || return 1
  [[ "$(start_time "$pid")" == "$started" ]] || return 1
  [[ "$(cut -d' ' -f3 <"/proc/$pid/stat" 2>/dev/null)" != Z ]] || return 1
  echo "$pid"
}

server_runs() { server_pid "$1" >/dev/null; }

# kill_servers NAME...: with SIGKILL, and waits until they are gone. Nothing they could still save is kept.
kill_servers() {
  local name pid
  for name in "$@"; do
    if pid=$(server_pid "$name"); then kill -KILL "$pid" 2>/dev/null || true; fi
  done
  for name in "$@"; do
    wait_for 10 "the end of $name" server_is_gone "$name" || return 1
    rm -f "$PIDS/$name"
  done
}

server_is_gone() { ! server_runs "$1"; }

started_servers() {
  local file
  for file in "$PIDS"/*; do
    if [[ -f $file ]]; then basename "$file"; fi
  done
}

# wait_for_server NAME SECONDS COMMAND...: until COMMAND succeeds, or at once if the server ends.
wait_for_server() {
  local name=$1 limit_s=$2
  shift 2
  wait_for "$limit_s" "readiness of $name" ends_or_is_ready "$name" "$@" || true
  if server_runs "$name" && "$@" >/dev/null 2>&1; then return; fi
  show_log "$name"
  return 1
}

ends_or_is_ready() {
  local name=$1
  shift
  server_is_gone "$name" || "$@"
}

# The last lines of a server that did not do what was expected of it.
show_log() {
  printf -- '--- the end of %s\n' "$LOGS/$1.log" >&2
  tail -n 15 "$LOGS/$1.log" >&2 || true
}
