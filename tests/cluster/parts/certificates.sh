# shellcheck shell=bash
# The cluster's own certificate authority, a certificate for each server and client, and their kubeconfig files.

make_authority() {
  mkdir -p "$KEYS"
  chmod 700 "$KEYS"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj /CN=holdfast-local-cluster \
    -addext keyUsage=critical,keyCertSign,cRLSign -keyout "$KEYS/ca.key" -out "$KEYS/ca.crt" 2>/dev/null
  # Service-account tokens are signed with a key that is in no certificate.
  openssl ecparam -name prime256v1 -genkey -noout -out "$KEYS/service-accounts.key"
}

# make_certificate FILE SUBJECT [NAMES]: for a server if NAMES are given, for a client in any case.
make_certificate() {
  local file="$KEYS/$1" subject=$2 names=${3:-}
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "$subject" \
    -keyout "$file.key" -out "$file.csr" 2>/dev/null
  {
    echo "keyUsage=critical,digitalSignature"
    echo "extendedKeyUsage=clientAuth${names:+,serverAuth}"
    if [[ -n $names ]]; then echo "subjectAltName=$names"; fi
  } >"$file.ext"
  openssl x509 -req -in "$file.csr" -CA "$KEYS/ca.crt" -CAkey "$KEYS/ca.key" -days 3650 \
    -set_serial "0x$(openssl rand -hex 8)" -extfile "$file.ext" -out "$file.crt" 2>/dev/null
  rm "$file.csr" "$file.ext"
}

# A kubeconfig that holds its keys, so that it can be copied on its own.
make_kubeconfig() {
  local client=$1 file=$2
  (umask 077 && cat >"$file") <<K
apiVersion: v1
kind: Config
clusters:
- name: $NAME
  cluster:
    server: $API_SERVER
    certificate-authority-data: $(base64 -w0 "$KEYS/ca.crt")
users:
- name: $client
  user:
    client-certificate-data: $(base64 -w0 "$KEYS/$client.crt")
    client-key-data: $(base64 -w0 "$KEYS/$client.key")
contexts:
- name: $NAME
  context: {cluster: $NAME, user: $client}
current-context: $NAME
K
}

make_certificates() {
  local node client
  make_authority
  make_certificate api-server /CN=kube-apiserver \
    "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:$SERVICE_API_ADDRESS,IP:$API_ADDRESS"
  make_certificate admin /O=system:masters/CN=admin
  make_certificate controller-manager /CN=system:kube-controller-manager
  make_certificate scheduler /CN=system:kube-scheduler
  make_certificate proxy /CN=system:kube-proxy
  make_certificate dns /CN=system:coredns
  # The storage's three programs change objects of every kind around volumes: a test cluster's rights for them are all.
  make_certificate storage /O=system:masters/CN=storage
  for node in "${NODES[@]}"; do
    make_certificate "kubelet-$node" "/O=system:nodes/CN=system:node:$node" "DNS:$node,IP:$(node_address "$node")"
  done
  for client in admin controller-manager scheduler proxy dns storage "${NODES[@]/#/kubelet-}"; do
    make_kubeconfig "$client" "$ROOT/$client.kubeconfig"
  done
}
