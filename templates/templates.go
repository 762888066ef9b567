// Package templates holds the files zdt generates from, before anything is
// filled in. What the placeholders mean is package unitgen's business.
//
// This package is internal to zdt; its API is not stable.
package templates

import _ "embed"

//go:embed service.tmpl
var service string

//go:embed socket.tmpl
var socket string

//go:embed zdt-reconcile.service
var reconcile string

//go:embed zdt-operator.service
var operator string

//go:embed zdt-operator.rules
var operatorRule string

// Service returns the text/template of a service unit.
func Service() string { return service }

// Socket returns the text/template of a socket unit.
func Socket() string { return socket }

// Reconcile returns the text/template of the unit that settles interrupted
// upgrades after a boot.
func Reconcile() string { return reconcile }

// Operator returns the text/template of the unit by which unprivileged operators
// of one service ask for an upgrade.
func Operator() string { return operator }

// OperatorRule returns the text/template of the polkit rule that lets them
// reload that unit.
func OperatorRule() string { return operatorRule }

//go:embed adopt.tmpl
var adopt string

// Adopt returns the text/template of the drop-in that brings an existing service under
// zdt.
func Adopt() string { return adopt }
