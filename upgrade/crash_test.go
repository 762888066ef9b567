package upgrade

import "context"
import "net"

func dialBus(ctx context.Context, dir string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", dir+"/bus")
}
func zdtMain() error { return nil }
