# shellcheck shell=bash
# The cluster's network namespace, and cutting a node off inside it.

make_network() {
  local address
  ip netns add "$NAME"
  inside ip link set lo up
  # There may be no dummy device in the kernel; a bridge without ports holds addresses as well.
  inside ip link add kube0 type bridge
  inside ip link set kube0 up
  for address in "$API_ADDRESS" "$DNS_ADDRESS" $(for node in "${NODES[@]}"; do node_address "$node"; done); do
    inside ip addr add "$address/32" dev kube0
  done
  # Without a route, a host process's connection to a Service fails before nftables sees it.
  inside ip route add "$SERVICE_RANGE" dev kube0
  inside sysctl -qw net.ipv4.ip_forward=1
}

remove_network() {
  local pid
  [[ -e $NETNS ]] || return 0
  # Whatever still runs in the namespace came in through this cluster (`cluster exec`), and has no network without it.
  for pid in $(ip netns pids "$NAME"); do
    if [[ $pid != "$$" && $pid != "$BASHPID" ]]; then kill -KILL "$pid" 2>/dev/null || true; fi
  done
  ip netns del "$NAME"
}

# cut NODE: the node's pods and kubelet reach nothing outside the node, and nothing outside reaches them; what happens
# inside the node, kubelet's probes included, goes on. All nodes share one network stack here, so "kubelet of this
# node" is told by its cgroup and "pod of this node" by its bridge.
cut_node() {
  local node=$1 bridge group
  bridge=$(node_bridge "$node")
  group=$(kubelet_cgroup "$node")
  [[ -n $group ]] || unable "no version 2 cgroup hierarchy is mounted, so nothing tells kubelet's packets from others."
  local level
  level=$(tr -cd / <<<"${group#unified/}" | wc -c)
  heal_node "$node"
  inside nft -f - <<K
table inet cut-$node {
  chain through {
    type filter hook forward priority -200
    iifname "$bridge" oifname != "$bridge" drop
    oifname "$bridge" iifname != "$bridge" drop
  }
  chain out {
    type filter hook output priority -200
    oifname "$bridge" socket cgroupv2 level $((level + 1)) "$group" accept
    oifname "$bridge" drop
    socket cgroupv2 level $((level + 1)) "$group" drop
  }
  chain in {
    type filter hook input priority -200
    iifname "$bridge" socket cgroupv2 level $((level + 1)) "$group" accept
    iifname "$bridge" drop
    socket cgroupv2 level $((level + 1)) "$group" drop
  }
}
K
}

# cut_pair NODE OTHER: only the pods of these two nodes lose each other.
cut_pair() {
  heal_pair "$1" "$2"
  inside nft -f - <<K
table inet cut-$1-$2 {
  chain through {
    type filter hook forward priority -200
    iifname "$(node_bridge "$1")" oifname "$(node_bridge "$2")" drop
    iifname "$(node_bridge "$2")" oifname "$(node_bridge "$1")" drop
  }
}
K
}

heal_node() { inside nft delete table inet "cut-$1" 2>/dev/null || true; }

heal_pair() {
  inside nft delete table inet "cut-$1-$2" 2>/dev/null || true
  inside nft delete table inet "cut-$2-$1" 2>/dev/null || true
}

heal_all() {
  local table
  for table in $(cut_tables); do inside nft delete table inet "$table"; done
}

cut_tables() { inside nft list tables inet | awk '$3 ~ /^cut-/ {print $3}'; }
