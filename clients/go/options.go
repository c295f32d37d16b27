package rerank

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
)

const (
	// DefaultTimeout is the deadline of a call whose context has none.
	DefaultTimeout = 30 * time.Second
	// DefaultRetries is the number of further attempts that a call may take.
	DefaultRetries = 3

	// gRPC cuts a policy of more than five attempts down to five.
	maxRetries = 4

	mebibyte = 1 << 20
	// What the server takes, and what it may send.
	requestBytes = 8 * mebibyte
	replyBytes   = 16 * mebibyte

	tokenHeader = "authorization"
)

// Option is a setting of a client, for New.
type Option func(*settings) error

type settings struct {
	token   string
	timeout time.Duration
	retries int
	tls     *tls.Config // nil is plaintext
	dial    []grpc.DialOption
}

// WithToken sends a token with each call. A context whose metadata has an authorization of its own keeps that.
func WithToken(token string) Option {
	return func(s *settings) error {
		for _, character := range token {
			// The text itself is in no error.
			if character < '!' || character > '~' {
				return errors.New("rerank: the token has to be printable ASCII without spaces")
			}
		}
		if token == "" {
			return errors.New("rerank: the token is empty: leave WithToken out to send none")
		}
		s.token = token
		return nil
	}
}

// WithTimeout sets the deadline of calls whose context has none, all attempts together; 30 seconds by default.
func WithTimeout(timeout time.Duration) Option {
	return func(s *settings) error {
		if timeout <= 0 {
			return fmt.Errorf("rerank: the timeout has to be above 0, not %v", timeout)
		}
		s.timeout = timeout
		return nil
	}
}

// WithRetries sets how many further attempts a call may take, 0 to 4; 3 by default.
func WithRetries(retries int) Option {
	return func(s *settings) error {
		if retries < 0 || retries > maxRetries {
			return fmt.Errorf("rerank: retries are 0 to %d, not %d", maxRetries, retries)
		}
		s.retries = retries
		return nil
	}
}

// WithTLS calls by TLS, and trusts the CAs of this system. The other options of TLS mean it by themselves.
func WithTLS() Option {
	return func(s *settings) error {
		s.secure()
		return nil
	}
}

// WithTLSConfig calls by TLS with a configuration of the caller's own. Options after it change a copy of it.
func WithTLSConfig(config *tls.Config) Option {
	return func(s *settings) error {
		if config == nil {
			return errors.New("rerank: WithTLSConfig has no configuration: WithTLS means the usual one")
		}
		s.tls = config.Clone()
		return nil
	}
}

// WithCAFile calls by TLS, and trusts the CAs of a file of PEM alone.
func WithCAFile(path string) Option {
	return func(s *settings) error {
		pem, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("rerank: the file of CAs: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("rerank: the file of CAs: %s has no certificate in PEM", path)
		}
		return WithCAPool(pool)(s)
	}
}

// WithCAPool calls by TLS, and trusts these CAs alone.
func WithCAPool(pool *x509.CertPool) Option {
	return func(s *settings) error {
		s.secure().RootCAs = pool
		return nil
	}
}

// WithCertificateFiles calls by TLS, and shows a server of mutual TLS this certificate. The files are of PEM. They
// are read now, and again for each connection, so that a renewed certificate needs no new client.
func WithCertificateFiles(certificate, key string) Option {
	return func(s *settings) error {
		read := func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(certificate, key)
			if err != nil {
				return nil, fmt.Errorf("rerank: the client's certificate: %w", err)
			}
			return &pair, nil
		}
		if _, err := read(nil); err != nil {
			return err
		}
		s.secure().GetClientCertificate = read
		return nil
	}
}

// WithCertificate calls by TLS, and shows a server of mutual TLS this certificate.
func WithCertificate(certificate tls.Certificate) Option {
	return func(s *settings) error {
		s.secure().Certificates = []tls.Certificate{certificate}
		return nil
	}
}

// WithServerName calls by TLS, and expects this name in the server's certificate in place of the target's.
func WithServerName(name string) Option {
	return func(s *settings) error {
		s.secure().ServerName = name
		return nil
	}
}

// WithDialOptions adds options of gRPC's own, which win over those of this package.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(s *settings) error {
		s.dial = append(s.dial, options...)
		return nil
	}
}

func (s *settings) secure() *tls.Config {
	if s.tls == nil {
		s.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return s.tls
}

func (s *settings) dialOptions() ([]grpc.DialOption, error) {
	config, err := serviceConfig(s.retries)
	if err != nil {
		return nil, err
	}
	// Its newer name, in a package of its own, is not in gRPC 1.33.
	security := grpc.WithInsecure()
	if s.tls != nil {
		security = grpc.WithTransportCredentials(credentials.NewTLS(s.tls))
	}
	options := []grpc.DialOption{
		security,
		grpc.WithUserAgent("rerank-grpc-go/" + Version),
		grpc.WithDefaultServiceConfig(config),
		grpc.WithDisableServiceConfig(), // of DNS, which would be asked for it by TXT
		grpc.WithDefaultCallOptions(
			grpc.MaxCallSendMsgSize(requestBytes),
			grpc.MaxCallRecvMsgSize(replyBytes),
			// A request over this is never retried, silently; the default is 256 KiB.
			grpc.MaxRetryRPCBufferSize(requestBytes+mebibyte),
		),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			// A peer that stops acknowledging is noticed in 10 s: with a keepalive gRPC sets TCP_USER_TIMEOUT.
			// The ping itself stays above the 5 minutes below which servers close the connection by default,
			// and is never sent without calls.
			Time:    330 * time.Second,
			Timeout: 10 * time.Second,
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			// A server that comes back is found within 2 s, not 2 minutes.
			Backoff: backoff.Config{
				BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second,
			},
			MinConnectTimeout: 5 * time.Second,
		}),
	}
	return append(options, s.dial...), nil
}
