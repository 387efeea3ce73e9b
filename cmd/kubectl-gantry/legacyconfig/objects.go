package legacyconfig

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/gantry-lb/gantry/api/v1beta1"
	"github.com/gantry-lb/gantry/api/v1beta2"
)

// The protocols of the addresses in a ConfigMap.
const layer2Protocol, bgpProtocol = "layer2", "bgp"

// ConvertedConfig are the objects that mean what a ConfigMap means.
type ConvertedConfig struct {
	Objects []client.Object
	// Remarks are sentences about what the objects cannot say, or say in another way.
	Remarks []string
}

// ConvertConfigMap reads a file with the configuration of MetalLB up to 0.12: a ConfigMap, a values
// file with configInline, or the configuration itself. The objects are in the namespace of the
// ConfigMap, or in the given one if the file names none. The error says what cannot be understood.
func ConvertConfigMap(file []byte, namespace string) (*ConvertedConfig, error) {
	config, ofConfigMap, err := readLegacyConfig(file)
	if err != nil {
		return nil, err
	}
	c := &converter{namespace: cmp.Or(ofConfigMap, namespace), kindByName: map[string]bool{}}
	for i := range config.AddressBlocks {
		if err := c.addAddresses(i+1, &config.AddressBlocks[i]); err != nil {
			return nil, err
		}
	}
	c.addLayer2Advertisement()
	for i := range config.BFDProfiles {
		c.addBFDProfile(&config.BFDProfiles[i])
	}
	for i := range config.Peers {
		c.addPeer(i+1, &config.Peers[i])
	}
	c.addCommunities(config.BGPCommunities)
	return &c.converted, nil
}

// converter makes the objects of one ConfigMap.
type converter struct {
	namespace string
	converted ConvertedConfig
	// kindByName has "Kind/name" of each object.
	kindByName map[string]bool
	// layer2Names are the pools that are announced by ARP and NDP.
	layer2Names []string
}

// nameObject returns the metadata of an object. Names in a ConfigMap may have letters that names of
// objects cannot have.
func (c *converter) nameObject(kind, name string) metav1.ObjectMeta {
	valid := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '.' {
			return r
		}
		return '-'
	}, strings.ToLower(name)), "-.")
	unique := cmp.Or(valid, strings.ToLower(kind))
	for n := 2; c.kindByName[kind+"/"+unique]; n++ {
		unique = valid + "-" + strconv.Itoa(n)
	}
	c.kindByName[kind+"/"+unique] = true
	if unique != name {
		c.remark("%s %q is named %s: change the annotations and objects that name it", kind, name, unique)
	}
	return metav1.ObjectMeta{Name: unique, Namespace: c.namespace}
}

func (c *converter) remark(format string, args ...any) {
	c.converted.Remarks = append(c.converted.Remarks, fmt.Sprintf(format, args...))
}

// addObject adds an object of a kind.
func (c *converter) addObject(o client.Object) { c.converted.Objects = append(c.converted.Objects, o) }

func typeOf(apiVersion, kind string) metav1.TypeMeta {
	return metav1.TypeMeta{APIVersion: apiVersion, Kind: kind}
}

// addAddresses adds a pool, and how it is announced by BGP.
func (c *converter) addAddresses(number int, a *legacyAddresses) error {
	switch {
	case a.Name == "":
		return fmt.Errorf("address pool %d has no name", number)
	case a.Protocol != layer2Protocol && a.Protocol != bgpProtocol:
		return fmt.Errorf("address pool %q has the protocol %q, and not %s or %s", a.Name, a.Protocol, layer2Protocol, bgpProtocol)
	}
	o := &v1beta1.IPAddressPool{TypeMeta: typeOf(v1beta1.GroupVersion.String(), "IPAddressPool"), ObjectMeta: c.nameObject("IPAddressPool", a.Name)}
	o.Spec = v1beta1.IPAddressPoolSpec{Addresses: a.Addresses, AutoAssign: a.AutoAssign, AvoidBuggyIPs: a.AvoidBuggyIPs}
	c.addObject(o)
	if a.Protocol == layer2Protocol {
		c.layer2Names = append(c.layer2Names, o.Name)
		return nil
	}
	advertisements := a.BGPAdvertisements
	if len(advertisements) == 0 {
		advertisements = []legacyBGPAdvertisement{{}}
	}
	for i, from := range advertisements {
		name := o.Name
		if i > 0 {
			name += "-" + strconv.Itoa(i+1)
		}
		to := &v1beta1.BGPAdvertisement{TypeMeta: typeOf(v1beta1.GroupVersion.String(), "BGPAdvertisement"), ObjectMeta: c.nameObject("BGPAdvertisement", name)}
		to.Spec = v1beta1.BGPAdvertisementSpec{
			AggregationLength: from.AggregationLength, AggregationLengthV6: from.AggregationLengthV6, LocalPref: from.LocalPref,
			Communities: from.Communities, IPAddressPools: []string{o.Name},
		}
		c.addObject(to)
	}
	return nil
}

