package main

import (
	"context"
	"fmt"
	"net"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/gantry-lb/gantry/speaker/bgp/message"
	"github.com/gantry-lb/gantry/test/cluster"
)

// measureUpdateDelayOfEndpointChange removes and restores the endpoint of one Service of many, and
// measures from the watch event until the router gets the UPDATE.
func measureUpdateDelayOfEndpointChange(ctx context.Context, s *cluster.Cluster, many int) error {
	const name = "r05000"
	heard, stop, err := listenForBGPUpdates(s)
	if err != nil {
		return err
	}
	defer stop()
	w, err := s.API.Watch(ctx, &discoveryv1.EndpointSliceList{}, client.InNamespace("default"), client.MatchingFields{"metadata.name": name})
	if err != nil {
		return fmt.Errorf("watching the endpoints: %w", err)
	}
	defer w.Stop()
	<-w.ResultChan() // the current state
	var took []time.Duration
	for i := range assignmentSampleCount {
		slice := &discoveryv1.EndpointSlice{}
		slice.Namespace, slice.Name = "default", name
		select {
		case <-heard: // per second one of the change before
		default:
		}
		patch := fmt.Sprintf(`[{"op":"replace","path":"/endpoints/0/conditions/ready","value":%t}]`, i%2 == 1)
		if err := s.API.Patch(ctx, slice, client.RawPatch(types.JSONPatchType, []byte(patch))); err != nil {
			return fmt.Errorf("changing the endpoints: %w", err)
		}
		if _, ok := <-w.ResultChan(); !ok {
			return fmt.Errorf("the watch of the endpoints ended")
		}
		seen := time.Now()
		select {
		case at := <-heard:
			took = append(took, max(at.Sub(seen), 0))
		case <-time.After(time.Minute):
			return fmt.Errorf("the router got no UPDATE after change %d", i)
		}
		time.Sleep(100 * time.Millisecond)
	}
	printMinMedianAndMax(fmt.Sprintf("an endpoint of one Service of %d, from the watch event to the UPDATE", many), took)
	return nil
}

// listenForBGPUpdates reports the times when the router gets an UPDATE from node1.
func listenForBGPUpdates(s *cluster.Cluster) (<-chan time.Time, func(), error) {
	c, err := s.NamespaceOfHost("router").ListenPacket("ip4:tcp", "0.0.0.0")
	if err != nil {
		return nil, nil, fmt.Errorf("listening at the router: %w", err)
	}
	out := make(chan time.Time, 1)
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			if a, ok := from.(*net.IPAddr); ok && a.String() == "192.168.0.11" && isBGPUpdate(b[:n]) {
				select {
				case out <- time.Now():
				default: // per second one of the same change
				}
			}
		}
	}()
	return out, func() { c.Close() }, nil
}

// isBGPUpdate reports whether a TCP segment begins with a BGP UPDATE.
func isBGPUpdate(segment []byte) bool {
	if len(segment) < 20 {
		return false
	}
	offset := int(segment[12]>>4) * 4
	if len(segment) < offset+len(message.EncodeKeepalive()) {
		return false
	}
	return message.TypeOf(segment[offset:]) == message.TypeUpdate
}
