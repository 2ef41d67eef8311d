# The probe: everything that one host can tell, in one round trip, with nothing written to the host.
#
# Needs a POSIX sh and what a bare Debian has (coreutils, findutils, dpkg, systemd). Whatever else it asks (docker, nft, ss,
# slotctl, curl, python3) may be missing: that is an answer. Runs as root, or as less, when more is unknown.
#
# The answer is a list of parts. A part is a header line "@callfleet NAME" and base64 lines, so that no content can look like a
# header. Decoded, a part is its data, NUL, an exit status, NUL, the reason in words. Status 100 means "not there" (absent); any
# other status but 0 means "could not tell". A part is whole only if another header follows it.
#
# Single quotes are scarce here on purpose: each costs five bytes when the text becomes one argument of "sh -c". No here-document:
# some shells keep those in temporary files. Lines that only comment are dropped before sending.

LC_ALL=C
export LC_ALL
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
PYTHONDONTWRITEBYTECODE=1
DOCKER_HOST=unix:///var/run/docker.sock
export PATH PYTHONDONTWRITEBYTECODE DOCKER_HOST
unset DOCKER_CONTEXT DOCKER_API_VERSION DOCKER_TLS_VERIFY DOCKER_CERT_PATH
exec </dev/null 2>/dev/null
cd / || exit 1

ABSENT=100
MARK=/etc/callfleet
SLOTCTL=/usr/local/sbin/slotctl

# ---- framing

# section NAME FUNCTION [ARGUMENT...]: one framed part; leaves the function's status in $status.
section() {
  printf "@callfleet %s\n" "$1"
  shift
  {
    status=$({ {
      exec 3>&1
      why=
      "$@"
      code=$?
      printf "\0%s\0%s" "$code" "$why"
      echo "$code" >&4
    } | base64 >&5; } 4>&1)
  } 5>&1
}

# run SECONDS COMMAND...: bounded; its output is the part's data, its stderr the part's reason.
run() {
  limit=$1
  shift
  why=$(timeout -k 1 "$limit" "$@" 2>&1 >&3)
  code=$?
  [ "$code" = 124 ] || [ "$code" = 137 ] && why="$1 did not answer within $limit s"
  [ "$code" = "$ABSENT" ] && code=1
  return "$code"
}

has() { command -v "$1" >/dev/null; }
absent() { why=$*; return "$ABSENT"; }
cannot() { why=$*; return 1; }

