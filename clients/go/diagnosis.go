package rerank

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
)

const certificateRemedy = "the server wants a certificate from its callers, of a CA that it knows: " +
	"give yours by WithCertificateFiles"

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
		alert,
		certificateRemedy,
	},
}

// ended is what is said of a connection that the other side has closed while it was being made, for any reason.
var ended = regexp.MustCompile(`(?i)server preface|clos|connection reset|broken pipe|EOF|handshake`)

// oversized is what implementations of gRPC say of a message above a limit. Their status is the one of a quota too.
var oversized = regexp.MustCompile(`(?i)\bmessage\b.*\b(larger than|exceeds (the )?max|too large)|\bmessage size\b`)

// alert is what is said of a TLS connection that the other side refuses.
var alert = regexp.MustCompile(`remote error: tls`)

// hello is the client's preface of HTTP/2, and its SETTINGS, which every server answers.
const hello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// lookTime bounds a connection by which the reason of a failed one is looked for.
var lookTime = 2 * time.Second

// explain gives a status that the service has not described its reason, and its text what helps.
func (c *Client) explain(ctx context.Context, failure *Error) {
	switch failure.Code {
	case codes.Unavailable:
		reason, remedy := c.remedy(ctx, failure.Message)
		failure.Reason = reason
		failure.Message = c.target + ": " + remedy + " (" + failure.Message + ")"
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
		if !oversized.MatchString(failure.Message) {
			failure.Reason = UnexpectedStatus
			failure.Message = failure.Code.String() + ": " + failure.Message
			return
		}
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

// remedy finds out by gRPC's words, or by a connection where those do not tell, why no server answers.
func (c *Client) remedy(ctx context.Context, text string) (Reason, string) {
	secure := c.settings.tls != nil
	for _, known := range remedies {
		if secure && known.words.MatchString(text) {
			return TLSFailed, known.remedy
		}
	}
	if ended.MatchString(text) {
		switch {
		case secure && c.look(ctx, c.refusesCertificate):
			return TLSFailed, certificateRemedy
		case !secure && c.look(ctx, speaksTLS):
			return TLSFailed, "the server speaks TLS there: call it with WithTLS, or WithCAFile for a CA of your own"
		case !secure && c.look(ctx, speaksHTTP1):
			return ServerUnavailable, "no gRPC is spoken there but HTTP/1, as at the REST port: the port of gRPC is " +
				DefaultPort + " by default"
		}
	}
	return ServerUnavailable, "no server answers there"
}

// look makes one connection to the first server that takes it, and returns what is found out by it. It never takes
// longer than the call has left.
func (c *Client) look(ctx context.Context, find func(connection net.Conn, host string) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	for _, address := range c.addresses {
		if proxied(address) { // whose connection would be another one
			continue
		}
		connection, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			continue
		}
		defer connection.Close()
		deadline, _ := ctx.Deadline()
		connection.SetDeadline(deadline)
		host, _, _ := net.SplitHostPort(address) // which readTarget has joined
		return find(connection, host)
	}
	return false
}

// proxied reports whether gRPC goes to an address through a proxy of the environment.
func proxied(address string) bool {
	proxy, err := http.ProxyFromEnvironment(&http.Request{URL: &url.URL{Scheme: "https", Host: address}})
	return err != nil || proxy != nil
}

// speaksTLS reports whether the other side answers in TLS, by its certificate or by refusing ours.
func speaksTLS(plain net.Conn, _ string) bool {
	// Only the kind of the answer counts, and nothing is sent.
	err := tls.Client(plain, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}).Handshake()
	return err == nil || alert.MatchString(err.Error())
}

// speaksHTTP1 reports whether the other side answers in words of HTTP/1.
func speaksHTTP1(plain net.Conn, _ string) bool {
	answer := make([]byte, len("HTTP/1"))
	if _, err := plain.Write([]byte(hello)); err != nil {
		return false
	}
	_, err := io.ReadFull(plain, answer)
	return err == nil && string(answer) == "HTTP/1"
}

// refusesCertificate reports whether the other side ends a connection once it has seen whose it is. With TLS 1.3 the
// caller has finished its handshake by then, and gRPC's server closes without a word.
func (c *Client) refusesCertificate(plain net.Conn, host string) bool {
	config := c.settings.tls.Clone()
	config.NextProtos = []string{"h2"}
	if config.ServerName == "" {
		config.ServerName = host
	}
	secure := tls.Client(plain, config)
	if err := secure.Handshake(); err != nil {
		return alert.MatchString(err.Error())
	}
	_, err := secure.Write([]byte(hello))
	if err == nil {
		_, err = secure.Read(make([]byte, 1))
	}
	var slow net.Error
	return err != nil && !(errors.As(err, &slow) && slow.Timeout())
}
