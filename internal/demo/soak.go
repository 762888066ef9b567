package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/internal/guest"
)

// soak makes many upgrades in a row, from one good release to the other and back, and looks for what piles up.
func (d *demo) soak(ctx context.Context) error {
	upgrades := d.soaking
	d.say("%d upgrades in a row, v1 to v2 and back.", upgrades)
	before := 0
	var took []time.Duration
	for i := range upgrades {
		r, err := d.guest.Exec(ctx, guest.Command{Dir: home, Args: []string{"zdt", "upgrade", "hello", "-o", "json", "-q", "--no-rehearse", "--binary", []string{"./hello-v2", "./hello-v1"}[i%2]}})
		if err != nil {
			return err
		}
		if r.Code != 0 {
			d.promise(false, "upgrade %d exits 0: %s", i+1, r)
			break
		}
		var report struct {
			Candidate int       `json:"candidate"`
			Started   time.Time `json:"started_at"`
			Ended     time.Time `json:"ended_at"`
		}
		if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
			return fmt.Errorf("read the report: %w", err)
		}
		took = append(took, report.Ended.Sub(report.Started))
		if i == 0 { // from here on every generation came about in the same way
			if before, err = d.descriptors(ctx, report.Candidate); err != nil {
				return err
			}
		}
		if n := i + 1; n%25 == 0 || n == upgrades {
			// The runtime may just be closing what zdt asked it over.
			now := before + 1
			for end := time.Now().Add(2 * time.Second); now > before && time.Now().Before(end); {
				if now, err = d.descriptors(ctx, report.Candidate); err != nil {
					return err
				}
			}
			slices.Sort(took)
			l := d.load.Report()
			fmt.Fprintf(d.out, "  %4d upgrades, median %.0f ms; %d requests, %d failed, %d refused, %d reconnects; %d descriptors beside the clients'\n",
				n, took[len(took)/2].Seconds()*1000, l.Requests, l.Failed, l.Refused, l.Reconnects, now)
			d.promise(now <= before, "the service has no more descriptors than the %d at the beginning, not %d", before, now)
		}
	}
	return nil
}

// descriptors counts the descriptors of a process of the guest without those of TCP connections, of which the clients
// open and close some all the time.
func (d *demo) descriptors(ctx context.Context, pid int) (int, error) {
	script := `cd /proc/` + strconv.Itoa(pid) + `/fd
		lasting=" $(awk '$4 == "0A" {print $10}' ../net/tcp ../net/tcp6; awk '{print $7}' ../net/unix) "
		for f in *; do
			to=$(readlink $f) || continue
			inode=${to#socket:[}
			[ "$inode" = "$to" ] && { echo $to; continue; }
			case $(echo $lasting) in *"${inode%]}"*) echo $to ;; esac
		done | wc -l`
	r, err := d.guest.Run(ctx, "/bin/sh", "-c", script)
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(r.Stdout))
	if err != nil {
		return 0, fmt.Errorf("count descriptors: %s", r)
	}
	return n, nil
}