# presence PATH: 0 it is there, 1 it is not, 2 cannot tell (a folder above it may not be searched).
presence() {
  { [ -e "$1" ] || [ -L "$1" ]; } && return 0
  above=$1
  while :; do
    above=${above%/*}
    [ -n "$above" ] || above=/
    if [ -d "$above" ]; then
      [ -x "$above" ] && return 1
      return 2
    fi
    [ -L "$above" ] && return 2
    [ -e "$above" ] && return 1
    [ "$above" = / ] && return 2
  done
}

# ---- the host itself

read_os() { run 5 cat /etc/os-release; }

read_host() {
  printf "hostname=%s\n" "$(cat /proc/sys/kernel/hostname)"
  printf "boot_id=%s\n" "$(cat /proc/sys/kernel/random/boot_id)"
  printf "uname=%s\n" "$(uname -rm)"
  printf "cpus=%s\n" "$(nproc)"
  printf "uid=%s\n" "$(id -u)"
  connection=$SSH_CONNECTION
  # sudo hides the variable from us, not from its own start
  [ -n "$connection" ] || connection=$(tr "\0" "\n" <"/proc/$PPID/environ" | sed -n "s/^SSH_CONNECTION=//p")
  printf "ssh_port=%s\n" "${connection##* }"
  while read -r key value unit; do
    case $key in MemTotal: | MemAvailable:) printf "%s=%s\n" "${key%:}" "$value" ;; esac
  done </proc/meminfo
}

read_clock() {
  date +unix=%s
  has timedatectl || return 0
  run 3 timedatectl show --property=NTPSynchronized
  return 0
}

read_disks() {
  set -- /
  for path in /var/lib/docker /var/lib; do [ -d "$path" ] && set -- "$@" "$path"; done
  run 5 df -B1 --output=file,size,avail,iavail,target "$@"
}

read_listeners() {
  if has ss; then
    run 5 ss -Hltnp
    return
  fi
  # no iproute2: the kernel's own table, without process names
  for table in /proc/net/tcp /proc/net/tcp6; do
    [ -r "$table" ] && run 5 grep " 0A " "$table"
  done
  [ -r /proc/net/tcp ] || cannot "there is neither ss nor /proc/net/tcp"
}

read_nft() {
  family=${1%% *}
  table=${1#* }
  has nft || {
    absent "nft is not installed"
    return
  }
  tables=$(timeout -k 1 5 nft list tables 2>&1) || {
    cannot "$tables"
    return
  }
  case "
$tables
" in
    *"
table $family $table
"*) run 5 nft -s list table "$family" "$table" ;;
    *) absent "there is no table $1" ;;
  esac
}

# ---- files

read_presence() {
  for path; do
    presence "$path"
    printf "%s\0%s\0" "$?" "$path"
  done
}

# status 1 of find only says that one of the paths was not read; the parser sees which
read_files() {
  run 10 find "$@" -maxdepth 0 -printf "%y\0%m\0%u\0%g\0%U\0%G\0%s\0%T@\0%l\0%p\0"
}

read_hashes() {
  count=$#
  for path; do [ -f "$path" ] && [ ! -L "$path" ] && [ -r "$path" ] && set -- "$@" "$path"; done
  shift "$count"
  [ $# -eq 0 ] || run 20 sha256sum -z -- "$@"
}

read_listings() {
  count=$#
  for path; do [ -d "$path" ] && set -- "$@" "$path"; done
  shift "$count"
  [ $# -eq 0 ] ||
    run 10 find -H "$@" -xdev -ignore_readdir_race -printf "%y\0%m\0%u\0%g\0%U\0%G\0%s\0%T@\0%l\0%H\0%P\0"
}

# One record per file: 0 there, 1 absent, 2 cannot tell; path; base64 of the first 64 KiB and one byte.
read_contents() {
  for path; do
    presence "$path"
    there=$?
    [ "$there" = 0 ] && { [ ! -f "$path" ] || [ ! -r "$path" ]; } && there=2
    printf "%s\0%s\0" "$there" "$path"
    [ "$there" != 0 ] || timeout -k 1 5 head -c 65537 -- "$path" | base64 -w 0
    printf "\0"
  done
}

# The same of the first certificate of each file, and of nothing else: these files hold private keys too.
read_certificates() {
  first="/^-----BEGIN CERTIFICATE-----/,/^-----END CERTIFICATE-----/{/PRIVATE KEY/q;p;/^-----END/q;}"
  for path; do
    presence "$path"
    there=$?
    [ "$there" = 0 ] && { [ ! -f "$path" ] || [ ! -r "$path" ]; } && there=2
    printf "%s\0%s\0" "$there" "$path"
    [ "$there" != 0 ] || timeout -k 1 5 head -c 65537 -- "$path" | sed -n "$first" | base64 -w 0
    printf "\0"
  done
}

# ---- packages and units

read_packages() {
  has dpkg-query || {
    cannot "dpkg-query is not installed"
    return
  }
  run 10 dpkg-query -W -f "\${Package}\t\${Version}\t\${db:Status-Status}\t\${db:Status-Want}\n" "$@"
  code=$?
  # 1 only says that some of them are not there
  [ "$code" = 1 ] && return 0
  return "$code"
}

read_units() {
  has systemctl || {
    cannot "systemctl is not installed"
    return
  }
  properties=Id,LoadState,ActiveState,SubState,UnitFileState,MainPID,ActiveEnterTimestamp,InvocationID,NRestarts,FragmentPath
  run 10 systemctl show --no-pager --timestamp=unix --property="$properties,DropInPaths,NeedDaemonReload" -- "$@"
}

# ---- Docker. Containers are read field by field: the whole of "inspect" would carry their environment, and secrets with it.

read_engine() {
  has docker || {
    if has dockerd || [ -S /var/run/docker.sock ]; then
      cannot "a Docker daemon is installed without its client (Debian 13: package docker-cli)"
    else
      absent "docker is not installed"
    fi
    return
  }
  run 10 docker info --format "{\"version\":{{json .ServerVersion}},\"live_restore\":{{json .LiveRestoreEnabled}},\
\"storage_driver\":{{json .Driver}},\"cgroup_driver\":{{json .CgroupDriver}},\"log_driver\":{{json .LoggingDriver}},\
\"root\":{{json .DockerRootDir}},\"plugins\":{{json .ClientInfo.Plugins}},\"errors\":{{json .ServerErrors}}}"
}

read_containers() {
  # a container that goes away between the two calls fails the second: look again
  for attempt in 1 2 3; do
    ids=$(timeout -k 1 10 docker ps -aq --no-trunc) || {
      cannot "docker ps failed"
      return
    }
    [ -n "$ids" ] || return 0
    # shellcheck disable=SC2086  # ids are hexadecimal
    found=$(timeout -k 1 15 docker inspect --type container --format "{\"id\":{{json .ID}},\"name\":{{json .Name}},\
\"labels\":{{json .Config.Labels}},\"image_id\":{{json .Image}},\"image\":{{json .Config.Image}},\
\"state\":{{json .State.Status}},\"health\":{{with .State.Health}}{{json .Status}}{{else}}null{{end}},\
\"exit_code\":{{json .State.ExitCode}},\"restart_count\":{{json .RestartCount}},\"started\":{{json .State.StartedAt}},\
\"pid\":{{json .State.Pid}},\"restart_policy\":{{json .HostConfig.RestartPolicy.Name}},\
\"network\":{{json .HostConfig.NetworkMode}},\"stop_signal\":{{json .Config.StopSignal}},\
\"memory\":{{json .HostConfig.Memory}},\"cpus\":{{json .HostConfig.NanoCPUs}},\
\"processes\":{{json .HostConfig.PidsLimit}}}" $ids) && {
      printf "%s\n" "$found"
      return 0
    }
    [ $? = 124 ] && break
  done
  cannot "docker inspect failed $attempt times"
}

read_images() {
  run 10 docker image ls --no-trunc --digests --format \
    "{\"id\":{{json .ID}},\"repository\":{{json .Repository}},\"tag\":{{json .Tag}},\"digest\":{{json .Digest}}}"
}

# ---- slots, proxies, mark, API

read_slots() {
  [ -x "$SLOTCTL" ] || {
    presence "$SLOTCTL"
    case $? in
      1) absent "there is no $SLOTCTL" ;;
      *) cannot "$SLOTCTL may not be run" ;;
    esac
    return
  }
  run 20 "$SLOTCTL" status "$1" --json
}

# One python for all sockets; each answer is a record: socket, command, "ok" or "error", text. "@! COMMAND" asks each
# worker process that "show proc" of the same socket has just named; one that ended meanwhile has no record. Of sessions only
# backend, server and age are passed on: who calls is nobody's business here.
ASK="import socket,sys
def ask(path, command):
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(2)
        s.connect(path)
        s.sendall((command + chr(10)).encode())
        s.shutdown(socket.SHUT_WR)
        parts = []
        while part := s.recv(65536):
            parts.append(part)
        return b\"\".join(parts)
def tell(path, command, word, text):
    record = [path.encode(), command.encode(), word, text.replace(bytes(1), b\"?\")]
    sys.stdout.buffer.write(b\"\".join(part + bytes(1) for part in record))
workers = {}
for path, command in zip(sys.argv[1::2], sys.argv[2::2]):
    if command[:3] == \"@! \":
        for pid in workers.get(path, ()):
            each = \"@!\" + pid + command[2:]
            try:
                text = ask(path, each)
            except OSError:
                continue
            if each.endswith(\" sess\"):
                lines = [[f for f in line.split() if f[:3] in (b\"be=\", b\"srv\", b\"age\")] for line in text.splitlines()]
                text = bytes([10]).join(b\" \".join(line) for line in lines)
            tell(path, each, b\"ok\", text)
        continue
    try:
        word, text = b\"ok\", ask(path, command)
    except ConnectionRefusedError as e:
        word, text = b\"refused\", str(e).encode()
    except OSError as e:
        word, text = b\"error\", str(e).encode()
    if command == \"show proc\":
        rows = [line.split() for line in text.decode(errors=\"replace\").splitlines()]
        workers[path] = [row[0] for row in rows if row[1:2] == [\"worker\"] and row[0].isdigit()]
    tell(path, command, word, text)
"

# read_sockets (SOCKET COMMAND)...
read_sockets() {
  if has python3; then
    run 15 python3 -I -B -c "$ASK" "$@"
  elif has socat; then
    while [ $# -gt 1 ]; do
      printf "%s\0%s\0" "$1" "$2"
      if text=$(printf "%s\n" "$2" | timeout -k 1 3 socat -t 2 - "UNIX-CONNECT:$1"); then
        printf "ok\0%s\0" "$text"
      else
        printf "error\0%s\0" "socat could not ask"
      fi
      shift 2
    done
  else
    cannot "there is neither python3 nor socat to ask a Unix socket"
  fi
}

# read_mark [STACK...]: a record per file of ours: 0 there, 1 absent, 2 cannot tell; path; text (at most 64 KiB).
read_mark() {
  for stack; do
    drained=$MARK/stacks/$stack/drained
    set -- "$@" "$MARK/stacks/$stack/canary.json" "$drained"
    for path in "$drained"/*; do [ -e "$path" ] && set -- "$@" "$path"; done
    shift
  done
  for path in "$MARK/site.json" "$MARK/fence" "$@"; do
    text=
    presence "$path"
    there=$?
    if [ -d "$path" ]; then
      { [ -r "$path" ] && [ -x "$path" ]; } || there=2
    elif [ "$there" = 0 ]; then
      text=$(head -c 65536 -- "$path") || there=2
    fi
    printf "%s\0%s\0%s\0" "$there" "$path" "$text"
  done
}

# read_core_fleet CURL_CONFIG URL: the token is in the file; it is in no argument and in no answer.
read_core_fleet() {
  [ -r "$1" ] || {
    presence "$1"
    case $? in
      1) absent "there is no $1" ;;
      *) cannot "$1 may not be read" ;;
    esac
    return
  }
  has curl || {
    cannot "curl is not installed"
    return
  }
  run 12 curl -q -sS --fail --max-time 10 --max-filesize 1000000 --output - --config "$1" "$2"
}

not_asked() { cannot "$@"; }

# ---- the answer; what follows is assembled per request

echo "@callfleet probe 1"
