package rehearse

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// essential are the properties that make the sandbox, by how they begin: a rehearsal that has them otherwise proves nothing.
var essential = []string{
	"User", "Group", "DynamicUser", "SupplementaryGroups", "PAMName",
	"Protect", "Private", "Restrict", "SystemCall", "CapabilityBoundingSet", "AmbientCapabilities", "NoNewPrivileges", "SecureBits",
	"LockPersonality", "MemoryDenyWriteExecute", "Personality", "Root", "Read", "Inaccessible", "ExecPaths", "NoExecPaths", "TemporaryFileSystem",
	"Bind", "Mount", "Extension", "Device", "ProcSubset", "UMask", "WorkingDirectory", "Keyring",
	"StateDirectory", "CacheDirectory", "LogsDirectory", "ConfigurationDirectory",
	"NetworkNamespacePath", "IPCNamespacePath", "IPAddress", "SocketBind", "SELinuxContext", "AppArmorProfile", "SmackProcessLabel",
	"Type",
}

// compared are those in addition whose differences are told.
var compared = []string{
	"Environment", "PassEnvironment", "UnsetEnvironment", "Limit", "Slice", "MemoryMax", "MemoryHigh", "MemorySwapMax", "TasksMax",
	"CPUQuotaPerSecUSec", "CPUWeight", "CPUAffinity", "CPUScheduling", "AllowedCPUs", "AllowedMemoryNodes", "IOWeight", "IOScheduling",
	"Nice", "NUMA", "LoadCredential", "SetCredential", "ImportCredential", "TimeoutStop", "KillMode", "KillSignal", "SendSIGKILL",
	"SuccessExitStatus", "Standard", "Delegate", "OpenFile", "LogNamespace", "ExecSearchPath", "IgnoreSIGPIPE", "CoredumpFilter", "TimerSlackNSec",
}

// incomparable are no settings, or the rehearsal has them otherwise on purpose. NotifyAccess of a service that has handed over is what
// its runtime has said last (NOTIFYACCESS=, since 254), and not what its unit says.
var incomparable = []string{
	"NotifyAccess", "RestartUSec", "StandardInputFileDescriptorName", "StandardOutputFileDescriptorName", "StandardErrorFileDescriptorName",
}

// settings are properties of a unit, each as a text.
type settings map[string]string

// contradiction compares what systemd makes of the rehearsal with the service: the names of the properties that make it
// worthless, and of those that are told. mine are texts that the rehearsal has in addition, by property.
func contradiction(service, rehearsal settings, mine map[string][]string) (worthless, told []string) {
	begins := func(key string, with []string) bool {
		return slices.ContainsFunc(with, func(s string) bool { return strings.HasPrefix(key, s) })
	}
	for _, key := range slices.Sorted(maps.Keys(service)) {
		if slices.Contains(incomparable, key) || service[key] == without(rehearsal[key], mine[key]) {
			continue
		}
		switch {
		case begins(key, essential):
			worthless = append(worthless, key)
		case begins(key, compared):
			told = append(told, key)
		}
	}
	return worthless, told
}

// without is a list, as fmt prints one, without its last elements.
func without(list string, elements []string) string {
	for _, e := range slices.Backward(elements) {
		list = strings.Replace(list, " "+e+"]", "]", 1)
		list = strings.Replace(list, "["+e+"]", "[]", 1)
	}
	return list
}

// additions are what a rehearsal has besides what the service has.
func (p *Plan) additions(dirs []string, runDir string) map[string][]string {
	m := map[string][]string{"EnvironmentFiles": {fmt.Sprintf("[%s %t]", p.envFile, false)}}
	for i, dir := range dirs {
		// Flags: not ignored when missing, and MS_REC.
		m["BindPaths"] = append(m["BindPaths"], fmt.Sprintf("[%s/%s.%d %s/%s %t %d]", runDir, p.Name, i, runDir, dir, false, msRec))
	}
	return m
}

// msRec is MS_REC of mount(2), as BindPaths= has it by default.
const msRec = 16384
