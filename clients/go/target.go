package rerank

import (
	"fmt"
	"net"
	"regexp"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/resolver"
)

// What gRPC resolves itself; any other scheme is a mistake, as http: is.
var schemes = regexp.MustCompile(`^(dns|passthrough|unix|unix-abstract|vsock|xds):`)

// place is where the servers are.
type place struct {
	target    string   // for gRPC
	addresses []string // HOST:PORT, unless gRPC alone can read the target
}

func readTarget(target string) (place, error) {
	if schemes.MatchString(target) {
		named := strings.TrimPrefix(target, "dns:///")
		if _, _, err := net.SplitHostPort(named); err != nil || named == target {
			return place{target: target}, nil
		}
		return place{target, []string{named}}, nil
	}
	var addresses []string
	for _, part := range strings.Split(target, ",") {
		address, err := readAddress(strings.TrimSpace(part))
		if err != nil {
			return place{}, fmt.Errorf("rerank: the target %q: %w", target, err)
		}
		addresses = append(addresses, address)
	}
	if len(addresses) == 1 {
		// All addresses of a name are called in turn, where passthrough, Dial's default, takes the first.
		return place{"dns:///" + addresses[0], addresses}, nil
	}
	return place{listScheme + ":///" + addresses[0], addresses}, nil
}

// readAddress adds the default port to an address that has none.
func readAddress(text string) (string, error) {
	if strings.Contains(text, "//") {
		return "", fmt.Errorf("it is HOST:PORT, without a scheme such as http://")
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		host, port = strings.Trim(text, "[]"), DefaultPort
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return "", err
		}
	}
	if host == "" || port == "" {
		return "", fmt.Errorf("it is HOST:PORT, or HOST for port %s", DefaultPort)
	}
	return net.JoinHostPort(host, port), nil
}

func (p place) dialOptions() []grpc.DialOption {
	if len(p.addresses) < 2 {
		return nil
	}
	return []grpc.DialOption{grpc.WithResolvers(list(p.addresses))}
}

const listScheme = "rerank-list"

// list resolves a target to addresses that were given.
type list []string

func (l list) Scheme() string {
	return listScheme
}

func (l list) Build(
	_ resolver.Target, connection resolver.ClientConn, _ resolver.BuildOptions,
) (resolver.Resolver, error) {
	var state resolver.State
	for _, address := range l {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		// Each server has the name of its own address in its certificate.
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address, ServerName: host})
	}
	connection.UpdateState(state)
	return l, nil
}

func (l list) ResolveNow(resolver.ResolveNowOptions) {}

func (l list) Close() {}
