package rehearse

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/zdt-dev/zdt/unitgen"
)

// keptOfUnit are the settings of [Unit] that belong to the sandbox. All others are about other units (what has to run
// before, what is told of a failure, what is stopped with it), and the rehearsal is to touch none.
var keptOfUnit = []string{"JoinsNamespaceOf", "RequiresMountsFor", "WantsMountsFor"}

// droppedOfService are those settings of [Service] that the rehearsal has otherwise or that would touch the service. What
// a handoff does not run is not run here: the commands beside ExecStart=.
var droppedOfService = []string{
	"ExecStart", "ExecCondition", "ExecStartPre", "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPost",
	"Restart", "RestartSec", "RestartSteps", "RestartMaxDelaySec", "RestartMode", "RestartForceExitStatus", "RestartPreventExitStatus",
	"StartLimitInterval", "StartLimitBurst", "StartLimitAction", "FailureAction", "SuccessAction", "RebootArgument",
	"BusName", "PIDFile", "Sockets", "FileDescriptorStorePreserve", "USBFunctionDescriptors", "USBFunctionStrings",
	"RuntimeDirectory", "RuntimeDirectoryPreserve", "RemoveIPC", "RuntimeMaxSec", "RuntimeRandomizedExtraSec",
	"SyslogIdentifier", "TimeoutStartSec", "TimeoutStartFailureMode", "OOMScoreAdjust",
}

// ofType reports whether a drop-in is for all units of the type (service.d): systemd applies it to the
// rehearsal by itself.
func ofType(file, kind string) bool { return path.Base(path.Dir(file)) == kind+".d" }

// settingsOf are the settings of a unit, without drop-ins that apply to all of its type, and with
// its own name wherever it stands for it.
func settingsOf(unit, kind string, files []unitgen.File) ([]unitgen.Setting, error) {
	var own []unitgen.File
	for _, f := range files {
		if !ofType(f.Path, kind) {
			own = append(own, f)
		}
	}
	all, err := unitgen.ReadSettings(own...)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	for i := range all {
		all[i].Value = unitgen.ExpandNames(all[i].Value, unit, files[0].Path)
	}
	return all, nil
}

// serviceText is the unit of the rehearsal.
func (p *Plan) serviceText(s Service, o Options) ([]byte, error) {
	all, err := settingsOf(s.Facts.Name, "service", s.Files)
	if err != nil {
		return nil, err
	}
	prefix := ""
	var kept []unitgen.Setting
	for _, set := range all {
		switch {
		case set.Section == "Service" && set.Key == "ExecStart":
			prefix = set.Value[:len(set.Value)-len(strings.TrimLeft(set.Value, "@-:+!|"))]
		case set.Section == "Unit" && slices.Contains(keptOfUnit, set.Key),
			set.Section == "Service" && !slices.Contains(droppedOfService, set.Key):
			kept = append(kept, set)
		}
	}
	unit := func(key, value string) { kept = append(kept, unitgen.Setting{Section: "Unit", Key: key, Value: value}) }
	service := func(key, value string) {
		kept = append(kept, unitgen.Setting{Section: "Service", Key: key, Value: value})
	}
	unit("Description", strings.ReplaceAll("Rehearsal of "+s.Name+" "+o.Release.ID, "%", "%%"))
	if sockets := strings.Join(p.socketUnits(), " "); sockets != "" {
		// Requires=, or it would be started without them. They stop with it, in the same transaction: a
		// connection that waits in one must not start it anew.
		unit("Requires", sockets)
		unit("After", sockets)
		unit("PropagatesStopTo", sockets)
		service("Sockets", sockets)
	}
	// A second start there is not, whoever asks for it.
	unit("StartLimitIntervalSec", "1h")
	unit("StartLimitBurst", "1")
	unit("CollectMode", "inactive-or-failed")

	prefix = strings.ReplaceAll(prefix, "-", "") // which would call every end a good one
	service("ExecStart", prefix+p.command(prefix, s.Facts.ExecStartPath))
	service("Restart", "no")
	if s.Facts.DynamicUser {
		// The name of the unit is where systemd takes it from; the same name is the same user, for
		// as long as one of the units runs.
		service("User", s.Facts.User)
	}
	for i, dir := range s.Facts.RuntimeDirectory {
		own := p.Name + "." + fmt.Sprint(i)
		service("RuntimeDirectory", own)
		if !o.User {
			// A path that the program knows by heart leads to its own as well, and never to the service's.
			service("BindPaths", unitgen.QuoteWord(path.Join(o.RunDir, own)+":"+path.Join(o.RunDir, dir)))
		}
	}
	// Of the user, which is the service's. DynamicUser= implies it all the same; systemd then removes nothing before the
	// last unit of that user has ended.
	service("RemoveIPC", "no")
	service("SyslogIdentifier", unitgen.QuoteWord(s.Name+"-rehearsal"))
	service("TimeoutStartSec", span(p.startTimeout))
	if p.stopTimeout > 0 {
		service("TimeoutStopSec", span(p.stopTimeout))
	}
	service("RuntimeMaxSec", span(p.longest+time.Minute)) // should nobody end it
	// The first to be killed when memory gets short, before the service and all others.
	service("OOMScoreAdjust", "1000")
	// The last one counts, whatever the others say.
	service("EnvironmentFile", strings.ReplaceAll(p.envFile, "%", "%%"))
	return unitgen.WriteSettings(kept), nil
}

// command is the value of ExecStart= behind its prefix.
func (p *Plan) command(prefix, file string) string {
	var words []string
	if strings.Contains(prefix, "@") {
		words = append(words, unitgen.QuoteWord(strings.ReplaceAll(file, p.from, p.to)))
	}
	for _, w := range p.words {
		words = append(words, unitgen.QuoteWord(w))
	}
	return strings.Join(words, " ")
}

// span is a time as systemd reads it.
func span(d time.Duration) string { return fmt.Sprintf("%dms", d.Milliseconds()) }
