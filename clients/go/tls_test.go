package rerank

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
)

// certificate is the caller's, whose CA the secure server knows.
func certificate() Option {
	return WithCertificateFiles(file("caller.pem"), file("caller.key"))
}

func TestAServerOfMutualTLSIsCalledByTheFilesOfACertificate(t *testing.T) {
	target := secure.at(t)
	if _, err := client(t, target, WithCAFile(file("ca.pem")), certificate()).Rerank(background, question); err != nil {
		t.Error(err)
	}
}

func TestAConfigurationOfTheCallersOwnServesAsWell(t *testing.T) {
	target := secure.at(t)
	pair, err := tls.LoadX509KeyPair(file("caller.pem"), file("caller.key"))
	if err != nil {
		t.Fatal(err)
	}
	own := &tls.Config{ServerName: "localhost", MinVersion: tls.VersionTLS13}
	client := client(t, target, WithTLSConfig(own), WithCAFile(file("ca.pem")), WithCertificate(pair))
	if _, err := client.Rerank(background, question); err != nil {
		t.Error(err)
	}
	if own.RootCAs != nil {
		t.Error("the caller's own configuration has changed")
	}
}

func TestEachAddressOfSeveralIsKnownByItsOwnName(t *testing.T) {
	target := secure.at(t)
	_, port, _ := net.SplitHostPort(target)
	client := client(t, target+",localhost:"+port, WithCAFile(file("ca.pem")), certificate())
	for call := 0; call < 20; call++ {
		if _, err := client.Rerank(background, question); err != nil {
			t.Fatal(err)
		}
	}
}

func TestATLSConnectionThatDoesNotComeAboutTellsWhatToDo(t *testing.T) {
	target, unsecured := secure.at(t), plain.at(t)
	ca := WithCAFile(file("ca.pem"))
	stranger := WithCertificateFiles(file("stranger.pem"), file("stranger.key"))
	for name, tried := range map[string]struct {
		target  string
		options []Option
		told    string
	}{
		"a CA that is not known":      {target, []Option{WithTLS(), certificate()}, "WithCAFile"},
		"a certificate of a stranger": {target, []Option{ca, stranger}, "WithCertificateFiles"},
		"no certificate":              {target, []Option{ca}, "WithCertificateFiles"},
		"another name":                {target, []Option{ca, certificate(), WithServerName("other")}, "WithServerName"},
		"TLS where there is none":     {unsecured, []Option{ca}, "no TLS there"},
		"none where there is":         {target, nil, "speaks TLS there"},
	} {
		_, err := client(t, tried.target, tried.options...).Rerank(background, question)
		if !errors.Is(err, TLSFailed) || !errors.Is(err, ServerUnavailable) || !strings.Contains(err.Error(), tried.told) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNoConfigurationOfTLSIsNotTakenForPlaintext(t *testing.T) {
	if _, err := New("localhost", WithTLSConfig(nil)); err == nil {
		t.Error("a client was made, which would send its token in plaintext")
	}
}