// addLayer2Advertisement announces all pools with the protocol layer2.
func (c *converter) addLayer2Advertisement() {
	if len(c.layer2Names) == 0 {
		return
	}
	o := &v1beta1.L2Advertisement{TypeMeta: typeOf(v1beta1.GroupVersion.String(), "L2Advertisement"), ObjectMeta: c.nameObject("L2Advertisement", layer2Protocol)}
	o.Spec.IPAddressPools = c.layer2Names
	c.addObject(o)
}

func (c *converter) addBFDProfile(from *legacyBFDProfile) {
	o := &v1beta1.BFDProfile{TypeMeta: typeOf(v1beta1.GroupVersion.String(), "BFDProfile"), ObjectMeta: c.nameObject("BFDProfile", from.Name)}
	o.Spec = v1beta1.BFDProfileSpec{
		ReceiveInterval: from.ReceiveInterval, TransmitInterval: from.TransmitInterval, DetectMultiplier: from.DetectMultiplier,
		EchoInterval: from.EchoInterval, EchoMode: from.EchoMode, PassiveMode: from.PassiveMode, MinimumTTL: from.MinimumTTL,
	}
	c.addObject(o)
}

// addPeer adds a router. A ConfigMap has no names for routers.
func (c *converter) addPeer(number int, from *legacyPeer) {
	o := &v1beta2.BGPPeer{TypeMeta: typeOf(v1beta2.GroupVersion.String(), "BGPPeer"), ObjectMeta: c.nameObject("BGPPeer", "peer"+strconv.Itoa(number))}
	o.Spec = v1beta2.BGPPeerSpec{
		MyASN: from.MyASN, PeerASN: from.ASN, PeerAddress: from.Address, SourceAddress: from.SourceAddress, PeerPort: from.Port,
		HoldTime: from.HoldTime, KeepaliveTime: from.KeepaliveTime, RouterID: from.RouterID, Password: from.Password,
		BFDProfile: from.BFDProfile, EBGPMultiHop: from.EBGPMultiHop,
	}
	for _, s := range from.NodeSelectors {
		o.Spec.NodeSelectors = append(o.Spec.NodeSelectors, metav1.LabelSelector{MatchLabels: s.MatchLabels, MatchExpressions: s.MatchExpressions})
	}
	if from.MyASN != from.ASN && !from.EBGPMultiHop {
		c.remark("BGPPeer %s: if %s is on no link of the nodes, set spec.ebgpMultiHop to true", o.Name, from.Address)
	}
	c.addObject(o)
}

func (c *converter) addCommunities(valueByName map[string]string) {
	if len(valueByName) == 0 {
		return
	}
	o := &v1beta1.Community{TypeMeta: typeOf(v1beta1.GroupVersion.String(), "Community"), ObjectMeta: c.nameObject("Community", "communities")}
	for _, name := range slices.Sorted(maps.Keys(valueByName)) {
		o.Spec.Communities = append(o.Spec.Communities, v1beta1.CommunityAlias{Name: name, Value: valueByName[name]})
	}
	c.addObject(o)
}

// FormatAsManifests writes the objects as YAML documents, and the remarks as comments before them.
func FormatAsManifests(c *ConvertedConfig) (string, error) {
	var b strings.Builder
	for _, r := range c.Remarks {
		b.WriteString("# " + r + "\n")
	}
	for _, o := range c.Objects {
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
		if err != nil {
			return "", fmt.Errorf("encoding %s: %w", o.GetName(), err)
		}
		unstructured.RemoveNestedField(content, "status")
		unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
		text, err := yaml.Marshal(content)
		if err != nil {
			return "", fmt.Errorf("encoding %s: %w", o.GetName(), err)
		}
		b.WriteString("---\n" + string(text))
	}
	return b.String(), nil
}
