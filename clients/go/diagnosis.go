package rerank

import (
	"context"
	"crypto/tls"
	"net"
	"regexp"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
)

// What gRPC and Go say where no connection comes about, and what its caller can do.
var remedies = []struct {
	words  *regexp.Regexp
	remedy string
}{
	{
		regexp.MustCompile(`signed by unknown authority|certificate is not trusted`),
		"the server's certificate is of a CA that is not trusted here: name its CA by WithCAFile",
	},
	{
		regexp.MustCompile(`certificate is valid for|doesn't contain any IP SANs|not valid for any names|cannot validate`),
		"the server's certificate is for another name: call it by its name, or give that by WithServerName",
	},
	{
		regexp.MustCompile(`certificate has expired or is not yet valid`),
		"the server's certificate is out of its time: have it renewed, or set the clock that is wrong",
	},
	{
		regexp.MustCompile(`first record does not look like a TLS handshake`),
		"the server speaks no TLS there: call it without the options of TLS",
	},
	{
		regexp.MustCompile(`remote error: tls|client's certificate`),
		"the server wants a certificate from its callers, of a CA that it knows: give yours by WithCertificateFiles",
	},
}

// ended is what is said of a connection that the other side has closed while it was being made, for any reason.
var ended = regexp.MustCompile(`(?i)server preface|connection (is )?clos|connection reset|broken pipe|EOF|handshake`)

// lookTime bounds the connection by which the reason of a failed one is looked for.
const lookTime = 2 * time.Second

// explain gives a status that the service has not described its reason, and its text what helps.
func (c *Client) explain(ctx context.Context, failure *Error) {
	switch failure.Code {
	case codes.Unavailable:
		failure.Reason = ServerUnavailable
		if remedy := c.remedy(failure.Message); remedy != "" {
			failure.Reason = TLSFailed
			failure.Message = remedy + " (" + failure.Message + ")"
		}
	case codes.DeadlineExceeded:
		failure.Reason = DeadlineExceeded
		failure.Message = "no answer came within the deadline: " + failure.Message
	case codes.Canceled:
		failure.Reason = Cancelled
		if ctx.Err() == nil && c.connection.GetState() != connectivity.Shutdown {
			failure.Reason = UnexpectedStatus
			failure.Message = "the server or a proxy ended the call: its request came too slowly, or its results " +
				"were not read (" + failure.Message + ")"
		}
	case codes.ResourceExhausted:
		failure.Reason = MessageTooLarge
		failure.Message += ": send fewer documents in a call, or ask for fewer back"
	case codes.Unimplemented:
		failure.Reason = MethodUnknown
		failure.Message = "the server has no such method: another service answers there, or one of another " +
			"version than this client's " + Version + " (" + failure.Message + ")"
	case codes.Unauthenticated:
		failure.Reason = Unauthenticated
	case codes.PermissionDenied:
		failure.Reason = PermissionDenied
	default:
		failure.Reason = UnexpectedStatus
		failure.Message = failure.Code.String() + ": " + failure.Message
	}
}

// remedy says what keeps TLS from coming about, and what to do; "" where TLS is not the reason.
func (c *Client) remedy(text string) string {
	for _, known := range remedies {
		if c.settings.tls != nil && known.words.MatchString(text) {
			return known.remedy
		}
	}
	if c.settings.tls == nil && ended.MatchString(text) && c.speaksTLS() {
		return "the server speaks TLS there: call it with WithTLS, or WithCAFile for a CA of your own"
	}
	return ""
}

// speaksTLS connects once and looks whether the other side answers in TLS, by a certificate or by refusing ours.
func (c *Client) speaksTLS() bool {
	for _, address := range c.addresses {
		plain, err := net.DialTimeout("tcp", address, lookTime)
		if err != nil {
			continue
		}
		defer plain.Close()
		plain.SetDeadline(time.Now().Add(lookTime))
		// Nothing but the kind of the answer is looked at, and nothing is sent.
		secure := tls.Client(plain, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
		err = secure.Handshake()
		return err == nil || regexp.MustCompile(`remote error: tls`).MatchString(err.Error())
	}
	return false
}
