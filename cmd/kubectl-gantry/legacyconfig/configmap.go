// Package legacyconfig turns the configuration that MetalLB read from a ConfigMap, up to its
// version 0.12, into objects of the metallb.io API. It knows no cluster.
package legacyconfig

import (
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// legacyConfig is the configuration in the ConfigMap.
type legacyConfig struct {
	Peers          []legacyPeer       `json:"peers"`
	BGPCommunities map[string]string  `json:"bgp-communities"`
	AddressBlocks  []legacyAddresses  `json:"address-pools"`
	BFDProfiles    []legacyBFDProfile `json:"bfd-profiles"`
}

type legacyPeer struct {
	MyASN         uint32               `json:"my-asn"`
	ASN           uint32               `json:"peer-asn"`
	Address       string               `json:"peer-address"`
	SourceAddress string               `json:"source-address"`
	Port          uint16               `json:"peer-port"`
	HoldTime      *metav1.Duration     `json:"hold-time"`
	KeepaliveTime *metav1.Duration     `json:"keepalive-time"`
	RouterID      string               `json:"router-id"`
	NodeSelectors []legacyNodeSelector `json:"node-selectors"`
	Password      string               `json:"password"`
	BFDProfile    string               `json:"bfd-profile"`
	EBGPMultiHop  bool                 `json:"ebgp-multihop"`
}

type legacyNodeSelector struct {
	MatchLabels      map[string]string                 `json:"match-labels"`
	MatchExpressions []metav1.LabelSelectorRequirement `json:"match-expressions"`
}

// legacyAddresses is a pool of addresses, with how it is announced.
type legacyAddresses struct {
	Protocol          string                   `json:"protocol"`
	Name              string                   `json:"name"`
	Addresses         []string                 `json:"addresses"`
	AvoidBuggyIPs     bool                     `json:"avoid-buggy-ips"`
	AutoAssign        *bool                    `json:"auto-assign"`
	BGPAdvertisements []legacyBGPAdvertisement `json:"bgp-advertisements"`
}

type legacyBGPAdvertisement struct {
	AggregationLength   *int32   `json:"aggregation-length"`
	AggregationLengthV6 *int32   `json:"aggregation-length-v6"`
	LocalPref           uint32   `json:"localpref"`
	Communities         []string `json:"communities"`
}

type legacyBFDProfile struct {
	Name             string  `json:"name"`
	ReceiveInterval  *uint32 `json:"receive-interval"`
	TransmitInterval *uint32 `json:"transmit-interval"`
	DetectMultiplier *uint32 `json:"detect-multiplier"`
	EchoInterval     *uint32 `json:"echo-interval"`
	EchoMode         *bool   `json:"echo-mode"`
	PassiveMode      *bool   `json:"passive-mode"`
	MinimumTTL       *uint32 `json:"minimum-ttl"`
}

// configMapFile is a file with the configuration: a ConfigMap, a values file of MetalLB's chart, or
// the configuration itself.
type configMapFile struct {
	Kind     string            `json:"kind"`
	Metadata metav1.ObjectMeta `json:"metadata"`
	Data     map[string]string `json:"data"`
	// ConfigInline is how the configuration stands in a values file.
	ConfigInline map[string]any `json:"configInline"`
}

// errNoConfiguration means that a file has none of the three forms.
var errNoConfiguration = errors.New("there is no configuration of MetalLB: a ConfigMap has it in its entry config, a values file below configInline")

// readLegacyConfig finds the configuration in a file. The namespace is that of the ConfigMap; empty
// if the file has none.
func readLegacyConfig(file []byte) (config *legacyConfig, namespace string, err error) {
	var outer configMapFile
	if err := yaml.Unmarshal(file, &outer); err != nil {
		return nil, "", fmt.Errorf("reading the file: %w", err)
	}
	text := file
	switch {
	case outer.Kind == "ConfigMap":
		text = []byte(outer.Data["config"])
		if len(text) == 0 {
			return nil, "", errNoConfiguration
		}
	case outer.Kind != "":
		return nil, "", fmt.Errorf("the file has a %s: %w", outer.Kind, errNoConfiguration)
	case outer.ConfigInline != nil:
		if text, err = yaml.Marshal(outer.ConfigInline); err != nil {
			return nil, "", fmt.Errorf("reading configInline: %w", err)
		}
	}
	config = &legacyConfig{}
	if err := yaml.UnmarshalStrict(text, config); err != nil {
		return nil, "", fmt.Errorf("reading the configuration: %w", err)
	}
	if len(config.AddressBlocks)+len(config.Peers)+len(config.BGPCommunities)+len(config.BFDProfiles) == 0 {
		return nil, "", errNoConfiguration
	}
	return config, outer.Metadata.Namespace, nil
}
