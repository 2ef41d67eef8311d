# Legacy facts: what a host that was built by hand says of its units, environments, sockets, proxies and certificates.
#
# Appended to probe.sh, whose framing and rules hold here too: only reads, every command bounded, status 100 is "not there", any
# other but 0 is "could not tell". A secret's value never leaves the host here: what is secret in an environment file is sent as a
# digest of $NONCE and the value, by which two hosts can be compared and nothing else.

LARGEST_TEXT=1048577
MOST_FILES=400

# ---- units

# Asked once for all parts, as systemctl is slow on a host under load. UNITS: those that somebody laid down, not the distribution's,
# but for the two proxies and numbered instances of any template; UNITS_WHY is empty if they could be told.
find_units() {
  UNITS=
  UNITS_WHY="systemctl is not installed"
  has systemctl || return
  said=$(timeout -k 1 40 systemctl list-units --all --type=service --plain --no-legend --no-pager --full 2>&1) || {
    UNITS_WHY="systemctl: $said"
    return
  }
  more=$(timeout -k 1 40 systemctl list-unit-files --type=service --plain --no-legend --no-pager --full)
  links=$(timeout -k 1 5 find /etc/systemd/system -maxdepth 2 -name "*@*.service" -printf "%f\n")
  names=$(printf "%s\n" "$said" "$more" "$links" | awk "{ print \$1 }" | grep -v "@\\.service\$" |
    grep "^[A-Za-z0-9].*\\.service\$" | sort -u)
  UNITS_WHY="systemctl show failed"
  # shellcheck disable=SC2086  # names of units hold no blank
  said=$(timeout -k 1 40 systemctl show --no-pager --property=Id,FragmentPath -- $names) || return
  UNITS=$(printf "%s\n" "$said" | awk -F= "
    /^Id=/ { id = \$2 }
    /^FragmentPath=/ { path = \$2 }
    /^\$/ { tell() }
    END { tell() }
    function tell() {
      if (id ~ /^(nginx|haproxy)\.service\$/ || id ~ /@[0-9]+\.service\$/ || path ~ /^\/(etc|opt|usr\/local|srv|home|root)\//) print id
      id = path = \"\"
    }")
  VARIABLES=
  if [ -n "$UNITS" ]; then
    # shellcheck disable=SC2086
    VARIABLES=$(timeout -k 1 40 systemctl show --no-pager --property=Id,Environment,EnvironmentFiles -- $UNITS) || return
  fi
  UNITS_WHY=
}

read_legacy_units() {
  [ -z "$UNITS_WHY" ] || {
    cannot "$UNITS_WHY"
    return
  }
  [ -n "$UNITS" ] || return 0
  properties=Id,LoadState,ActiveState,SubState,UnitFileState,MainPID,ActiveEnterTimestamp,FragmentPath,DropInPaths,EnvironmentFiles
  properties=$properties,User,Group,WorkingDirectory,ExecStart,LimitNOFILE,LimitNPROC,MemoryMax,TasksMax,CPUQuotaPerSecUSec,PrivateTmp
  properties=$properties,Restart,TimeoutStopUSec,KillSignal,KillMode,UMask,Type,ReadWritePaths,ProtectSystem,Nice,OOMScoreAdjust
  # shellcheck disable=SC2086
  run 40 systemctl show --no-pager --timestamp=unix --property="$properties" -- $UNITS
}

# ---- environment

# mask FILE: assignments as they stand; of secret ones the digest. What is neither assignment nor comment is left out but for a word,
# as it may be the rest of a secret.
mask() {
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      "" | "#"* | ";"*) continue ;;
      [A-Za-z_]*=*) ;;
      *)
        echo "?"
        continue
        ;;
    esac
    key=${line%%=*}
    value=${line#*=}
    case $key in
      *[!A-Za-z0-9_]*)
        echo "?"
        continue
        ;;
    esac
    kind=plain
    case $key in
      *[Ss][Ee][Cc][Rr][Ee][Tt]* | *[Pp][Aa][Ss][Ss][Ww]* | *[Tt][Oo][Kk][Ee][Nn]* | *[Cc][Rr][Ee][Dd][Ee][Nn][Tt]* | *PRIVATE* | *API_KEY* | *_KEY | *KEY_ID | *_DSN | *_SALT | *_PWD | *_PASS) kind=secret ;;
    esac
    case $value in *://*@* | *PRIVATE\ KEY* | *\\) kind=secret ;; esac
    case $value in
      \"*\")
        bare=${value#\"}
        bare=${bare%\"}
        ;;
      \'*\')
        bare=${value#\'}
        bare=${bare%\'}
        ;;
      \"* | \'*)
        kind=secret
        bare=$value
        ;;
      *) bare=$value ;;
    esac
    case $key in *_FILE | *_HEADER | *_PATH | *_DIR) case $value in *://*@*) ;; *) kind=plain ;; esac ;; esac
    if [ "$kind" = plain ]; then
      printf "=%s\n" "$line"
    elif [ -z "$bare" ]; then
      printf "=%s=\n" "$key"
    else
      digest=$(printf "%s%s" "$NONCE" "$bare" | sha256sum) || digest=
      printf "*%s=%s\n" "$key" "${digest%% *}"
    fi
  done
}

# A record per environment file: 0 there, 1 absent, 2 cannot tell; path; unix time of its last change; mode; base64 of its lines.
read_environments() {
  [ -z "$UNITS_WHY" ] || {
    cannot "$UNITS_WHY"
    return
  }
  paths=$(printf "%s\n" "$VARIABLES" | sed -n "s/^EnvironmentFiles=\\(.*\\) (ignore_errors=.*)\$/\\1/p" | sort -u)
  printf "%s\n" "$paths" | while IFS= read -r path; do
    case $path in /*) ;; *) continue ;; esac
    presence "$path"
    there=$?
    [ "$there" = 0 ] && { [ ! -f "$path" ] || [ ! -r "$path" ]; } && there=2
    printf "%s\0%s\0" "$there" "$path"
    [ "$there" != 0 ] || stat -c "%Y %a" -- "$path" | tr -d "\n"
    printf "\0"
    [ "$there" != 0 ] || timeout -k 1 5 head -c 65536 -- "$path" | mask | base64 -w 0
    printf "\0"
  done
}

# Words of a line, one a line, as systemctl quotes them. In no argument of a program: they may be secrets.
WORDS="{
  word = \"\"
  quoted = 0
  for (i = 1; i <= length(\$0); i++) {
    char = substr(\$0, i, 1)
    if (char == \"\\\\\") word = word substr(\$0, ++i, 1)
    else if (char == \"\\\"\") quoted = !quoted
    else if (char == \" \" && !quoted) { print word; word = \"\" }
    else word = word char
  }
  print word
}"

# A record per unit with Environment= of its own: its name, base64 of the masked variables.
read_inline() {
  [ -z "$UNITS_WHY" ] || {
    cannot "$UNITS_WHY"
    return
  }
  printf "%s\n" "$VARIABLES" | while IFS= read -r line; do
    case $line in
      Id=*) unit=${line#Id=} ;;
      Environment=?*)
        printf "%s\0" "$unit"
        printf "%s\n" "${line#Environment=}" | awk "$WORDS" | mask | base64 -w 0
        printf "\0"
        ;;
    esac
  done
}

# ---- sockets

read_socket_files() { run 10 find /tmp /run /var/run/ /var/tmp -maxdepth 3 -xdev -type s -printf "%p\n"; return 0; }

read_unix_listeners() {
  has ss || {
    cannot "ss is not installed"
    return
  }
  run 5 ss -Hlx
}

read_datagrams() {
  has ss || {
    cannot "ss is not installed"
    return
  }
  run 5 ss -Hlunp
}

read_addresses() {
  has ip || {
    cannot "ip is not installed"
    return
  }
  run 5 ip -o address show scope global
}

# ---- proxies

# The same as read_contents, of at most 1 MiB and one byte each.
read_texts() {
  for path; do
    there=0
    [ -r "$path" ] || there=2
    printf "%s\0%s\0" "$there" "$path"
    [ "$there" != 0 ] || timeout -k 1 5 head -c "$LARGEST_TEXT" -- "$path" | base64 -w 0
    printf "\0"
  done
}

# The files under a folder and those named beside it, as records of read_texts; keys and certificates stay where they are.
read_tree() {
  found=$(for path; do
    [ -e "$path" ] && timeout -k 1 10 find -L "$path" -maxdepth 4 -type f ! -name "*.pem" ! -name "*.key" ! -name "*.crt" \
      ! -name "*.p12" ! -name "*.htpasswd" ! -name ".htpasswd" ! -name "*.dpkg-*" ! -name "*~" -print
  done | sort -u | head -n "$MOST_FILES")
  [ -n "$found" ] || {
    absent "there is no configuration"
    return
  }
  old=$IFS
  IFS="
"
  set -f
  # shellcheck disable=SC2086  # one path a line
  set -- $found
  set +f
  IFS=$old
  [ $# -lt "$MOST_FILES" ] || printf "2\0%s\0\0" "more than $MOST_FILES files"
  read_texts "$@"
}

# The words of the command line of the process that was started as NAME first, one a line.
command_line() {
  for pid in $(pidof "$1"); do
    [ -r "/proc/$pid/cmdline" ] || continue
    tr "\0" "\n" <"/proc/$pid/cmdline"
    return
  done
}

nginx_main() {
  main=$(timeout -k 1 5 ps -o args= -C nginx | sed -n "s/^nginx: master process.* -c \\([^ ]*\\).*/\\1/p" | head -n 1)
  printf "%s\n" "${main:-/etc/nginx/nginx.conf}"
}

read_nginx() {
  main=$(nginx_main)
  if [ ! -e "$main" ]; then
    has nginx && cannot "nginx is installed, and there is no $main" && return
    has nginx || {
      absent "nginx is not installed"
      return
    }
  fi
  printf "main\0%s\0\0" "$main"
  # shellcheck disable=SC2046  # paths in include lines hold no blank
  read_tree "${main%/*}" $(timeout -k 1 5 grep -Rhso "include[[:space:]][[:space:]]*/[^;[:space:]]*;" "${main%/*}" |
    sed "s/include[[:space:]]*\\(.*\\);/\\1/" | sort -u | head -n 50)
}

# Files of "-f" in their order (a folder: its .cfg files), else the usual one.
haproxy_files() {
  files=$(command_line haproxy | sed -n "/^-f\$/{n;p;}")
  for path in ${files:-/etc/haproxy/haproxy.cfg}; do
    if [ -d "$path" ]; then
      for each in "$path"/*.cfg; do [ -f "$each" ] && printf "%s\n" "$each"; done
    else
      printf "%s\n" "$path"
    fi
  done
}

read_haproxy() {
  files=$(haproxy_files)
  first=${files%%"
"*}
  if [ ! -e "$first" ]; then
    has haproxy && cannot "HAProxy is installed, and there is no $first" && return
    has haproxy || {
      absent "HAProxy is not installed"
      return
    }
  fi
  printf "%s\n" "$files" | while IFS= read -r path; do printf "main\0%s\0\0" "$path"; done
  # shellcheck disable=SC2086
  read_tree /etc/haproxy $files
}

# The first certificate of every file that a proxy's configuration names, and of nothing else in it.
read_served() {
  paths=$({
    timeout -k 1 5 grep -Rhso "ssl_certificate[[:space:]][[:space:]]*[^;[:space:]]*;" "$(dirname "$(nginx_main)")" |
      sed "s/ssl_certificate[[:space:]]*\\(.*\\);/\\1/"
    haproxy_files | while IFS= read -r path; do
      [ -r "$path" ] && tr -s " \t" "\n\n" <"$path" | sed -n "/^crt\$/{n;p;}"
    done
  } | sort -u | head -n 200)
  set --
  for path in $paths; do
    if [ -d "$path" ]; then
      for each in "$path"/*; do [ -f "$each" ] && set -- "$@" "$each"; done
    else
      case $path in /*) set -- "$@" "$path" ;; *) [ -e "/etc/nginx/$path" ] && set -- "$@" "/etc/nginx/$path" ;; esac
    fi
  done
  [ $# -eq 0 ] || read_certificates "$@"
}

read_ours() {
  presence "$MARK/site.json"
  printf "%s\n" "$?"
}
