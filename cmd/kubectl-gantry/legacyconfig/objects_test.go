package legacyconfig

import (
	"strings"
	"testing"
)

// configMapManifest has every field of the configuration in a ConfigMap.
const configMapManifest = `
apiVersion: v1
kind: ConfigMap
metadata: {name: config, namespace: lb}
data:
  config: |
    address-pools:
    - {name: default, protocol: layer2, addresses: [192.0.2.10-192.0.2.20]}
    - {name: Lab_Pool, protocol: layer2, addresses: [192.0.2.64/28], auto-assign: false, avoid-buggy-ips: true}
    - name: routed
      protocol: bgp
      addresses: [198.51.100.0/24]
      bgp-advertisements:
      - {aggregation-length: 32, localpref: 100, communities: [no-advertise]}
      - {aggregation-length: 24, aggregation-length-v6: 64}
    - {name: plain, protocol: bgp, addresses: ["2001:db8::/120"]}
    peers:
    - my-asn: 64512
      peer-asn: 64513
      peer-address: 203.0.113.1
      peer-port: 1179
      source-address: 203.0.113.2
      hold-time: 90s
      keepalive-time: 30s
      router-id: 203.0.113.9
      password: secret
      bfd-profile: fast
      node-selectors:
      - match-labels: {rack: a}
        match-expressions: [{key: zone, operator: In, values: [x]}]
    - {my-asn: 64512, peer-asn: 64514, peer-address: 203.0.113.3, ebgp-multihop: true}
    bgp-communities: {no-advertise: 65535:65282}
    bfd-profiles:
    - {name: fast, receive-interval: 100, transmit-interval: 110, detect-multiplier: 4, echo-interval: 120, echo-mode: true, passive-mode: true, minimum-ttl: 253}
`

// wantedManifests are the objects for configMapManifest.
const wantedManifests = `# IPAddressPool "Lab_Pool" is named lab-pool: change the annotations and objects that name it
# BGPPeer peer1: if 203.0.113.1 is on no link of the nodes, set spec.ebgpMultiHop to true
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata:
  name: default
  namespace: lb
spec:
  addresses:
  - 192.0.2.10-192.0.2.20
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata:
  name: lab-pool
  namespace: lb
spec:
  addresses:
  - 192.0.2.64/28
  autoAssign: false
  avoidBuggyIPs: true
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata:
  name: routed
  namespace: lb
spec:
  addresses:
  - 198.51.100.0/24
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata:
  name: routed
  namespace: lb
spec:
  aggregationLength: 32
  communities:
  - no-advertise
  ipAddressPools:
  - routed
  localPref: 100
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata:
  name: routed-2
  namespace: lb
spec:
  aggregationLength: 24
  aggregationLengthV6: 64
  ipAddressPools:
  - routed
---
apiVersion: metallb.io/v1beta1
kind: IPAddressPool
metadata:
  name: plain
  namespace: lb
spec:
  addresses:
  - 2001:db8::/120
---
apiVersion: metallb.io/v1beta1
kind: BGPAdvertisement
metadata:
  name: plain
  namespace: lb
spec:
  ipAddressPools:
  - plain
---
apiVersion: metallb.io/v1beta1
kind: L2Advertisement
metadata:
  name: layer2
  namespace: lb
spec:
  ipAddressPools:
  - default
  - lab-pool
---
apiVersion: metallb.io/v1beta1
kind: BFDProfile
metadata:
  name: fast
  namespace: lb
spec:
  detectMultiplier: 4
  echoInterval: 120
  echoMode: true
  minimumTtl: 253
  passiveMode: true
  receiveInterval: 100
  transmitInterval: 110
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata:
  name: peer1
  namespace: lb
spec:
  bfdProfile: fast
  holdTime: 1m30s
  keepaliveTime: 30s
  myASN: 64512
  nodeSelectors:
  - matchExpressions:
    - key: zone
      operator: In
      values:
      - x
    matchLabels:
      rack: a
  password: secret
  peerASN: 64513
  peerAddress: 203.0.113.1
  peerPort: 1179
  routerID: 203.0.113.9
  sourceAddress: 203.0.113.2
---
apiVersion: metallb.io/v1beta2
kind: BGPPeer
metadata:
  name: peer2
  namespace: lb
spec:
  ebgpMultiHop: true
  myASN: 64512
  peerASN: 64514
  peerAddress: 203.0.113.3
---
apiVersion: metallb.io/v1beta1
kind: Community
metadata:
  name: communities
  namespace: lb
spec:
  communities:
  - name: no-advertise
    value: 65535:65282
`

func TestConfigMapBecomesObjects(t *testing.T) {
	converted, err := ConvertConfigMap([]byte(configMapManifest), "metallb-system")
	if err != nil {
		t.Fatal(err)
	}
	text, err := FormatAsManifests(converted)
	if err != nil {
		t.Fatal(err)
	}
	if text != wantedManifests {
		t.Errorf("the ConfigMap becomes\n%s\nwant\n%s", text, wantedManifests)
	}
}

// TestOtherFormsOfTheConfiguration: the configuration also stands in values files, and alone.
func TestOtherFormsOfTheConfiguration(t *testing.T) {
	const config = "address-pools: [{name: default, protocol: layer2, addresses: [192.0.2.0/24]}]"
	for _, file := range []string{config, "configInline: {" + config + "}"} {
		converted, err := ConvertConfigMap([]byte(file), "metallb-system")
		if err != nil {
			t.Fatal(err)
		}
		if len(converted.Objects) != 2 || converted.Objects[0].GetNamespace() != "metallb-system" {
			t.Errorf("%s becomes %v", file, converted.Objects)
		}
	}
}

// TestFileThatCannotBeUnderstoodIsNamed: nothing of a configuration may be lost without a word.
func TestFileThatCannotBeUnderstoodIsNamed(t *testing.T) {
	for file, want := range map[string]string{
		"{}": "there is no configuration of MetalLB",
		"kind: IPAddressPool\napiVersion: metallb.io/v1beta1":                            "the file has a IPAddressPool",
		"{kind: ConfigMap, data: {other: a}}":                                            "a ConfigMap has it in its entry config",
		"address-pools: [{name: a, protocol: layer3, addresses: []}]":                    `address pool "a" has the protocol "layer3"`,
		"address-pools: [{protocol: bgp}]":                                               "address pool 1 has no name",
		"address-pools: [{name: a, protocol: bgp, adresses: [192.0.2.0/24]}]":            `unknown field "adresses"`,
		"peers: [{my-asn: 1, peer-asn: 2, peer-address: 192.0.2.1, hold-time: a while}]": "a while",
	} {
		_, err := ConvertConfigMap([]byte(file), "metallb-system")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s gives the error %v, want %q", file, err, want)
		}
	}
}
