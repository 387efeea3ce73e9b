package links

import "time"

const (
	// gatewayReadInterval is how often the default routes are read without an event.
	gatewayReadInterval = time.Minute
	// gatewayReadPauseFactor bounds the share of the time for reading routes: the kernel can only
	// list all of them, and a node may have a million. It is one tenth of a CPU at most.
	gatewayReadPauseFactor = 10
)

// gatewayCache has the default gateways as last read.
type gatewayCache struct {
	readDefaultRoutes func() (defaultGatewaysByLink, error)
	now               func() time.Time

	gateways            defaultGatewaysByLink
	lastReadAt          time.Time     // zero if they were never read
	lastReadDelay       time.Duration // how long the last reading took
	hasUnreadRouteEvent bool          // an event came that is not considered yet
}

// markRoutesChanged records that a route, an address or a link changed.
func (c *gatewayCache) markRoutesChanged() { c.hasUnreadRouteEvent = true }

// currentGateways returns the gateways. It reads them after an event, and from time to time, but
// not too often if that takes long.
func (c *gatewayCache) currentGateways() (defaultGatewaysByLink, error) {
	age := c.now().Sub(c.lastReadAt)
	isTooSoon := age < gatewayReadPauseFactor*c.lastReadDelay
	if !c.lastReadAt.IsZero() && (isTooSoon || !c.hasUnreadRouteEvent && age < gatewayReadInterval) {
		return c.gateways, nil
	}
	begin := c.now()
	gateways, err := c.readDefaultRoutes()
	c.lastReadAt = c.now()
	c.lastReadDelay = c.lastReadAt.Sub(begin)
	if err == nil {
		c.hasUnreadRouteEvent = false
	}
	c.gateways = gateways
	return gateways, err
}
