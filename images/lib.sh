# Common to the recipes in this folder and the demo: messages, the cache, Debian packages beside the installed ones, and
# QEMU. Sourced by bash; knows nothing of snapblk's commands.
#
# All files made here are in one folder, $SNAPBLK_CACHE (by default images/cache, which git ignores). No installed
# package is replaced: Debian 12's QEMU 7.2, for example, would remove an installed qemu-utils 10.

set -euo pipefail

IMAGES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${SNAPBLK_CACHE:-$IMAGES/cache}
DEBS=$CACHE/debian            # packages extracted here, as under /
GUEST_ENV=$CACHE/guest.env    # what was made, as NAME=VALUE lines: read by start_guest and by tests/src/guest.rs
MULTIARCH=x86_64-linux-gnu

if [[ -t 2 && -z ${NO_COLOR:-} ]]; then DIM=$'\e[2m' RED=$'\e[31m' PLAIN=$'\e[0m'; else DIM='' RED='' PLAIN=''; fi

# Prints one line of progress on standard error: standard output belongs to the caller's results.
say() { printf '%s%s%s\n' "$DIM" "$*" "$PLAIN" >&2; }
die() { printf '%s%s: %s%s\n' "$RED" "${0##*/}" "$*" "$PLAIN" >&2; exit 1; }

# Runs a command as root: directly, or with sudo if it exists.
as_root() {
    if ((EUID == 0)); then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "need root to run '$*', and there is no sudo: run it as root first"; fi
}

# Runs the rest of the script with the cache locked; two concurrent set-ups would extract over each other.
lock_cache() {
    mkdir -p "$CACHE"
    exec {CACHE_LOCK}>"$CACHE/.lock"
    flock -n "$CACHE_LOCK" || { say "another set-up is at work in $CACHE: waiting for it"; flock "$CACHE_LOCK"; }
}

# Adds the cache's programs after the installed ones, for finding them and, with their libraries, for running them.
cached_path() { printf '%s' "$PATH:/usr/sbin:/sbin:$DEBS/usr/sbin:$DEBS/usr/bin:$DEBS/sbin:$DEBS/bin"; }
cached_libraries() {
    local base=$DEBS/usr/lib/$MULTIARCH
    printf '%s' "$base:$DEBS/lib/$MULTIARCH:$base/ceph${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
}

# The path of a program: installed, or in the cache. Fails if it is in neither.
find_program() { PATH=$(cached_path) type -P "$1"; }

# apt_lists: ensures that apt knows the available packages. Uses the network at most once per run.
APT_UPDATED=
apt_update() {
    [[ -z $APT_UPDATED ]] || return 0
    APT_UPDATED=1
    say "asking Debian for its package lists"
    as_root apt-get update -qq >&2
}

# The packages that installing $@ would add, one per line, in no order; without installed ones.
missing_packages() {
    LC_ALL=C apt-get install --simulate --no-install-recommends "$@" 2>/dev/null | awk '/^Inst /{print $2}'
}

# extract_packages NAME PACKAGE...: downloads the packages and their dependencies that are not installed, and extracts
# them into the cache. Does nothing if it succeeded before.
extract_packages() {
    local name=$1 stamp=$CACHE/stamps/$1 work packages
    shift
    [[ ! -e $stamp ]] || return 0
    packages=$(missing_packages "$@") || true
    if [[ -z $packages ]]; then
        apt_update
        packages=$(missing_packages "$@") || die "apt finds no way to install '$*': is this Debian 12 or later?"
    fi
    say "fetching $name: $(wc -w <<<"$packages") packages"
    work=$(mktemp -d "$CACHE/fetch.XXXXXX")
    download_packages "$work" $packages
    mkdir -p "$DEBS" "$CACHE/stamps"
    local deb
    for deb in "$work"/*.deb; do
        [[ ! -e $deb ]] || dpkg-deb --extract "$deb" "$DEBS"
    done
    rm -r "$work"
    touch "$stamp"
}

# download_packages FOLDER PACKAGE...: an outdated list has versions that no longer exist; so retries with a new list.
download_packages() {
    local folder=$1
    shift
    (($#)) || return 0
    (cd "$folder" && apt-get -o APT::Sandbox::User=root -qq download "$@" >/dev/null 2>&1) && return 0
    apt_update
    (cd "$folder" && apt-get -o APT::Sandbox::User=root -qq download "$@" >&2) ||
        die "could not download '$*': see apt's message above"
}

# need_command COMMAND PACKAGE: installs the package if the command is missing. For commands needed on the host itself.
need_command() {
    ! PATH=$PATH:/usr/sbin:/sbin type -P "$1" >/dev/null || return 0
    apt_update
    say "installing $2"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

# Up to date: FILE exists and is newer than every SOURCE.
up_to_date() {
    local file=$1 source
    shift
    [[ -e $file ]] || return 1
    for source in "$@"; do [[ $file -nt $source ]] || return 1; done
}

# record NAME VALUE: records a path in guest.env.
record() {
    local rest=''
    [[ ! -e $GUEST_ENV ]] || rest=$(grep -v "^$1=" "$GUEST_ENV" || true)
    printf '%s\n' ${rest:+"$rest"} "$1=$2" >"$GUEST_ENV.new"
    mv "$GUEST_ENV.new" "$GUEST_ENV"
}

# recorded NAME: prints the recorded value; without one, fails and says what to do.
recorded() {
    local value
    value=$(sed -n "s/^$1=//p" "$GUEST_ENV" 2>/dev/null) || true
    [[ -n $value ]] || die "$CACHE holds no $1: run images/setup first"
    printf '%s' "$value"
}

# copy_modules ROOT MODULE...: the kernel's modules of these names, their dependencies, and the index that busybox's
# modprobe reads. Modules that are built into the kernel are left out.
copy_modules() {
    local root=$1 modules release busybox file
    shift
    modules=$(recorded MODULES) release=${modules##*/} busybox=$(recorded BUSYBOX)
    [[ -e $modules/modules.dep ]] || "$busybox" depmod -b "$CACHE/kernel" "$release"
    # A line of modules.dep has a module's file, a colon, and the files of its dependencies.
    awk -v wanted="$*" '
        { name = $1; sub(/.*\//, "", name); sub(/\.ko:$/, "", name); sub(/:/, ""); files[name] = $0 }
        END { n = split(wanted, w, " "); for (i = 1; i <= n; i++) { m = split(files[w[i]], f, " "); for (j = 1; j <= m; j++) print f[j] } }
    ' "$modules/modules.dep" | sort -u |
        while read -r file; do install -D -m 644 "$modules/$file" "$root/lib/modules/$release/$file"; done
    "$busybox" depmod -b "$root" "$release"
}

# qemu ARGUMENT...: becomes QEMU for x86-64 with its own libraries, modules and firmware.
qemu() {
    local program
    program=$(recorded QEMU)
    case $program in
    "$CACHE"/*)
        LD_LIBRARY_PATH=$(cached_libraries) QEMU_MODULE_DIR=$DEBS/usr/lib/$MULTIARCH/qemu \
            exec "$program" -L "$DEBS/usr/share/qemu" -L "$DEBS/usr/share/seabios" "$@" ;;
    *) exec "$program" "$@" ;;
    esac
}
