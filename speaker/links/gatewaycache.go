package links

import "time"

const (
	// gatewayReadInterval is how often the default routes are read without an event.
	gatewayReadInterval = time.Minute
	// gatewayReadCostFactor bounds the share of the time for reading routes: the kernel can only
	// list all of them, and a node may have a million. It is one tenth of a CPU at most.
	gatewayReadCostFactor = 10
)

// gatewayCache has the default gateways as last read.
type gatewayCache struct {
	read func() (defaultGatewaysByLink, error)
	now  func() time.Time

	gateways      defaultGatewaysByLink
	readAt        time.Time     // zero if they were never read
	lastReadDelay time.Duration // how long the last reading took
	isStale       bool          // an event came that is not considered yet
}

// markRoutesChanged records that a route, an address or a link changed.
func (c *gatewayCache) markRoutesChanged() { c.isStale = true }

// currentGateways returns the gateways. It reads them after an event, and from time to time, but
// not too often if that takes long.
func (c *gatewayCache) currentGateways() (defaultGatewaysByLink, error) {
	age := c.now().Sub(c.readAt)
	isTooSoon := age < gatewayReadCostFactor*c.lastReadDelay
	if !c.readAt.IsZero() && (isTooSoon || !c.isStale && age < gatewayReadInterval) {
		return c.gateways, nil
	}
	begin := c.now()
	gateways, err := c.read()
	c.readAt = c.now()
	c.lastReadDelay = c.readAt.Sub(begin)
	if err == nil {
		c.isStale = false
	}
	c.gateways = gateways
	return gateways, err
}
