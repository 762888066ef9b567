package unitgen

// When the settings of a running unit come into force, as systemd 252 to 257 have it.

// serviceByReload are settings that systemd keeps for itself and looks up when their time comes.
var serviceByReload = [...]string{
	// What is done when the service ends or is to end (service.c: service_shall_restart, service_enter_signal, the timers
	// are armed anew when units are loaded).
	"Restart", "RestartSec", "RestartSteps", "RestartMaxDelaySec", "RestartMode",
	"SuccessExitStatus", "RestartPreventExitStatus", "RestartForceExitStatus",
	"TimeoutStartSec", "TimeoutStopSec", "TimeoutAbortSec", "TimeoutSec", "TimeoutStartFailureMode", "TimeoutStopFailureMode", "RuntimeMaxSec",
	"KillMode", "KillSignal", "RestartKillSignal", "FinalKillSignal", "WatchdogSignal", "ReloadSignal", "SendSIGKILL", "SendSIGHUP",
	// Whose messages count (service_notify_message). docs/decisions/0004-reclaim.md rests on it.
	"NotifyAccess",
	// Commands that systemd starts later; those of the start are not among them.
	"ExecReload", "ExecStop", "ExecStopPost",
	"FileDescriptorStoreMax", "FileDescriptorStorePreserve", "RemainAfterExit", "OOMPolicy",

	// systemd.resource-control(5). With a daemon-reload systemd writes them all into the cgroups of running units again: that
	// is what undid the limits that others had set there behind its back (systemd issues 5077 and 17938). Not those that are
	// programs in the kernel (IPAddressAllow=, DeviceAllow=, SocketBindAllow= …), which are not counted upon here, nor
	// Slice= and Delegate=, which move or shape the cgroup: both versions leave it where it is until a restart.
	"MemoryMax", "MemoryHigh", "MemoryLow", "MemoryMin", "MemorySwapMax", "MemoryZSwapMax",
	"StartupMemoryMax", "StartupMemoryHigh", "StartupMemoryLow", "StartupMemorySwapMax",
	"CPUWeight", "StartupCPUWeight", "CPUQuota", "CPUQuotaPeriodSec",
	"IOWeight", "StartupIOWeight", "IODeviceWeight", "IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax", "IODeviceLatencyTargetSec",
	"TasksMax", "AllowedCPUs", "StartupAllowedCPUs", "AllowedMemoryNodes", "StartupAllowedMemoryNodes",
	// Read by systemd-oomd from the unit's properties.
	"ManagedOOMSwap", "ManagedOOMMemoryPressure", "ManagedOOMMemoryPressureLimit", "ManagedOOMPreference",
}

// serviceByHandoff are settings that "zdt handoff" as ExecReload= brings to a helper (cmd/handoff_fresh.go): systemd starts it
// with the environment that the unit has at that moment. ExecStart= is looked at by itself.
var serviceByHandoff = [...]string{"Environment", "EnvironmentFile", "PassEnvironment", "UnsetEnvironment"}

// helperOnce are variables that zdt run reads when it starts and never again.
var helperOnce = [...]string{"ZDT_SERVICE", "ZDT_HOLD_TIMEOUT"}

// runFlagsAnew are the flags of zdt run that a handoff takes anew (helper.App). The others hold as long as the helper lives:
// its sockets, its name, its control socket.
var runFlagsAnew = [...]string{
	"pass", "stdin", "ready", "notify-access", "stop-signal", "pause-signal", "resume-signal", "strategy", "ready-timeout", "drain-timeout",
}

// socketByReload are settings of a socket unit that systemd looks up at each activation or at the end (socket.c), and
// socketByService those that matter when the service is started: how its descriptors are called.
var (
	socketByReload = [...]string{
		"TriggerLimitIntervalSec", "TriggerLimitBurst", "PollLimitIntervalSec", "PollLimitBurst", "MaxConnections", "MaxConnectionsPerSource",
		"RemoveOnStop", "FlushPending", "ExecStopPre", "ExecStopPost", "TimeoutSec",
	}
	socketByService = [...]string{"FileDescriptorName"}
)

// scalars are the settings with one value, of which the last one counts. All others are taken for lists, so that a change in
// front of the last value is not missed.
var scalars = [...]string{
	"Description", "StartLimitIntervalSec", "StartLimitBurst", "StartLimitAction",
	"Type", "ExitType", "NonBlocking", "User", "Group", "DynamicUser", "WorkingDirectory", "RootDirectory", "RootImage", "UMask", "Nice", "OOMScoreAdjust",
	"RuntimeDirectoryMode", "StateDirectoryMode", "CacheDirectoryMode", "LogsDirectoryMode", "ConfigurationDirectoryMode", "RuntimeDirectoryPreserve",
	"SyslogIdentifier", "StandardInput", "StandardOutput", "StandardError", "WatchdogSec", "Slice", "Delegate",
	"ProtectSystem", "ProtectHome", "ProtectProc", "ProcSubset", "PrivateTmp", "PrivateDevices", "PrivateNetwork", "PrivateUsers", "PrivateMounts", "PrivateIPC", "ProtectClock",
	"ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "RemoveIPC", "NoNewPrivileges",
	"LockPersonality", "MemoryDenyWriteExecute", "RestrictRealtime", "RestrictSUIDSGID", "SystemCallErrorNumber", "KeyringMode", "DevicePolicy",
	"Backlog", "FileDescriptorName", "Service", "Accept", "KeepAlive", "NoDelay", "ReusePort", "FreeBind", "Transparent", "BindIPv6Only", "SocketMode", "SocketUser",
	"SocketGroup", "DirectoryMode", "ReceiveBuffer", "SendBuffer", "DeferAcceptSec", "PassCredentials", "Mark", "Priority",
	"Format", "Name", "Runtime", "Exec", "Bake", "ReadyTimeout", "DrainTimeout", "OnFailure", "Generated",
}

func isScalar(section, key string) bool {
	if contains(scalars[:], key) || len(key) > 5 && key[:5] == "Limit" {
		return true
	}
	switch key { // of the reload list: commands, exit statuses, and limits for devices are lists
	case "SuccessExitStatus", "RestartPreventExitStatus", "RestartForceExitStatus", "ExecReload", "ExecStop", "ExecStopPost", "ExecStopPre":
		return false
	case "IODeviceWeight", "IOReadBandwidthMax", "IOWriteBandwidthMax", "IOReadIOPSMax", "IOWriteIOPSMax", "IODeviceLatencyTargetSec":
		return false
	}
	switch section {
	case "Service":
		return contains(serviceByReload[:], key)
	case "Socket":
		return contains(socketByReload[:], key)
	}
	return false
}
