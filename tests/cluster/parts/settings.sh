# shellcheck shell=bash disable=SC2034  # The names below are used by the scripts that source this file.
# Where things are and what they are called. Two clusters live side by side if they differ in HOLDFAST_CLUSTER_NAME:
# addresses belong to the network namespace, and everything else is named after the cluster or lies under its root.

NAME="${HOLDFAST_CLUSTER_NAME:-holdfast}"
ROOT="${HOLDFAST_CLUSTER_ROOT:-/var/lib/$NAME-local}"
CACHE="${HOLDFAST_CACHE:-$HOME/.cache/holdfast}"
BIN="$CACHE/bin"

NETNS="/run/netns/$NAME"
LOGS="$ROOT/log"
PIDS="$ROOT/pids"
KEYS="$ROOT/keys"
ADMIN_KUBECONFIG="$ROOT/admin.kubeconfig"
# Marks a state root as ours, so that `down` never deletes a folder that somebody named by mistake.
ROOT_MARK="$ROOT/.holdfast-cluster"

NODES=(n1 n2 n3)
VOLUMES_PER_NODE=8
VOLUME_SIZE=10Gi
# Of the file system that holds the CSI driver's volumes; its file takes what is written, not more.
POOL_SIZE=20G
PAUSE_IMAGE=docker.io/holdfast/pause:1

# 198.18.0.0/15 is set aside for tests of networks, so it collides with no real one.
POD_RANGE=198.18.0.0/16
SERVICE_RANGE=10.96.0.0/16
SERVICE_API_ADDRESS=10.96.0.1
API_ADDRESS=198.18.255.1
DNS_ADDRESS=198.18.255.10
API_SERVER="https://$API_ADDRESS:6443"

node_number() { echo "${1#n}"; }
node_address() { echo "198.18.255.1${1#n}"; }
node_pods() { echo "198.18.${1#n}.0/24"; }
node_bridge() { echo "br-$1"; }

STARTED_AT=$SECONDS
say() { printf '[%3ds] %s\n' $((SECONDS - STARTED_AT)) "$*" >&2; }
fail() { printf 'cluster: %s\n' "$*" >&2; exit 1; }
# Exit code 2 tells a caller that this machine cannot run the cluster, as opposed to a cluster that failed.
unable() { printf 'cluster: this machine cannot run it: %s\n' "$*" >&2; exit 2; }

# wait_for SECONDS WHAT COMMAND...: runs COMMAND until it succeeds, and says WHAT did not happen when time is up.
wait_for() {
  local limit_s=$1 what=$2 deadline=$((SECONDS + $1))
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= deadline)); then
      printf 'cluster: %s did not happen within %s s\n' "$what" "$limit_s" >&2
      return 1
    fi
    sleep 0.1
  done
}

inside() { nsenter --net="$NETNS" "$@"; }
kube() { inside "$BIN/kubectl" --kubeconfig "$ADMIN_KUBECONFIG" --request-timeout=10s "$@"; }
