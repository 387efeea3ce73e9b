package probe

import (
	"errors"
	"net"
	"strings"
	"syscall"
)

// classifyError says how an attempt ended that did not succeed.
func classifyError(err error) Outcome {
	var network net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return OutcomeRefused
	case errors.Is(err, syscall.ENETUNREACH):
		return OutcomeNoRoute
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EHOSTDOWN):
		return OutcomeHostUnreachable
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return OutcomeProhibited
	case errors.As(err, &network) && network.Timeout():
		return OutcomeSilent
	case strings.Contains(err.Error(), "refused"): // Windows has numbers of its own
		return OutcomeRefused
	}
	return OutcomeSilent
}
