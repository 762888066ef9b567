// Package memfile puts data into a file in memory, by which one process hands it
// to another together with the descriptor (memfd_create(2)). Linux only.
package memfile
