// Package gobgp will be the speaker's side towards GoBGP, and its only importer. This version of the speaker announces no
// routes: the package fixes the version of the library that everything else is built beside, and nothing calls it yet.
package gobgp

import (
	_ "github.com/osrg/gobgp/v3/pkg/packet/bgp" // the wire format, which the sessions will speak
)
