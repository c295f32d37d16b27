package rerank

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	rerankv1 "github.com/rerank-grpc/rerank-grpc/clients/go/rerank/v1"
)

const testToken = "rrk_go_test"

// Both are real, with the embedded model.
var (
	plain  = &server{}
	secure = &server{options: []string{
		"--tls-cert", "server.pem", "--tls-key", "server.key", "--tls-client-ca", "ca.pem",
	}}
	// The folder in which the servers run, with the certificates.
	folder string
)

func TestMain(m *testing.M) {
	if lookTime != 2*time.Second {
		panic("a look lasts two seconds at most")
	}
	lookTime = 20 * time.Second // for a server that a busy machine lets wait
	os.Exit(func() int {
		var err error
		if folder, err = os.MkdirTemp("", "rerank-go"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(folder)
		defer plain.stop()
		defer secure.stop()
		// They take their time, so both at once.
		go plain.ready()
		go secure.ready()
		return m.Run()
	}())
}

// server is rerank-grpc serve, of this repository.
type server struct {
	options []string
	once    sync.Once
	command *exec.Cmd
	target  string
	problem error
}

// at returns where it serves.
func (s *server) at(t *testing.T) string {
	t.Helper()
	if err := s.ready(); err != nil {
		t.Fatal(err)
	}
	return s.target
}

// ready returns once it serves, or has failed to.
func (s *server) ready() error {
	s.once.Do(func() {
		if len(s.options) > 0 {
			s.problem = certify()
		}
		if s.problem == nil {
			s.problem = s.start()
		}
	})
	return s.problem
}

func (s *server) start() error {
	here, err := filepath.EvalSymlinks(".")
	if err != nil {
		return err
	}
	root, err := filepath.Abs(filepath.Join(here, "..", ".."))
	if err != nil {
		return err
	}
	python := os.Getenv("RERANK_TEST_PYTHON")
	if python == "" {
		return errors.New("RERANK_TEST_PYTHON names no Python: run python -m clients.go.tasks test")
	}
	arguments := []string{
		"-m", "rerank_grpc", "serve", "--port", "0", "--admin-port", "off", "--rest-port", "off",
		"--metrics-port", "off", "--log-level", "warning", "--log-format", "text",
	}
	s.command = exec.Command(python, append(arguments, s.options...)...)
	s.command.Dir = folder
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "RERANK_") {
			s.command.Env = append(s.command.Env, variable)
		}
	}
	s.command.Env = append(s.command.Env, "RERANK_TOKENS="+testToken, "PYTHONPATH="+root)
	output, err := s.command.StderrPipe()
	if err != nil {
		return err
	}
	if err := s.command.Start(); err != nil {
		return err
	}
	said := regexp.MustCompile(`serves rerank\.v1 at (\S+)`)
	read := ""
	for lines := bufio.NewScanner(output); lines.Scan(); {
		read += lines.Text() + "\n"
		if match := said.FindStringSubmatch(lines.Text()); match != nil {
			s.target = match[1]
			go io.Copy(io.Discard, output)
			return nil
		}
	}
	return fmt.Errorf("the server ended before it served:\n%s", read)
}

func (s *server) stop() {
	s.once.Do(func() { s.problem = errors.New("the tests are over") })
	if s.command != nil && s.command.Process != nil {
		s.command.Process.Signal(syscall.SIGTERM)
		s.command.Wait()
	}
}

// certify makes a CA, a certificate of the server's, and one of a caller's, in the folder.
func certify() error {
	const key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
	names := filepath.Join(folder, "names")
	if err := os.WriteFile(names, []byte("subjectAltName=IP:127.0.0.1,DNS:localhost"), 0o600); err != nil {
		return err
	}
	const sign = "x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 -extfile names"
	for _, words := range []string{
		"req -x509 " + key + " -days 2 -subj /CN=ca -keyout ca.key -out ca.pem",
		"req -x509 " + key + " -days 2 -subj /CN=stranger -keyout stranger.key -out stranger.pem",
		"req -new " + key + " -subj /CN=server -keyout server.key -out server.csr",
		sign + " -in server.csr -out server.pem",
		"req -new " + key + " -subj /CN=caller -keyout caller.key -out caller.csr",
		sign + " -in caller.csr -out caller.pem",
	} {
		command := exec.Command("openssl", strings.Fields(words)...)
		command.Dir = folder
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("openssl %s: %w: %s", words, err, output)
		}
	}
	return nil
}

// file returns the path of one in the folder.
func file(name string) string {
	return filepath.Join(folder, name)
}

// client makes a client that ends with its test.
func client(t *testing.T, target string, options ...Option) *Client {
	t.Helper()
	client, err := New(target, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// scripted is a server of the test's own, for what the real one says only when it is full or breaks.
type scripted struct {
	rerankv1.UnimplementedRerankServiceServer
	grpc   *grpc.Server
	mutex  sync.Mutex
	calls  int
	answer func(ctx context.Context, call int) (*rerankv1.RerankResponse, error)
	stream func(call int, stream rerankv1.RerankService_StreamRerankServer) error
}

func (s *scripted) next() int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.calls++
	return s.calls
}

func (s *scripted) Rerank(ctx context.Context, _ *rerankv1.RerankRequest) (*rerankv1.RerankResponse, error) {
	return s.answer(ctx, s.next())
}

func (s *scripted) StreamRerank(
	_ *rerankv1.StreamRerankRequest, stream rerankv1.RerankService_StreamRerankServer,
) error {
	return s.stream(s.next(), stream)
}

// serve runs it until the test ends, and returns its address.
func (s *scripted) serve(t *testing.T) string {
	t.Helper()
	return s.serveAt(t, "127.0.0.1:0")
}

func (s *scripted) serveAt(t *testing.T, address string) string {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s.grpc = grpc.NewServer()
	rerankv1.RegisterRerankServiceServer(s.grpc, s)
	go s.grpc.Serve(listener)
	t.Cleanup(s.grpc.Stop)
	return listener.Addr().String()
}

// failure returns the *Error that an error is.
func failure(t *testing.T, err error) *Error {
	t.Helper()
	failure := &Error{}
	if !errors.As(err, &failure) {
		t.Fatalf("not an *Error: %v", err)
	}
	return failure
}

func (s *scripted) count() int {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.calls
}
