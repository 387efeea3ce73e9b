package cluster

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"
)

// connectionTimeout is how long a connection may need for its answer. A user has pressed the button
// again by then.
const connectionTimeout = 2 * time.Second

// ConnectionStream is a client that opens connections at a constant rate, with one HTTP request
// over each.
type ConnectionStream struct {
	*RequestStream
	outcomes chan ConnectionOutcome
	done     chan []ConnectionOutcome
}

// ConnectionOutcome is what became of one connection.
type ConnectionOutcome struct {
	StartedAt time.Time
	Latency   time.Duration
	Err       error
}

// StartConnectionStream opens connections to a URL, rate per second. A connection fails if it has
// no answer within two seconds.
func (s *Cluster) StartConnectionStream(ctx context.Context, host, url string, rate int) *ConnectionStream {
	st := &ConnectionStream{outcomes: make(chan ConnectionOutcome), done: make(chan []ConnectionOutcome, 1)}
	st.RequestStream = startParallelRequestStream(ctx, rate, func(ctx context.Context, r *RequestStream, seq int) {
		begun := time.Now()
		err := s.fetchOverNewConnection(ctx, host, url)
		st.outcomes <- ConnectionOutcome{begun, time.Since(begun), err}
		if err == nil {
			r.recordAnswer(seq)
		}
	})
	go func() {
		var all []ConnectionOutcome
		for {
			select {
			case o := <-st.outcomes:
				all = append(all, o)
			case <-st.stoppedSignal:
				st.done <- all
				return
			}
		}
	}()
	return st
}

func (s *Cluster) fetchOverNewConnection(ctx context.Context, host, url string) error {
	ctx, cancel := context.WithTimeout(ctx, connectionTimeout)
	defer cancel()
	c := http.Client{Transport: &http.Transport{DialContext: s.NamespaceOfHost(host).Dial, DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	r, err := c.Do(req)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if _, err := io.ReadAll(r.Body); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	return nil
}

// StopAndListOutcomes stops the client, waits for the connections that are open, and returns what
// became of all, in the order of their beginning.
func (s *ConnectionStream) StopAndListOutcomes() []ConnectionOutcome {
	s.StopSending()
	all := <-s.done
	slices.SortFunc(all, func(x, y ConnectionOutcome) int { return x.StartedAt.Compare(y.StartedAt) })
	return all
}

// CountFailedConnections counts the connections that began within the time, and those of them that
// failed. median is the median latency of the others.
func CountFailedConnections(all []ConnectionOutcome, from, to time.Time) (failed, count int, median time.Duration) {
	var latencies []time.Duration
	for _, o := range all {
		if o.StartedAt.Before(from) || !o.StartedAt.Before(to) {
			continue
		}
		count++
		if o.Err != nil {
			failed++
			continue
		}
		latencies = append(latencies, o.Latency)
	}
	if len(latencies) > 0 {
		slices.Sort(latencies)
		median = latencies[len(latencies)/2]
	}
	return failed, count, median
}

const (
	// deathConnectionsPerSecond is the rate of a client on the LAN while a node dies.
	deathConnectionsPerSecond = 50
	// faultObservedInterval is how long connections are watched after a fault. Kubernetes takes
	// longer to notice the death of a node.
	faultObservedInterval = 20 * time.Second
)

// ConnectingClient is a client that opens connections to a URL while a fault is caused.
type ConnectingClient struct {
	Host, URL string
	// ConnectionsPerSecond is its rate.
	ConnectionsPerSecond int
}

// ClientsOnLAN returns a client on the LAN for each URL. It opens 50 connections a second.
func ClientsOnLAN(urls []string) []ConnectingClient {
	var out []ConnectingClient
	for _, u := range urls {
		out = append(out, ConnectingClient{"client", u, deathConnectionsPerSecond})
	}
	return out
}

// FaultOutcome says what a fault cost a client: how many of its connections failed at first, while
// the fault was noticed, and later.
type FaultOutcome struct {
	Client ConnectingClient
	// NoticeInterval is the time at first.
	NoticeInterval              time.Duration
	FailedAtFirst, CountAtFirst int
	Failed, Count               int
	MedianBefore, MedianAfter   time.Duration
}

// String describes the outcome in one line.
func (o FaultOutcome) String() string {
	return fmt.Sprintf("%s from %s: %d of %d connections failed in the first %v, %d of %d after it; median latency %.1f ms before, %.1f ms after",
		o.Client.URL, o.Client.Host, o.FailedAtFirst, o.CountAtFirst, o.NoticeInterval, o.Failed, o.Count, float64(o.MedianBefore.Microseconds())/1000, float64(o.MedianAfter.Microseconds())/1000)
}

// KillNodeWhileClientsConnect kills a node while the clients open connections.
func (s *Cluster) KillNodeWhileClientsConnect(ctx context.Context, clients []ConnectingClient, notice time.Duration, node string) ([]FaultOutcome, error) {
	return s.CauseFaultWhileClientsConnect(ctx, clients, notice, func() error { return s.KillNode(ctx, node) })
}

// CauseFaultWhileClientsConnect causes a fault while the clients open connections. It counts those
// apart that begin within the given time after it.
func (s *Cluster) CauseFaultWhileClientsConnect(ctx context.Context, clients []ConnectingClient, notice time.Duration, causeFault func() error) ([]FaultOutcome, error) {
	var streams []*ConnectionStream
	for _, c := range clients {
		st := s.StartConnectionStream(ctx, c.Host, c.URL, c.ConnectionsPerSecond)
		defer st.StopSending()
		if err := st.AwaitMoreAnswers(ctx, c.ConnectionsPerSecond); err != nil {
			return nil, err
		}
		streams = append(streams, st)
	}
	causedAt := time.Now()
	if err := causeFault(); err != nil {
		return nil, err
	}
	noticed, end := causedAt.Add(notice), causedAt.Add(faultObservedInterval)
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(time.Until(end)):
	}
	var out []FaultOutcome
	for i, st := range streams {
		all, o := st.StopAndListOutcomes(), FaultOutcome{Client: clients[i], NoticeInterval: notice}
		_, _, o.MedianBefore = CountFailedConnections(all, time.Time{}, causedAt)
		o.FailedAtFirst, o.CountAtFirst, _ = CountFailedConnections(all, causedAt, noticed)
		o.Failed, o.Count, o.MedianAfter = CountFailedConnections(all, noticed, end)
		out = append(out, o)
	}
	return out, nil
}

// AwaitURLsOfPodOnEachNode waits until the Service of PodOnEachNodeManifest answers at that many
// addresses, and until all its Pods are ready.
func (s *Cluster) AwaitURLsOfPodOnEachNode(ctx context.Context, addresses int) ([]string, error) {
	var urls []string
	err := AwaitNoError(ctx, "addresses", func(ctx context.Context) error {
		svc, err := s.GetService(ctx, "default", "everywhere")
		if err != nil {
			return err
		}
		urls = nil
		for _, in := range svc.Status.LoadBalancer.Ingress {
			urls = append(urls, "http://"+net.JoinHostPort(in.IP, "80")+"/")
		}
		if len(urls) != addresses {
			return fmt.Errorf("it has %v", urls)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if _, err := s.RunKubectl(ctx, "", "rollout", "status", "--timeout=60s", "daemonset/everywhere"); err != nil {
		return nil, err
	}
	for _, u := range urls {
		if _, err := s.FetchURLUntilSuccess(ctx, "client", u); err != nil {
			return nil, err
		}
	}
	return urls, nil
}
