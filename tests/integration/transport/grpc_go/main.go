// A grpc-go client of a carrier that sends every message back. Prints one JSON line for each thing
// that it has seen; what should be is asserted by the test that starts it.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// raw sends and receives bytes as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (raw) Name() string { return "proto" }

var desc = &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}

func say(what string, fields map[string]any) {
	fields["what"] = what
	out, _ := json.Marshal(fields)
	fmt.Println(string(out))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func sum(data []byte) uint64 {
	h := fnv.New64a()
	h.Write(data)
	return h.Sum64()
}

func open(ctx context.Context, conn *grpc.ClientConn) grpc.ClientStream {
	stream, err := conn.NewStream(ctx, desc, "/any.Service/Method", grpc.ForceCodec(raw{}),
		grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20))
	fail(err)
	return stream
}

// echo sends messages of these sizes and reads them back.
func echo(stream grpc.ClientStream, sizes []int) bool {
	var wait sync.WaitGroup
	sums := make([]uint64, len(sizes))
	wait.Add(1)
	go func() {
		defer wait.Done()
		for i, size := range sizes {
			data := make([]byte, size)
			for j := range data {
				data[j] = byte(j * (i + 3))
			}
			sums[i] = sum(data)
			fail(stream.SendMsg(&data))
		}
	}()
	same := true
	got := make([]uint64, len(sizes))
	for i := range sizes {
		var data []byte
		fail(stream.RecvMsg(&data))
		got[i] = sum(data)
	}
	wait.Wait()
	for i := range sizes {
		same = same && got[i] == sums[i]
	}
	return same
}

func main() {
	target := flag.String("target", "", "host:port")
	root := flag.String("root", "", "file of the root; empty: plaintext")
	streams := flag.Int("streams", 20, "streams at one time on the connection")
	flag.Parse()
	creds := insecure.NewCredentials()
	if *root != "" {
		pem, err := os.ReadFile(*root)
		fail(err)
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		creds = credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "localhost"})
	}
	conn, err := grpc.NewClient(*target, grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second}))
	fail(err)
	ctx := metadata.NewOutgoingContext(context.Background(),
		metadata.Pairs("authorization", "Bearer t", "data-bin", "\x00\xff"))

	one := open(ctx, conn)
	say("echo", map[string]any{"same": echo(one, []int{0, 1, 16383, 16384, 65536, 1 << 20, 8 << 20})})
	fail(one.CloseSend())
	var rest []byte
	err = one.RecvMsg(&rest)
	say("half closed", map[string]any{"end": err == io.EOF})

	// Many streams of one connection, all at once.
	results := make(chan bool)
	for range *streams {
		go func() {
			stream := open(ctx, conn)
			same := echo(stream, []int{100, 50_000, 300_000, 10})
			fail(stream.CloseSend())
			var nothing []byte
			results <- same && stream.RecvMsg(&nothing) == io.EOF
		}()
	}
	all := true
	for range *streams {
		all = <-results && all
	}
	say("many", map[string]any{"same": all})

	// A call that is cancelled leaves the connection as it is.
	cancelled, cancel := context.WithCancel(ctx)
	gone := open(cancelled, conn)
	data := []byte("bye")
	fail(gone.SendMsg(&data))
	cancel()
	say("cancelled", map[string]any{"code": status.Code(gone.RecvMsg(&rest)).String()})

	// The server ends this one with a status, and has it leave the connection.
	ended := open(ctx, conn)
	data = []byte("end me")
	fail(ended.SendMsg(&data))
	for err = nil; err == nil; {
		err = ended.RecvMsg(&rest)
	}
	say("ended", map[string]any{"code": status.Code(err).String(), "text": status.Convert(err).Message()})
	say("again", map[string]any{"same": echo(open(ctx, conn), []int{10, 20})})
	fail(conn.Close())
}
