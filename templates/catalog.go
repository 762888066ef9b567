package templates

import _ "embed"

//go:embed zdt.catalog
var catalog string

// CatalogPath is where the message catalog belongs on a host. journalctl
// --update-catalog reads it from there.
const CatalogPath = "/usr/lib/systemd/catalog/zdt.catalog"

// Catalog returns the message catalog, which makes journalctl -x explain
// zdt's events.
func Catalog() string { return catalog }
