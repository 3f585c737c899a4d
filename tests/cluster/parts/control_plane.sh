# shellcheck shell=bash
# The servers that a cluster has once: etcd, API server, controller manager, scheduler, Service proxy and DNS.

ETCD_URL=http://127.0.0.1:2379

start_etcd() {
  start_server etcd "$BIN/etcd" --data-dir "$ROOT/etcd" --log-level warn --unsafe-no-fsync \
    --listen-client-urls "$ETCD_URL" --advertise-client-urls "$ETCD_URL" --listen-peer-urls http://127.0.0.1:2380
}

start_api_server() {
  # A client that dials an address which is not yet local would send its handshake out of the machine's sight.
  inside ip route get "$API_ADDRESS" | grep -qw local || fail "$API_ADDRESS is not an address of the namespace"
  start_server api-server "$BIN/kube-apiserver" --etcd-servers="$ETCD_URL" \
    --bind-address="$API_ADDRESS" --advertise-address="$API_ADDRESS" --secure-port=6443 \
    --service-cluster-ip-range="$SERVICE_RANGE" --allow-privileged \
    --client-ca-file="$KEYS/ca.crt" --tls-cert-file="$KEYS/api-server.crt" --tls-private-key-file="$KEYS/api-server.key" \
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$KEYS/service-accounts.key" \
    --service-account-signing-key-file="$KEYS/service-accounts.key" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --kubelet-preferred-address-types=InternalIP --kubelet-certificate-authority="$KEYS/ca.crt" \
    --kubelet-client-certificate="$KEYS/admin.crt" --kubelet-client-key="$KEYS/admin.key"
}

api_is_ready() { kube get --raw /readyz; }

start_controllers() {
  start_server controller-manager "$BIN/kube-controller-manager" --kubeconfig="$ROOT/controller-manager.kubeconfig" \
    --use-service-account-credentials --service-account-private-key-file="$KEYS/service-accounts.key" \
    --root-ca-file="$KEYS/ca.crt" --leader-elect=false --kube-api-qps=100 --kube-api-burst=200 \
    --node-monitor-period=2s --node-monitor-grace-period=20s
  start_server scheduler "$BIN/kube-scheduler" --kubeconfig="$ROOT/scheduler.kubeconfig" --leader-elect=false
  # All nodes share the namespace, hence its nftables, hence one proxy.
  start_server proxy "$BIN/kube-proxy" --kubeconfig="$ROOT/proxy.kubeconfig" --proxy-mode=nftables \
    --cluster-cidr="$POD_RANGE" --hostname-override="${NODES[0]}" --conntrack-max-per-core=0
}

# DNS runs beside the nodes, not on them: it stays when a node is killed, and needs no image.
start_dns() {
  # Two blocks, since within one CoreDNS would ask "template" before "kubernetes", in whatever order they stand.
  cat >"$ROOT/Corefile" <<K
cluster.local in-addr.arpa {
  bind $DNS_ADDRESS
  errors
  ready $DNS_ADDRESS:8181
  kubernetes {
    kubeconfig $ROOT/dns.kubeconfig
    ttl 1
  }
}
. {
  bind $DNS_ADDRESS
  errors
  template ANY ANY {
    rcode NXDOMAIN
  }
}
K
  start_server dns "$BIN/coredns" -conf "$ROOT/Corefile"
}

dns_is_ready() { inside python3 -c "import urllib.request as r; r.urlopen('http://$DNS_ADDRESS:8181/ready', timeout=2)"; }
