// Package sockowner tells which process accepted a connection that this process opened: the kernel's word on whose
// answer one gets where two generations of a program wait at the same socket.
package sockowner
