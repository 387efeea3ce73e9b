package bgp

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"github.com/gantry-lb/gantry/api/names"
	"github.com/gantry-lb/gantry/speaker/bgp/message"
)

// sessionFault is why a session ended, with the Reason that users see.
type sessionFault struct {
	reason names.Reason
	error
}

// Unwrap returns the error without the Reason.
func (f sessionFault) Unwrap() error { return f.error }

// withoutConnectionAddresses returns an error of a connection without the addresses of both ends.
// The port of this node differs in each attempt. With it, each attempt would have another text, and
// the conditions of all Services would be written each time.
func withoutConnectionAddresses(err error) error {
	var ofConnection *net.OpError
	if errors.As(err, &ofConnection) {
		return ofConnection.Err
	}
	return err
}

// reasonOfFailure returns the Reason for an error that ended a session or prevented it.
func reasonOfFailure(err error) names.Reason {
	var fault sessionFault
	var refusal receivedNotification
	var own *message.Notification
	var network net.Error
	switch {
	case errors.As(err, &refusal): // first, since a router says why only once
		return reasonOfRouterNotification(refusal.notification)
	case errors.As(err, &fault):
		return fault.reason
	case errors.As(err, &own):
		return reasonOfOwnNotification(own)
	case errors.Is(err, syscall.ECONNREFUSED):
		return names.ReasonConnectionRefused
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return names.ReasonUnreachable
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.ENODEV):
		return names.ReasonSourceUnavailable
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT), errors.As(err, &network) && network.Timeout():
		return names.ReasonNoAnswer
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return names.ReasonConnectionLost
	}
	return names.ReasonNoSession
}

// reasonOfRouterNotification returns the Reason for a NOTIFICATION of the router.
func reasonOfRouterNotification(n *message.Notification) names.Reason {
	switch {
	case n.Code == message.CodeOpenMessageError && n.Subcode == 2:
		return names.ReasonWrongASNumber
	case n.Code == message.CodeHoldTimerExpired:
		return names.ReasonHoldTimeExpired
	case n.Code == message.CodeCease && n.Subcode == message.CeaseMaxPrefixes:
		return names.ReasonTooManyPrefixes
	case n.Code == message.CodeCease && n.Subcode == message.CeaseBFDDown:
		return names.ReasonBFDDown
	}
	return names.ReasonRefusedByRouter
}

// reasonOfOwnNotification returns the Reason for a NOTIFICATION that this side sent or would send.
func reasonOfOwnNotification(n *message.Notification) names.Reason {
	switch {
	case n.Code == message.CodeOpenMessageError && n.Subcode == 2:
		return names.ReasonWrongASNumber
	case n.Code == message.CodeOpenMessageError && n.Subcode == 7:
		return names.ReasonFamilyNotCarried
	case n.Code == message.CodeHoldTimerExpired:
		return names.ReasonHoldTimeExpired
	}
	return names.ReasonProtocolError
}
